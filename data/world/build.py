"""A folder of world data in the project's schema: pictures, conversations, prompts, benchmarks.

``build`` writes::

    world.json        seed, sizes and rates: a folder belongs to one set of them
    images/*.png      scenes.jsonl (full knowledge; only annotators and judges may read it)
    sft.jsonl         machine-written conversations: some descriptions name one thing that is not there;
                      and text-only reading: captions, and what follows from them
    human.jsonl       clean yes/no, multiple choice and spotting turns (what SFT+ adds)
    pairs.jsonl       prompts to sample two responses for, and prompts.jsonl: prompts for PPO
    eval/             pope_{random,popular,adversarial}.jsonl, mmhal.json, describe.jsonl
    captions.json     image -> five captions (LLaVA-RLHF's image_to_caption.json layout)
    DONE              present once all of it is there
"""

from __future__ import annotations

import json
import os
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from data import pope_sampling
from data.folders import claim
from data.jsonl import DataError, read_rows, write_json, write_records, write_text
from data.processes import end_with_parent
from data.schema import Example, Facts, Image, Prompt
from data.world import language as lang
from data.world import reading
from data.world.draw import SIDE, draw_scene
from data.world.scene import CATEGORIES, OBJECTS, Scene, sample_scene

#: draws every split from its own stream of scenes
_STREAMS = {"sft": 0, "human": 1, "pairs": 2, "prompts": 3, "eval": 4, "text": 5}


@dataclass(frozen=True)
class WorldSizes:
    sft: int = 5000
    #: text-only turns in ``sft.jsonl``, as LLaVA's mix has them: what keeps the skill of reading
    text: int = 700
    human: int = 3500
    pairs: int = 4000
    prompts: int = 3000
    describe: int = 1000
    pope_images: int = 300


@dataclass(frozen=True)
class WorldRates:
    """How the machine-written data errs. Chosen by POPE of SFT and SFT+ alone (apps/studies/PROTOCOL.md)."""

    #: share of machine-written descriptions with one false object
    planted: float = 0.3
    #: share of machine-written yes/no questions whose object is there
    synthetic_yes: float = 0.88
    difficulty: float = 0.7


def scene_seed(seed: int, split: str) -> int:
    return seed * 10 + _STREAMS[split]


def image_of(scene: Scene) -> Image:
    return Image(id=scene.id, path=f"images/{scene.id}.png")


def _facts(scene: Scene, rationales: list[str] | None = None) -> Facts:
    return Facts(captions=lang.captions(scene), rationales=rationales or [])


def synthetic_example(scene: Scene, rates: WorldRates) -> Example:
    """A machine-written conversation: short questions, then usually a description that may err."""
    rng = random.Random(f"synthetic/{scene.id}")
    turns: list[lang.Turn] = []
    makers = (lang.attribute, lang.counting, lang.relation, lang.comparison, lang.environment, lang.other)
    for _ in range(rng.choice((2, 3))):
        kind = rng.random()
        if kind < 0.3:
            truth = rng.random() < rates.synthetic_yes
            name = rng.choice(scene.objects) if truth else lang.absent(scene, rng)
            turn = lang.yes_no(name, truth)
        elif kind < 0.36:
            turn = lang.adversarial(scene, rng)
        else:
            turn = rng.choice(makers)(scene, rng)
        if turn.about is None or turn.about not in {t.about for t in turns}:
            # the answer to a second question about one thing can be read off the first
            turns.append(turn)
    if rng.random() < 0.75:
        groups = lang.plant(scene, rng) if rng.random() < rates.planted else None
        turns.insert(
            rng.choice((0, len(turns))),
            lang.Turn("detail", rng.choice(lang.DESCRIBE), lang.describe(scene, rng, groups)),
        )
    return Example(
        id=f"sft/{scene.id}", image=image_of(scene), messages=reading.dialogue(turns), task="conversation",
        facts=_facts(scene), source="world-synthetic", split="train",
    )  # fmt: skip


def text_example(scene: Scene, rng: random.Random) -> Example:
    """Reading without a picture: questions about captions, or whether a description agrees with them."""
    if rng.random() < 0.4:
        return reading.questions(scene, rng)
    *_, question, verdict = reading.verify(scene, rng).messages
    # the description stands in the question alone: no false sentence is learned as an answer
    return Example(id=f"text/{scene.id}", messages=[question, verdict], source="world-reading", split="train")


def balanced_yes_no(scene: Scene, rng: random.Random) -> lang.Turn:
    """Half of the questions ask for something present; half of the rest for something that tempts."""
    if rng.random() < 0.5:
        return lang.yes_no(rng.choice(scene.objects), True)
    return lang.yes_no(lang.absent(scene, rng, rng.choice(("tempting", "random"))), False)


def human_example(scene: Scene, rng: random.Random) -> Example:
    """Clean data as SFT+ adds it: balanced yes/no (VQA-v2), choice (A-OKVQA), spotting (Flickr30k)."""
    rationales: list[str] = []
    task = rng.choices(("yesno", "choice", "spotting"), (0.68, 0.13, 0.19))[0]  # 83k : 16k : 23k
    if task == "yesno":
        turns = lang.yes_no_about(scene, scene.objects, rng)
    elif task == "choice":
        turn, rationales = lang.choice(scene, rng)
        turns = [turn]
    else:
        turns = [lang.spotting(scene, rng)]
    return Example(
        id=f"human/{scene.id}", image=image_of(scene), messages=reading.dialogue(turns), task=task,
        facts=_facts(scene, rationales), answer=turns[0].answer, source="world-human", split="train",
    )  # fmt: skip


def prompt_for(
    scene: Scene, rng: random.Random, source: str, describe_share: float, split: str = "train"
) -> Prompt:
    """A first question: mostly a description, else yes/no or multiple choice with its answer."""
    kind = rng.random()
    base = {"image": image_of(scene), "source": source, "split": split, "id": f"{source}/{scene.id}"}
    if kind < describe_share:
        return Prompt(question=rng.choice(lang.DESCRIBE), length_class="detail", facts=_facts(scene), **base)
    if kind < describe_share + (1 - describe_share) * 0.6:
        turn = balanced_yes_no(scene, rng)
        return Prompt(question=turn.question, answer_type=turn.answer.lower(), facts=_facts(scene), **base)
    turn, rationales = lang.choice(scene, rng)
    return Prompt(question=turn.question, answer_type=turn.answer, facts=_facts(scene, rationales), **base)


def pope_rows(scenes: list[Scene], seed: int) -> dict[str, list[dict[str, object]]]:
    """POPE's three splits (``data.pope_sampling``) of scenes with three objects or more."""
    objects = {f"{scene.id}.png": scene.objects for scene in scenes}
    rng = random.Random(f"pope/{seed}")
    splits = pope_sampling.sample(
        objects, OBJECTS, rng=rng, ask=lambda name: lang.yes_no(name, True).question
    )
    return {split: [item.model_dump(mode="json") for item in items] for split, items in splits.items()}


def _suits(scene: Scene, make: object, index: int) -> bool:
    """Whether the scene can be asked about in this way; every second "other" question may find no board."""
    if make is lang.relation:
        return any(g.count == 1 for g in scene.groups)
    return make is not lang.other or scene.text is not None or index % 16 == 7


def mmhal_rows(scenes: list[Scene], seed: int, n: int = 96) -> list[dict[str, object]]:
    """``n`` open questions in MMHal-Bench's template; type = index mod 8, topic = super-category."""
    rng = random.Random(f"mmhal/{seed}")
    topics = {name: topic for topic, names in CATEGORIES.items() for name in names}
    pool = iter(scenes)
    rows: list[dict[str, object]] = []
    while len(rows) < n:
        make = lang.MMHAL[len(rows) % 8]
        scene = next((s for s in pool if _suits(s, make, len(rows))), None)
        if scene is None:
            raise DataError(f"{len(scenes)} scenes are too few for {n} questions", mend="give twice as many")
        turn = make(scene, rng)
        rows.append({
            "question_type": make.__name__, "question_topic": topics[scene.objects[0]], "image_id": scene.id,
            "image_src": f"images/{scene.id}.png", "image_content": scene.objects, "question": turn.question,
            "gt_answer": turn.answer, "model_answer": "",
        })  # fmt: skip
    return rows


def _draw_one(job: tuple[Scene, Path]) -> None:
    scene, folder = job
    # beside its place and then moved: a picture is whole or absent, and an interrupted build leaves one name
    part = folder / f".{scene.id}.png.part"
    # noise does not compress, and trying takes as long as the drawing
    draw_scene(scene, SIDE).save(part, format="PNG", compress_level=0)
    os.replace(part, folder / f"{scene.id}.png")


def draw_all(scenes: list[Scene], folder: Path, workers: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(s, folder) for s in scenes]
    if workers <= 1:
        for job in jobs:
            _draw_one(job)
        return
    with ProcessPoolExecutor(workers, initializer=end_with_parent) as pool:
        for _ in pool.map(_draw_one, jobs, chunksize=128):
            pass


def read_scenes(folder: Path) -> dict[str, Scene]:
    """Image id -> scene. For annotators and judges only. Raises DataError for a damaged file."""
    scenes: dict[str, Scene] = {}
    for row, value in read_rows(folder / "scenes.jsonl"):
        if isinstance(value, DataError):
            raise value
        try:
            scene = Scene.from_json(value)
        except KeyError as error:
            mend = "write the folder again (align data world)"
            raise row.locate(DataError("the key is missing", key=str(error.args[0]), mend=mend)) from None
        scenes[scene.id] = scene
    return scenes


def build(folder: Path, sizes: WorldSizes, rates: WorldRates, *, seed: int, workers: int = 2,
          describe_share: float = 0.75) -> None:  # fmt: skip
    """Write the whole folder; the same arguments give the same bytes. What is there already is written again.

    Raises:
        DataError: the folder belongs to other arguments, or to something else; nothing in it is touched.
    """
    own = {"seed": seed, "describe_share": describe_share}
    # a picture's name says nothing of sizes and rates: two worlds in one folder could not be told apart
    claim(folder, "world.json", own | asdict(sizes) | asdict(rates))
    (folder / "DONE").unlink(missing_ok=True)
    streams = {part: getattr(sizes, part) for part in ("sft", "text", "human", "pairs", "prompts")}
    scenes = {
        k: [sample_scene(scene_seed(seed, k), i, rates.difficulty) for i in range(n)]
        for k, n in streams.items()
    }
    count = max(sizes.describe, 2 * sizes.pope_images, 200)
    scenes["eval"] = [sample_scene(scene_seed(seed, "eval"), i, rates.difficulty) for i in range(count)]
    every = [s for name, group in scenes.items() if name != "text" for s in group]
    draw_all(every, folder / "images", workers)
    write_text(
        folder / "scenes.jsonl", "".join(json.dumps(s.to_json(), sort_keys=True) + "\n" for s in every)
    )
    write_json(folder / "captions.json", {f"{s.id}.png": lang.captions(s) for s in every})
    rng = random.Random(f"build/{seed}")
    read = [text_example(s, random.Random(f"text/{s.id}")) for s in scenes["text"]]
    write_records(folder / "sft.jsonl", [*(synthetic_example(s, rates) for s in scenes["sft"]), *read])
    write_records(folder / "human.jsonl", [human_example(s, rng) for s in scenes["human"]])
    for split in ("pairs", "prompts"):
        write_records(
            folder / f"{split}.jsonl", [prompt_for(s, rng, split, describe_share) for s in scenes[split]]
        )
    describe = [prompt_for(s, rng, "describe", 1.1, "test") for s in scenes["eval"][: sizes.describe]]
    write_records(folder / "eval" / "describe.jsonl", describe)
    crowded = [s for s in scenes["eval"] if len(s.objects) >= 3][: sizes.pope_images]
    for split, rows in pope_rows(crowded, seed).items():
        write_text(folder / "eval" / f"pope_{split}.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    write_json(folder / "eval" / "mmhal.json", mmhal_rows(scenes["eval"], seed))
    write_text(folder / "DONE", "")
