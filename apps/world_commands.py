"""``align data world | annotate | contact-sheet``: the built-in world's data and simulated labelers."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from data.schema import Preference


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
        "--scale", type=float, default=1.0, help="multiplies the number of records of every part"
    )
    annotate_ = subparsers.add_parser("annotate", help="simulated labelers choose between sampled responses")
    annotate_.add_argument("samples", type=Path, help="samples.jsonl of `align sample`")
    annotate_.add_argument("output", type=Path)
    annotate_.add_argument(
        "--world", type=Path, required=True, help="the world folder that the pictures came from"
    )
    annotate_.add_argument("--seed", type=int, default=0)
    annotate_.add_argument("--clean", action="store_true", help="labelers that see everything and never slip")
    sheet = subparsers.add_parser("contact-sheet", help="a picture of all objects in all colours")
    sheet.add_argument("output", type=Path)


def run(args: argparse.Namespace) -> int:
    if args.data_command == "world":
        from dataclasses import asdict

        from data.world.build import WorldRates, WorldSizes, build

        sizes = WorldSizes(**{k: max(24, round(v * args.scale)) for k, v in asdict(WorldSizes()).items()})
        rates = WorldRates() if args.difficulty is None else WorldRates(difficulty=args.difficulty)
        build(args.output, sizes, rates, seed=args.seed)
        print(f"wrote {args.output}")
    elif args.data_command == "annotate":
        from data.jsonl import read_records, write_records
        from data.world.build import read_scenes

        samples = read_records(args.samples, "preference")
        done = annotate(samples, read_scenes(args.world), seed=args.seed, clean=args.clean)
        print(f"wrote {write_records(args.output, done)} preferences to {args.output}")
    else:
        from data.world.draw import contact_sheet

        contact_sheet().save(args.output)
        print(f"wrote {args.output}")
    return 0


def annotate(samples: list[Preference], scenes: dict, *, seed: int, clean: bool = False) -> list[Preference]:
    """Choices of a simulated labeler for each sampled pair; the scene is found by the image's id."""
    from data.world.annotators import CLEAN, Labeler

    labeler = CLEAN if clean else Labeler()
    done = []
    for pair in samples:
        if pair.image is None or pair.image.id not in scenes:
            raise KeyError(
                f"{pair.id}: its image is not a scene of this world; give the folder that it came from"
            )
        rng = random.Random(f"labeler/{seed}/{pair.id}")
        choices = labeler.choose(scenes[pair.image.id], [r.text for r in pair.responses], rng)
        done.append(
            pair.model_copy(update={"choices": choices, "annotator": "world-clean" if clean else "world"})
        )
    return done
