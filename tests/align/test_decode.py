"""The decoding loop: what is drawn, from which tokens, and that rows which end leave the others alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image as PILImage

from align import decode
from align.config import ModelSettings
from align.models.lmm import Lmm, embed, image_features, load
from align.render import Renderer
from data.schema import Message

LOGITS = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))


def _shares(choose: decode.Choose, draws: int = 40_000) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.bincount(choose(LOGITS.repeat(draws, 1)), minlength=4) / draws


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_tempered_probabilities(temperature: float) -> None:
    wanted = torch.softmax(LOGITS / temperature, -1)
    # four standard errors of a share
    assert bool(((_shares(decode.sampler(temperature)) - wanted).abs() < 4 * 0.5 / 200).all())


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, 1), (0.5, 1), (0.6, 2), (0.81, 3), (0.96, 4)])
def test_top_p_keeps_the_fewest_tokens_that_make_it_up(top_p: float, kept: int) -> None:
    shares = _shares(decode.sampler(1.0, top_p))
    assert (shares > 0).sum() == kept and bool((shares[:kept] > 0).all())
    wanted = torch.softmax(LOGITS[:kept], -1)
    assert bool(((shares[:kept] - wanted).abs() < 4 * 0.5 / 200).all())


@pytest.fixture
def lmm(any_tiny_llava: Path) -> Lmm:
    return load(ModelSettings(path=str(any_tiny_llava), device="cpu"))


def test_rows_that_end_leave_the_batch_and_the_others_go_on(
    lmm: Lmm, pictures: list[PILImage.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer = Renderer(lmm.processor)
    texts = [
        "Is there a cup?",
        "Why?",
        "A b",
        "How many dogs are there in this picture?",
        "Q",
        "Where is it?",
    ]
    items = [([Message(role="user", content=t)], pictures[k % 3]) for k, t in enumerate(texts)]
    batch = renderer.prompt_batch(items)

    def run(ends: list[int]) -> list[tuple[list[int], bool]]:
        with torch.no_grad():
            inputs = embed(lmm.model, batch, image_features(lmm.model, batch))
            state = decode.read(lmm.model, inputs, batch["attention_mask"])
        return decode.decode(lmm.model, state, decode.greedy, ends, [renderer.image_token_id], 8)

    whole = [tokens for tokens, _ in run([-1])]
    assert all(len(tokens) == 8 for tokens in whole)
    ends = [whole[0][1], whole[1][4]]
    rows: list[int] = []
    inner = lmm.model.model.language_model.forward

    def count(*args: object, **inputs: torch.Tensor) -> object:
        rows.append(len(inputs["inputs_embeds"]))
        return inner(*args, **inputs)

    count.__signature__ = __import__("inspect").signature(inner)  # type: ignore[attr-defined]
    monkeypatch.setattr(lmm.model.model.language_model, "forward", count)
    for (tokens, complete), every in zip(run(ends), whole, strict=True):
        cut = next((k + 1 for k, token in enumerate(every) if token in ends), None)
        assert tokens == every[:cut] and complete == (cut is not None)
    assert rows[0] == len(texts) and rows[-1] < len(texts)


def test_a_token_that_is_never_chosen(lmm: Lmm, pictures: list[PILImage.Image]) -> None:
    renderer = Renderer(lmm.processor)
    batch = renderer.prompt_batch([([Message(role="user", content="Why?")], pictures[0])])

    def first(never: list[int]) -> int:
        with torch.no_grad():
            inputs = embed(lmm.model, batch, image_features(lmm.model, batch))
            state = decode.read(lmm.model, inputs, batch["attention_mask"])
        return decode.decode(lmm.model, state, decode.greedy, [], never, 1)[0][0][0]

    favourite = first([])
    assert first([favourite]) != favourite
