"""The base that ships with the project: whole, trained, and speaking the world's language."""

from __future__ import annotations

import copy
import random
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from align.config import WORLD_BASE, GenerateSettings, ModelSettings
from align.generate import Item, generate
from align.models.lmm import Lmm, build_llava, check_is_lmm, load
from align.models.world_base import VOCABULARY, language_model, new_clip, tokenizer_for_world, train_or_find
from align.models.world_lessons import (
    WITH_PICTURES,
    BaseRun,
    Half,
    Shown,
    ground,
    lessons_with_pictures,
    rate,
    read,
)
from align.render import Renderer
from data.schema import Message, Response
from data.world import reading
from data.world.draw import draw_scene
from data.world.language import absent, corpus, yes_no
from data.world.scene import COLOURS, OBJECTS, jumble, sample_scene


@pytest.fixture(scope="module")
def fresh() -> tuple[Any, Any]:
    """Model and processor as a build starts with them."""
    torch.manual_seed(0)
    tokenizer = tokenizer_for_world()
    tower = new_clip(tokenizer).vision
    text = language_model(VOCABULARY, tokenizer)
    return build_llava(tower, text, tokenizer, image_size=96, feature_layer=-1)


@pytest.fixture(scope="module")
def shown() -> Shown:
    scenes = [sample_scene(79, i, 0.2) for i in range(120)]
    jumbled = [jumble(scene) for scene in scenes[:60]]
    return Shown(
        scenes,
        np.stack([np.asarray(draw_scene(s)) for s in scenes]),
        jumbled,
        np.stack([np.asarray(draw_scene(s)) for s in jumbled]),
    )


def test_two_threads_find_the_gradients_that_one_finds(fresh: tuple[Any, Any], shown: Shown) -> None:
    model, processor = fresh
    # in bfloat16 the sums round differently
    run = BaseRun(captions=2, finds=2, matches=2, looks=2, checks=2, questions=2, verifies=2, bf16=False)
    kinds = lessons_with_pictures(run)

    def halves() -> list[Half]:
        return [Half(model, processor, run, shown, seed) for seed in (1, 2)]

    alone = [half(part) for half, part in zip(halves(), kinds, strict=True)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda half, part: half(part), halves(), kinds))
    for (one, losses), (two, others) in zip(alone, together, strict=True):
        assert losses == pytest.approx(others)
        for a, b in zip(one, two, strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_every_kind_of_lesson_is_taught(fresh: tuple[Any, Any]) -> None:
    taught = {make for part in lessons_with_pictures(BaseRun()) for make, _ in part}
    assert taught == {*WITH_PICTURES, reading.questions, reading.verify}


def test_grounding_brings_patches_to_the_words_for_what_they_show(
    base: Lmm, fresh: tuple[Any, Any], shown: Shown
) -> None:
    """With the shipped tower and untrained words: far over chance, and only the projector moves."""
    model, processor = copy.deepcopy(fresh)
    model.model.vision_tower.load_state_dict(base.model.model.vision_tower.state_dict())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = ground(model, processor, shown, BaseRun(grounding_steps=150))
    assert found["patch names"] > 10 / len(OBJECTS)
    assert found["patch colours"] > 3 / len(COLOURS)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all("multi_modal_projector" in name for name in moved)


def test_an_interrupted_build_finds_the_part_that_was_ready(tmp_path: Path) -> None:
    def run(part: torch.nn.Linear, settings: dict[str, Any]) -> dict[str, float]:
        def train() -> dict[str, float]:
            trained.append(settings)
            torch.nn.init.constant_(part.weight, 3.0)
            return {"accuracy": 0.5}

        return train_or_find(part, tmp_path / "part.safetensors", settings, train)

    trained: list[dict[str, Any]] = []
    figures = run(torch.nn.Linear(2, 2), {"studied": [6, 8]})
    again = torch.nn.Linear(2, 2)
    assert run(again, {"studied": [6, 8]}) == figures
    assert trained == [{"studied": [6, 8]}] and (again.weight == 3.0).all()
    run(again, {"studied": [6, 9]})
    assert len(trained) == 2


def test_a_step_of_each_kind_of_reading_moves_the_language_model_alone(fresh: tuple[Any, Any]) -> None:
    model, processor = copy.deepcopy(fresh)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run = BaseRun(lookups=2, glances=2, judges=2, reading_steps=1, studying_steps=1, studied=(1, 1, 1))
    figures = read(model, processor, run, lambda figures: None)
    assert set(figures) == {"lookup", "glance", "judge", "questions", "verify"}
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all("language_model" in name or "lm_head" in name for name in moved)


def test_the_rate_is_level_for_a_third_and_ends_near_nothing() -> None:
    rates = [rate(k / 300) for k in range(300)]
    assert rates[:100] == [1.0] * 100
    assert rates == sorted(rates, reverse=True)
    assert 0.02 <= rates[-1] < 0.03


@pytest.fixture(scope="module")
def base() -> Lmm:
    check_is_lmm(str(WORLD_BASE))
    return load(ModelSettings(path="world-base", device="cpu"))


def test_the_shipped_base_is_loaded_from_its_file(base: Lmm) -> None:
    """Weights whose names do not fit are no error to transformers: it draws them anew, each time others."""
    again = load(ModelSettings(path=str(WORLD_BASE), device="cpu")).model.state_dict()
    assert base.path == str(WORLD_BASE)
    assert all(bool((again[name] == value).all()) for name, value in base.model.state_dict().items())


def test_the_shipped_base_answers_in_the_world_s_words(base: Lmm) -> None:
    """Whole answers, of known words only, and right more often than a coin (which gets 30 of 40 in 0.1 %)."""
    rng = random.Random(1)
    scenes = [sample_scene(78, i) for i in range(20)]
    turns = [
        (s, turn) for s in scenes for turn in (yes_no(s.objects[0], True), yes_no(absent(s, rng), False))
    ]
    items: list[Item] = [([Message(role="user", content=t.question)], draw_scene(s)) for s, t in turns]
    how = GenerateSettings(max_new_tokens=16, temperature=0.0)
    answers = [
        a for a in generate(base, Renderer(base.processor), items, how, seed=0) if isinstance(a, Response)
    ]
    known = {word for text in corpus(scenes) for word in re.findall(r"\w+", text.lower())}
    said = [re.findall(r"\w+", answer.text.lower()) for answer in answers]
    assert len(answers) == 40 and all(answer.complete for answer in answers)
    assert all(said) and {word for words in said for word in words} <= known
    assert sum(words == [t.answer.lower()] for words, (_, t) in zip(said, turns)) >= 30
