"""Rows that end make place for the next prompts, and nothing of what is written changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image as PILImage

from align import decode
from align.config import GenerateSettings, ModelSettings
from align.generate import Item, rollout_tokens
from align.models.lmm import Lmm, load, token_logprobs
from align.render import Renderer
from data.schema import Message

ASKED = ["What is in the image?", "A dog?", "Describe the picture in detail. How many people are there?"]


@pytest.fixture(scope="module")
def lmm(tiny_llava: Path) -> Lmm:
    """Its greedy answers end at different places."""
    lmm = load(ModelSettings(path=str(tiny_llava), device="cpu"))
    head = lmm.model.get_output_embeddings().weight
    end = Renderer(lmm.processor).end_token_id
    with torch.no_grad():
        head[end] = head[[7, 20, 90, 150, 210]].sum(0)
    return lmm


@pytest.fixture(scope="module")
def items(pictures: list[PILImage.Image]) -> list[Item]:
    return [
        ([Message(role="user", content=ASKED[k % 3])], pictures[k % 4] if k % 5 else None) for k in range(13)
    ]


def lengths(lmm: Lmm, items: list[Item], **how: float) -> tuple[torch.Tensor, torch.Tensor]:
    settings = GenerateSettings(max_new_tokens=24, **how)  # type: ignore[arg-type]
    made = rollout_tokens(lmm, Renderer(lmm.processor), items, settings, seed=1)
    return made.response_ids, made.response_mask.sum(1)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_greedy_answers_are_those_of_one_batch(lmm: Lmm, items: list[Item], size: int) -> None:
    ids, long = lengths(lmm, items, temperature=0.0, batch_size=13)
    assert len(set(long.tolist())) > 3, "the test needs answers of unequal length"
    found, short = lengths(lmm, items, temperature=0.0, batch_size=size)
    assert torch.equal(found, ids) and torch.equal(short, long)


def test_it_takes_fewer_passes(lmm: Lmm, items: list[Item], monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    real = decode.forward

    def counted(base: object, cache: object, inputs: torch.Tensor, *rest: object, **more: object) -> object:
        if inputs.shape[1] == 1:
            rows.append(len(inputs))
        return real(base, cache, inputs, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(decode, "forward", counted)
    _, long = lengths(lmm, items, temperature=0.0, batch_size=3)
    # the first token of each row comes of reading its prompt
    wanted = int((long - 1).sum())
    assert max(rows) == 3 and sum(rows) == wanted
    # all places are taken until no prompt is left, and then the rows that are left end
    assert len(rows) <= wanted / 3 + 24


def test_samples_have_the_probabilities_that_a_pass_gives_them(lmm: Lmm, items: list[Item]) -> None:
    """A row's own prompt is what it is sampled from, after whichever row it came: over many draws the mean
    log-probability of the first token is minus its entropy, for each prompt."""
    renderer, draws = Renderer(lmm.processor), 300
    settings = GenerateSettings(max_new_tokens=2, temperature=1.0, batch_size=7)
    made = rollout_tokens(lmm, renderer, items[1:4] * draws, settings, seed=5)
    assert made.features is not None
    first = made.response_ids[:, :1]
    batch = {
        "input_ids": torch.cat([made.prompt_ids, first], dim=1),
        "attention_mask": torch.cat([made.prompt_mask, torch.ones_like(first)], dim=1),
    }
    with torch.no_grad():
        said, entropy = token_logprobs(lmm.model, batch, made.features, response_len=1, with_entropy=True)
    assert entropy is not None
    for k in range(3):
        mine = said[k::3, 0]
        assert abs(float(mine.mean() + entropy[k, 0])) < 4 * float(mine.std()) / draws**0.5


def test_several_samples_of_a_prompt_stay_together(lmm: Lmm, items: list[Item]) -> None:
    settings = GenerateSettings(max_new_tokens=6, temperature=1.0, batch_size=5)
    made = rollout_tokens(lmm, Renderer(lmm.processor), items, settings, seed=2, num_return=2)
    assert len(made.response_ids) == 26
    assert torch.equal(made.prompt_ids[::2], made.prompt_ids[1::2])
    assert len({tuple(row) for row in made.response_ids.tolist()}) > 13
