"""``align data world | annotate | contact-sheet``: the built-in world's data and simulated labelers."""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import TYPE_CHECKING

from data.jsonl import DataError
from data.schema import Preference

if TYPE_CHECKING:
    from data.world.scene import Scene

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    world = subparsers.add_parser(
        "world", help="write a folder of world data: pictures, conversations, benchmarks"
    )
    world.add_argument("output", type=Path)
    world.add_argument("--seed", type=int, default=0)
    world.add_argument(
        "--difficulty", type=float, default=None, help="0..1: how hard the pictures are to see"
    )
    world.add_argument(
        "--scale", type=float, default=1.0, help="multiplies the number of records of every part (to 1000)"
    )
    annotate_ = subparsers.add_parser("annotate", help="simulated labelers choose between sampled responses")
    annotate_.add_argument("samples", type=Path, help="samples.jsonl of `align sample`")
    annotate_.add_argument("output", type=Path)
    annotate_.add_argument(
        "--world", type=Path, required=True, help="the world folder that the pictures came from"
    )
    annotate_.add_argument("--seed", type=int, default=0)
    annotate_.add_argument("--clean", action="store_true", help="labelers that see everything and never slip")
    annotate_.add_argument("--force", action="store_true", help="replace OUTPUT if it exists")
    sheet = subparsers.add_parser("contact-sheet", help="a picture of all objects in all colours")
    sheet.add_argument("output", type=Path)


def run(args: argparse.Namespace) -> int:
    if args.data_command == "world":
        from dataclasses import asdict

        from data.world.build import WorldRates, WorldSizes, build

        if args.difficulty is not None and not 0 <= args.difficulty <= 1:
            raise DataError(f"{args.difficulty} is not a share", key="--difficulty", mend="give 0..1")
        if not 0 < args.scale <= 1000:
            rule = f"{args.scale} is no scale"
            raise DataError(rule, key="--scale", mend="give a number above 0 and up to 1000")
        sizes = WorldSizes(**{k: max(24, round(v * args.scale)) for k, v in asdict(WorldSizes()).items()})
        rates = WorldRates() if args.difficulty is None else WorldRates(difficulty=args.difficulty)
        build(args.output, sizes, rates, seed=args.seed)
        print(f"wrote {args.output}")
    elif args.data_command == "annotate":
        from data.jsonl import read_records, write_records
        from data.world.build import read_scenes

        if args.output.exists() and not args.force:
            mend = "choose another, or --force"
            raise DataError("the output exists already", file=str(args.output), mend=mend)
        records = read_records(args.samples, "preference", strict=True)
        samples = [record for record in records if isinstance(record, Preference)]
        if not samples:
            mend = "give what `align sample` wrote, or preferences of another source"
            raise DataError("no 'preference' records in it", file=str(args.samples), mend=mend)
        done = annotate(samples, read_scenes(args.world), seed=args.seed, clean=args.clean)
        print(f"wrote {write_records(args.output, done)} preferences to {args.output}")
    else:
        from data.world.draw import contact_sheet

        if args.output.suffix.lower() not in PICTURES:
            rule = f"{args.output.name!r} does not end in {', '.join(PICTURES)}"
            raise DataError(rule, key="OUTPUT", mend="name a picture file")
        contact_sheet().save(args.output)
        print(f"wrote {args.output}")
    return 0


def annotate(
    samples: list[Preference], scenes: dict[str, Scene], *, seed: int, clean: bool = False
) -> list[Preference]:
    """Choices of a simulated labeler for each sampled pair; the scene is found by the image's id.

    Raises DataError for a pair of an unknown image, or of more than two responses.
    """
    from data.world.annotators import CLEAN, Labeler

    labeler = CLEAN if clean else Labeler()
    done = []
    for pair in samples:
        if pair.image is None or pair.image.id not in scenes:
            rule = f"the image of {pair.id!r} is not a scene of this world"
            raise DataError(rule, key="image", mend="give the world folder that it came from")
        if len(pair.responses) != 2:
            rule = f"{pair.id!r} has {len(pair.responses)} responses, and a labeler compares two"
            raise DataError(rule, key="responses", mend="sample two a prompt (responses=2)")
        rng = random.Random(f"labeler/{seed}/{pair.id}")
        choices = labeler.choose(
            scenes[pair.image.id], [r.text for r in pair.responses], rng, pair.messages[-1].content
        )
        name = "world-clean" if clean else "world"
        done.append(pair.model_copy(update={"choices": choices, "annotator": name}))
    return done
