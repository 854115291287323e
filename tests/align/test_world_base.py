"""The base that ships with the project: whole, trained, and speaking the world's language."""

from __future__ import annotations

import random
import re

import pytest

from align.config import WORLD_BASE, GenerateSettings, ModelSettings
from align.generate import Item, generate
from align.models.lmm import Lmm, check_is_lmm, load
from align.render import Renderer
from data.schema import Message, Response
from data.world.draw import draw_scene
from data.world.language import absent, corpus, yes_no
from data.world.scene import sample_scene


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
