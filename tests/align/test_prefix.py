"""Answers that share their picture's prefix are, token for token, those that each question gets alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PILImage

from align import prefix
from align.config import GenerateSettings, ModelSettings
from align.generate import generate
from align.models.lmm import Lmm, embed, image_features, load
from align.pictures import encode_pictures
from align.render import ImageInput, Renderer
from data.schema import Message, Response

QUESTIONS = [
    "Is there a cup?",
    "Describe the picture in detail, please, and leave nothing out.",
    "Why?",
    "A b",
]
NEW = 7


@pytest.fixture
def lmm(any_tiny_llava: Path) -> Lmm:
    return load(ModelSettings(path=str(any_tiny_llava), device="cpu"))


def _items(images: list[ImageInput]) -> list[prefix.Item]:
    """Every question about every picture, the pictures in turn."""
    return [([Message(role="user", content=text)], image) for text in QUESTIONS for image in images]


def _alone(lmm: Lmm, items: list[prefix.Item], new: int = NEW) -> list[list[int]]:
    """Each item's tokens by transformers' own ``generate``, by itself."""
    renderer = Renderer(lmm.processor)
    found = []
    for item in items:
        batch = renderer.prompt_batch([item])
        said = lmm.model.generate(
            inputs_embeds=embed(lmm.model, batch, image_features(lmm.model, batch)),
            attention_mask=batch["attention_mask"],
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=-1,
            suppress_tokens=[renderer.image_token_id],
        )
        found.append(said[0].tolist())
    return found


def _ends(lmm: Lmm, tokens: list[list[int]]) -> list[int]:
    """End tokens by which some answers end early: what several say in third place."""
    return [tokens[0][2], tokens[5][1]]


@pytest.mark.parametrize("size", [1, 3, 5, 64])
def test_the_tokens_are_those_of_each_question_alone(
    lmm: Lmm, pictures: list[PILImage.Image], size: int
) -> None:
    renderer = Renderer(lmm.processor)
    items = _items(encode_pictures(lmm, renderer, pictures[:3]))
    alone = _alone(lmm, items)
    assert len({tuple(tokens) for tokens in alone}) > 3
    got = prefix.answer(lmm, renderer, items, [-1], max_new_tokens=NEW, batch_size=size)
    assert [tokens for tokens, _ in got] == alone and not any(complete for _, complete in got)
    # rows that end early leave the batch, and the others go on unchanged
    ends = _ends(lmm, alone)
    got = prefix.answer(lmm, renderer, items, ends, max_new_tokens=NEW, batch_size=size)
    for (tokens, complete), whole in zip(got, alone):
        cut = next((k + 1 for k, token in enumerate(whole) if token in ends), None)
        assert tokens == whole[:cut] and complete == (cut is not None)
    assert 2 <= sum(complete for _, complete in got) < len(items)


def test_the_logits_are_those_of_whole_prompts(lmm: Lmm, pictures: list[PILImage.Image]) -> None:
    """Closer than tokens tell: the same numbers, whatever stands between prefix and question as padding."""
    renderer = Renderer(lmm.processor)
    items = _items(encode_pictures(lmm, renderer, pictures[:2]))
    shared = prefix.read(lmm, renderer, items).logits
    alone = torch.cat([prefix.read(lmm, renderer, [item]).logits for item in items])
    torch.testing.assert_close(shared, alone, atol=1e-5, rtol=1e-4)


def test_a_picture_s_tokens_are_read_once(
    lmm: Lmm, pictures: list[PILImage.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer = Renderer(lmm.processor)
    images = encode_pictures(lmm, renderer, pictures[:2])
    items: list[prefix.Item] = [
        ([Message(role="user", content=f"Is there a {letter}?")], image)
        for letter in "abcd"
        for image in images
    ]
    read: list[int] = []
    inner = lmm.model.model.language_model.forward

    def count(*args: Any, **inputs: Any) -> Any:
        read.append(inputs["inputs_embeds"].shape[0] * inputs["inputs_embeds"].shape[1])
        return inner(*args, **inputs)

    monkeypatch.setattr(lmm.model.model.language_model, "forward", count)
    prefix.read(lmm, renderer, items)
    together = sum(read)
    read.clear()
    for item in items:
        prefix.read(lmm, renderer, [item])
    # two pictures in place of eight
    assert together <= sum(read) - 6 * renderer.image_length()


def test_prompts_that_begin_otherwise_are_read_whole(lmm: Lmm, pictures: list[PILImage.Image]) -> None:
    renderer = Renderer(lmm.processor)
    first, second = encode_pictures(lmm, renderer, pictures[:2])
    items: list[prefix.Item] = [
        ([Message(role="system", content="Be brief."), Message(role="user", content="Why?")], first),
        ([Message(role="user", content="Why?")], first),
        ([Message(role="user", content="Why?")], None),
        ([Message(role="user", content="What is it, and where?")], None),
        ([Message(role="user", content="How?")], second),
    ]
    got = prefix.answer(lmm, renderer, items, [-1], max_new_tokens=NEW, batch_size=8)
    assert [tokens for tokens, _ in got] == _alone(lmm, items)


def test_generate_takes_this_way_when_it_is_greedy_and_pictures_repeat(
    lmm: Lmm, pictures: list[PILImage.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer, how = (
        Renderer(lmm.processor),
        GenerateSettings(max_new_tokens=NEW, temperature=0.0, batch_size=5),
    )
    items = _items([*pictures[:2]])
    one_by_one = [generate(lmm, renderer, [item], how, seed=0)[0] for item in items]
    used: list[int] = []
    inner = prefix.answer

    def watch(*args: Any, **options: Any) -> Any:
        used.append(len(args[2]))
        return inner(*args, **options)

    monkeypatch.setattr(prefix, "answer", watch)
    answers = generate(lmm, renderer, items, how, seed=0)
    assert used == [len(items)]
    assert answers == one_by_one and all(isinstance(answer, Response) for answer in answers)
    # one question a picture, or sampling: the usual way
    generate(lmm, renderer, items[:2], how, seed=0)
    generate(lmm, renderer, items, how.model_copy(update={"temperature": 0.5}), seed=0)
    assert used == [len(items)]
