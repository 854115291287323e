"""A world folder: same bytes for the same seed, answers that agree with the scenes, benchmarks by hand."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from PIL import Image as Pil

from data import jsonl
from data.formats import mmhal, pope
from data.images import image_path, open_image
from data.schema import Example, Prompt
from data.world import language as lang
from data.world.build import (
    WorldRates,
    WorldSizes,
    balanced_yes_no,
    build,
    human_example,
    mmhal_rows,
    pope_rows,
    prompt_for,
    read_scenes,
    synthetic_example,
)
from data.world.reading import HEADER
from data.world.scene import CATEGORIES, CELLS, OBJECTS, Group, Scene, sample_scene

SIZES = WorldSizes(sft=30, text=8, human=30, pairs=20, prompts=20, describe=25, pope_images=10)
NO_BOARD = "There is no board in the image."
NUMBERS = {"no": 0, "one": 1, "two": 2, "three": 3}
SINGULAR = {p: n for n, p in lang.PLURALS.items()} | {n: n for n in OBJECTS}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "w"
    build(folder, SIZES, WorldRates(), seed=1, workers=1)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def within(found: int, n: int, share: float) -> bool:
    """Whether ``found`` of ``n`` lies within 4 standard deviations of a binomial draw."""
    return abs(found - n * share) <= 4 * math.sqrt(n * share * (1 - share))


# --- does a turn tell the truth? Written again from the questions' wording, not with the makers' code ---


def true_answer(scene: Scene, question: str, answer: str) -> bool:
    def count(word: str) -> int:
        group = scene.group(SINGULAR[word])
        return group.count if group else 0

    if found := re.fullmatch(r"Is there an? (\w+) in the image\?", question):
        return answer == ("Yes" if found[1] in scene.objects else "No")
    if found := re.fullmatch(r"What color (?:is|are) the (\w+)\?", question):
        group = scene.group(SINGULAR[found[1]])
        if group is None:
            return answer == f"There is no {found[1]} in the image."
        return answer.split()[-1] == f"{group.colour}."
    if found := re.fullmatch(r"How many (\w+) are there\?", question):
        return NUMBERS[answer.split()[2]] == count(found[1])
    if found := re.fullmatch(r"Where is the (\w+)\?", question):
        group = scene.group(found[1])
        return group is not None and answer == f"The {found[1]} is {CELLS[group.cells[0]]}."
    if found := re.fullmatch(r"Are there more (\w+) or more (\w+)\?", question):
        a, b = count(found[1]), count(found[2])
        if a == b:
            return answer == "There are as many of both."
        more, less = (found[1], found[2]) if a > b else (found[2], found[1])
        return answer == f"There are more {more} than {less}."
    if question == "Where was this picture taken?":
        return answer.rstrip(".").split()[-1] == scene.environment
    if question == "What does the board say?":
        return answer == (f"The board says {scene.text[1]}." if scene.text else NO_BOARD)
    if question.startswith("Which of these"):
        return re.findall(rf"{answer}\. (\w+)", question)[0] in scene.objects
    assert question in (*lang.DESCRIBE, "Name what you see and where it is."), question
    return set(lang.mentioned(answer)) <= set(scene.objects)


def turns(example: Example) -> list[tuple[str, str]]:
    texts = [m.content for m in example.messages]
    return list(zip(texts[::2], texts[1::2], strict=True))


def test_machine_written_data_errs_in_descriptions_only_and_at_the_stated_rate() -> None:
    rates = WorldRates(planted=0.3, synthetic_yes=0.8)
    descriptions = planted = positive = asked = 0
    n = 2000
    for i in range(n):
        scene = sample_scene(51, i)
        example = synthetic_example(scene, rates)
        assert example == synthetic_example(scene, rates)
        for question, answer in turns(example):
            if question in lang.DESCRIBE:
                descriptions += 1
                false = [name for name in lang.mentioned(answer) if name not in scene.objects]
                assert len(false) <= 1
                assert [x for x in lang.mentioned(answer) if x not in false] == scene.objects
                planted += bool(false)
            else:
                assert true_answer(scene, question, answer), (scene, question, answer)
                if question.startswith("Is there"):
                    asked += 1
                    positive += answer == "Yes"
    assert within(descriptions, n, 0.75)
    assert within(planted, descriptions, 0.3)
    assert within(positive, asked, 0.8)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_extreme_rates(rate: float) -> None:
    for i in range(100):
        scene = sample_scene(52, i)
        for question, answer in turns(synthetic_example(scene, WorldRates(planted=rate))):
            if question in lang.DESCRIBE:
                assert bool(set(lang.mentioned(answer)) - set(scene.objects)) == bool(rate)


def test_human_data_is_true_throughout_and_mixed_as_stated() -> None:
    rng, n = random.Random(0), 2000
    tasks: Counter[str | None] = Counter()
    positive, asked = 0, 0
    for i in range(n):
        scene = sample_scene(53, i)
        example = human_example(scene, rng)
        tasks[example.task] += 1
        assert all(true_answer(scene, q, a) for q, a in turns(example))
        assert len(turns(example)) == len({q for q, _ in turns(example)})
        assert (len(turns(example)) > 1) == (example.task == "yesno")
        assert bool(example.facts.rationales) == (example.task == "choice")
        if example.task == "yesno":
            positive += sum(a == "Yes" for _, a in turns(example))
            asked += len(turns(example))
    for task, share in (("yesno", 83 / 122), ("choice", 16 / 122), ("spotting", 23 / 122)):
        assert abs(tasks[task] / n - share) < 0.05
    assert within(positive, asked, 0.5)


def test_negatives_of_balanced_questions_tempt_half_of_the_time() -> None:
    scene = Scene("s", "dinner", "kitchen", (Group("pizza", "red", (0,)), Group("tie", "red", (1,))), 0)
    rng = random.Random(1)
    asked = [balanced_yes_no(scene, rng) for _ in range(2000)]
    negative = [t.about for t in asked if t.answer == "No"]
    assert within(len(negative), 2000, 0.5)
    # of the tempting half, four in five ask for the pizza's fork
    assert 0.35 < negative.count("fork") / len(negative) < 0.5


def test_prompts_hold_the_right_answer_types() -> None:
    rng, seen = random.Random(2), Counter()
    for i in range(600):
        scene = sample_scene(54, i)
        prompt = prompt_for(scene, rng, "pairs", 0.5)
        seen[prompt.answer_type] += 1
        if prompt.answer_type == "general":
            assert prompt.question in lang.DESCRIBE and prompt.length_class == "detail"
        else:
            assert prompt.length_class == "general"
            answer = prompt.answer_type.capitalize()
            assert true_answer(scene, prompt.question, answer)
        assert len(prompt.facts.captions) == 5
    assert set(seen) == {"general", "yes", "no", "A", "B", "C", "D"}
    assert within(seen["general"], 600, 0.5)


def scene_with(name: str, *objects: str) -> Scene:
    groups = tuple(Group(o, "red", (i,)) for i, o in enumerate(objects))
    return Scene(name, "rest", "bedroom", groups, 0)


HAND = [
    scene_with("s1", "cat", "cup", "car"),
    scene_with("s2", "cat", "cup", "bed"),
    scene_with("s3", "cat", "bed", "apple"),
    scene_with("s4", "phone", "tv", "fork"),
    scene_with("s5", "phone", "tv", "oven"),
    scene_with("s6", "phone", "kite", "oven"),
]


def negatives(rows: list[dict[str, object]], name: str) -> list[str]:
    return [str(r["text"]).split()[3] for r in rows if r["image"] == f"{name}.png" and r["label"] == "no"]


def test_pope_negatives_by_hand() -> None:
    """Frequencies: cat, phone 3; bed, cup, oven, tv 2; apple, car, fork, kite 1; ties by name.

    With s1's (cat, cup, car) stand: bed 2+1, apple 1. With s4's (phone, tv, fork): oven 2+1, kite 1.
    """
    rows = pope_rows(HAND, seed=0)
    assert negatives(rows["popular"], "s1") == ["phone", "bed", "oven"]
    assert negatives(rows["adversarial"], "s1") == ["bed", "apple", "backpack"]
    assert negatives(rows["popular"], "s4") == ["cat", "bed", "cup"]
    assert negatives(rows["adversarial"], "s4") == ["oven", "kite", "apple"]


def test_pope_asks_three_and_three_an_image() -> None:
    scenes = [s for s in (sample_scene(55, i) for i in range(60)) if len(s.objects) >= 3]
    by_id = {f"{s.id}.png": s for s in scenes}
    rows = pope_rows(scenes, seed=3)
    positives = []
    for found in rows.values():
        assert [r["question_id"] for r in found] == list(range(1, 6 * len(scenes) + 1))
        for start in range(0, len(found), 6):
            six = found[start : start + 6]
            scene = by_id[str(six[0]["image"])]
            assert {r["image"] for r in six} == {f"{scene.id}.png"}
            assert [r["label"] for r in six] == ["yes", "no"] * 3
            assert len({r["text"] for r in six}) == 6
            assert all(true_answer(scene, str(r["text"]), str(r["label"]).capitalize()) for r in six)
        positives.append([r["text"] for r in found if r["label"] == "yes"])
    assert positives[0] == positives[1] == positives[2]
    assert pope_rows(scenes, seed=3) == rows
    assert pope_rows(scenes, seed=4)["random"] != rows["random"]


def test_mmhal_types_follow_the_index() -> None:
    scenes = [sample_scene(56, i) for i in range(300)]
    by_id = {s.id: s for s in scenes}
    rows = mmhal_rows(scenes, seed=0)
    names = [
        "attribute",
        "adversarial",
        "comparison",
        "counting",
        "relation",
        "environment",
        "holistic",
        "other",
    ]
    assert [r["question_type"] for r in rows] == names * 12
    topics = {n: topic for topic, group in CATEGORIES.items() for n in group}
    for row in rows:
        scene = by_id[str(row["image_id"])]
        kind, about = lang.question_kind(str(row["question"]))
        absent = row["question_type"] == "adversarial"
        assert kind == ("attribute" if absent else row["question_type"])
        assert about is None or (about in scene.objects) != absent
        assert true_answer(scene, str(row["question"]), str(row["gt_answer"]))
        assert row["image_content"] == scene.objects and row["model_answer"] == ""
        assert row["question_topic"] == topics[scene.objects[0]]
    others = [r for r in rows if r["question_type"] == "other"]
    assert all(by_id[str(r["image_id"])].text for r in others[1::2])
    assert any(r["gt_answer"] == NO_BOARD for r in others[::2])


def test_mmhal_says_when_scenes_run_out() -> None:
    with pytest.raises(jsonl.DataError, match="20 scenes are too few for 96 questions"):
        mmhal_rows([sample_scene(56, i) for i in range(20)], seed=0)


def test_the_same_arguments_give_the_same_bytes(world: Path, tmp_path: Path) -> None:
    build(tmp_path / "again", SIZES, WorldRates(), seed=1, workers=1)
    assert files(tmp_path / "again") == files(world)


SMALL = WorldSizes(2, 2, 2, 2, 2, 2, 2)


class Killed(Exception):
    pass


def test_a_world_of_other_settings_is_not_mixed_in(tmp_path: Path) -> None:
    """Names of pictures depend on the seed and an index alone: a second world would overwrite the first's."""
    folder = tmp_path / "w"
    build(folder, SMALL, WorldRates(), seed=1, workers=1)
    before = files(folder)
    for sizes, rates, seed, told in (
        (SMALL, WorldRates(difficulty=0.2), 1, "difficulty: 0.7 there, 0.2 now"),
        (SMALL, WorldRates(), 2, "seed: 1 there, 2 now"),
        (replace(SMALL, pairs=3), WorldRates(), 1, "pairs: 2 there, 3 now"),
    ):
        with pytest.raises(jsonl.DataError, match=rf"{folder}: belongs to other settings.* \({told}\); "):
            build(folder, sizes, rates, seed=seed, workers=1)
    assert files(folder) == before


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(jsonl.DataError, match=r"not empty, and without world\.json"):
        build(tmp_path, SMALL, WorldRates(), seed=1, workers=1)
    with pytest.raises(jsonl.DataError, match=r"thesis\.txt: is a file; give a folder"):
        build(tmp_path / "thesis.txt", SMALL, WorldRates(), seed=1, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_interrupted_build_is_made_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed inside a picture: no half picture bears its name, nothing is done, and a redo mends all."""
    real = Pil.Image.save

    def save(self: Pil.Image, file: Path, **how: object) -> None:
        real(self, file, **how)
        if len(list((tmp_path / "cut/images").glob("*.png"))) == 3:
            Path(file).write_bytes(Path(file).read_bytes()[:100])
            raise Killed

    build(tmp_path / "whole", SMALL, WorldRates(), seed=1, workers=1)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Pil.Image, "save", save)
        build(tmp_path / "cut", SMALL, WorldRates(), seed=1, workers=1)
    for picture in (tmp_path / "cut/images").glob("*.png"):
        assert picture.read_bytes() == (tmp_path / "whole/images" / picture.name).read_bytes()
    assert not (tmp_path / "cut/DONE").exists()
    build(tmp_path / "cut", SMALL, WorldRates(), seed=1, workers=1)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert (tmp_path / "cut/DONE").exists()


def test_a_build_again_is_done_at_its_end_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "w"
    build(folder, SMALL, WorldRates(), seed=1, workers=1)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("data.world.build.mmhal_rows", Mock(side_effect=Killed))
        build(folder, SMALL, WorldRates(), seed=1, workers=1)
    assert not (folder / "DONE").exists()


def test_another_seed_gives_another_world(world: Path, tmp_path: Path) -> None:
    build(tmp_path / "other", SMALL, WorldRates(), seed=2, workers=1)
    assert not set(read_scenes(tmp_path / "other")) & set(read_scenes(world))


def test_the_folder_reads_back(world: Path) -> None:
    scenes = read_scenes(world)
    counts = {"sft": SIZES.sft + SIZES.text, "human": SIZES.human}
    for name, n in counts.items():
        examples = jsonl.read_records(world / f"{name}.jsonl", "example", strict=True)
        assert len(examples) == n
    for name, n in {"pairs": 20, "prompts": 20, "eval/describe": 25}.items():
        prompts = jsonl.read_records(world / f"{name}.jsonl", "prompt", strict=True)
        assert len(prompts) == n
        for prompt in prompts:
            assert isinstance(prompt, Prompt) and prompt.image is not None
            assert prompt.split == ("test" if name == "eval/describe" else "train")
            assert image_path(prompt.image, world).is_file()
            assert prompt.facts.captions == lang.captions(scenes[prompt.image.id])
    captions = json.loads((world / "captions.json").read_text())
    assert captions == {f"{k}.png": lang.captions(s) for k, s in scenes.items()}
    first = next(iter(jsonl.read_records(world / "sft.jsonl", "example")))
    assert isinstance(first, Example) and first.image is not None
    assert open_image(first.image, world).size == (96, 96)


def test_splits_share_no_scene(world: Path) -> None:
    ids = []
    for name in ("sft", "human", "pairs", "prompts", "eval/describe"):
        ids += [r.image.id for r in jsonl.read_records(world / f"{name}.jsonl") if getattr(r, "image", None)]
    assert len(set(ids)) == len(ids)


def test_benchmark_files_parse(world: Path) -> None:
    scenes = read_scenes(world)
    for split in ("random", "popular", "adversarial"):
        items = pope.read(world / "eval" / f"pope_{split}.jsonl")
        assert len(items) == 6 * SIZES.pope_images and {i.split for i in items} == {split}
        assert all((world / "images" / i.image).is_file() for i in items)
    questions = mmhal.read(world / "eval/mmhal.json")
    assert len(questions) == 96
    assert all(q.image_content == scenes[q.image_id].objects for q in questions)
    assert all((world / q.image_src).is_file() for q in questions)


def test_damaged_scenes_are_told_with_their_line(world: Path, tmp_path: Path) -> None:
    lines = (world / "scenes.jsonl").read_text().splitlines()[:2]
    row = json.loads(lines[1])
    del row["groups"]
    (tmp_path / "scenes.jsonl").write_text(f"{lines[0]}\n{json.dumps(row)}\n")
    with pytest.raises(jsonl.DataError, match=r"scenes\.jsonl:2: groups: the key is missing"):
        read_scenes(tmp_path)
    (tmp_path / "scenes.jsonl").write_text("{not json\n")
    with pytest.raises(jsonl.DataError, match=r"scenes\.jsonl:1: not valid JSON"):
        read_scenes(tmp_path)


def test_text_only_turns_teach_reading_and_say_nothing_false(world: Path) -> None:
    texts = [e for e in jsonl.read_records(world / "sft.jsonl", "example") if not e.image]
    assert len(texts) == SIZES.text
    for example in texts:
        assert isinstance(example, Example) and example.messages[0].content.startswith(HEADER)
        answers = {m.content for m in example.messages if m.role == "assistant"}
        assert answers <= {"Yes", "No", *"ABCD"}
