"""A small project on the built-in world: ``make demo-annotate``.

Two descriptions of each picture, made without a model: one true, one as machine-written data has them, with
a false object among the true ones. The test and the gold items are such pairs with their answers.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from apps.annotate.admin_api import invitation_path
from apps.annotate.service import Service
from apps.annotate.store import open_store
from apps.cli import main as align
from data.jsonl import read_records, write_records
from data.schema import HALLUCINATION, HELPFULNESS, Message, Preference, Prompt, Response
from data.world import language
from data.world.annotators import CLEAN
from data.world.build import WorldRates, WorldSizes, build, image_of, read_scenes
from data.world.scene import Scene

#: pairs of the test and gold items, made beside those to compare
TEST, GOLD = 8, 12
#: labelers whom one start invites
GUESTS = 20


def main(arguments: list[str] | None = None) -> int:
    """Make the world and the pairs where they are not there yet, and serve them."""
    parser = argparse.ArgumentParser(prog="make demo-annotate", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/annotate"), metavar="DIR")
    parser.add_argument("--pairs", type=int, default=60, metavar="N", help="pairs to compare (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--port", type=int, default=7861, metavar="N", help="default: %(default)s")
    args, more = parser.parse_known_args(arguments)
    made = make(args.output, args.pairs, args.seed)
    store = f"sqlite:///{args.output / 'votes.db'}"
    print(f"the store is {store}: give it to stats, export and users as --store {store}", flush=True)
    words = ["annotate", "serve", "--store", store, "--images", str(args.output / "world")]
    words += ["--port", str(args.port)]
    for name, file in made.items():
        words += [f"--{name}", str(file)]
    if args.port:
        link = f"http://127.0.0.1:{args.port}{_invite(store)}"
        print(f"labelers come in by {link} (up to {GUESTS} within a week, once it is served)", flush=True)
    return align([*words, "--overlap", "0.5", *more])


def _invite(url: str) -> str:
    """Where an invitation for labelers leads; the store is made if it is not there."""
    store = open_store(url, create=True)
    try:
        return invitation_path(Service(store).accounts.invite("labeler", GUESTS))
    finally:
        store.close()


def make(folder: Path, pairs: int, seed: int) -> dict[str, Path]:
    """Write the world and the files of pairs; returns data, gold and qualification.

    Raises DataError where the folder holds a world of another size or seed.
    """
    files = {name: folder / f"{name}.jsonl" for name in ("data", "gold", "qualification")}
    sizes = WorldSizes(
        sft=1, text=1, human=1, pairs=pairs + GOLD + TEST, prompts=1, describe=1, pope_images=2
    )
    world = folder / "world"
    build(world, sizes, WorldRates(), seed=seed, workers=1)
    scenes = read_scenes(world)
    asked = [one for one in read_records(world / "pairs.jsonl", "prompt") if isinstance(one, Prompt)]
    made = [pair(scenes[one.image.id], seed) for one in asked if one.image is not None]
    write_records(files["data"], [record.model_copy(update={"choices": {}}) for record in made[:pairs]])
    write_records(files["gold"], made[pairs : pairs + GOLD])
    write_records(files["qualification"], made[pairs + GOLD :])
    return files


def pair(scene: Scene, seed: int) -> Preference:
    """A true description and one with a false object, in any order, and which is better."""
    rng = random.Random(f"demo/{seed}/{scene.id}")
    texts = [
        language.describe(scene, rng),
        language.describe(scene, rng, language.plant(scene, rng)),
    ]
    models = ["true", "planted"]
    if rng.random() < 0.5:
        texts, models = texts[::-1], models[::-1]
    question = rng.choice(language.DESCRIBE)
    found = CLEAN.choose(scene, texts, rng, question)
    return Preference(
        id=f"demo/{scene.id}",
        image=image_of(scene),
        messages=[Message(role="user", content=question)],
        responses=[Response(text=text, model=model) for text, model in zip(texts, models)],
        choices={HALLUCINATION: found[HALLUCINATION], HELPFULNESS: found[HELPFULNESS]},
        source="world-demo",
    )


if __name__ == "__main__":
    sys.exit(main())
