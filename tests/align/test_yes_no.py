"""Yes or no from the first token: the probabilities are the model's own, whatever batch they are read in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image as PILImage

from align import yes_no
from align.config import ModelSettings
from align.models.lmm import Lmm, load, next_logits
from align.pictures import encode_pictures
from align.prefix import Item
from align.render import Renderer
from data.schema import Message


@pytest.fixture
def lmm(tiny_llava: Path) -> Lmm:
    return load(ModelSettings(path=str(tiny_llava), device="cpu"))


def _ask(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def test_the_tokens_are_what_answers_begin_with(lmm: Lmm, pictures: list[PILImage.Image]) -> None:
    renderer = Renderer(lmm.processor)
    item = (_ask("Is there a cup?"), pictures[0])
    yes, no = yes_no.first_tokens(renderer, item)
    assert yes and no and not set(yes) & set(no)
    assert {renderer.decode([token]).strip().lower()[:1] for token in yes} == {"y"}
    assert {renderer.decode([token]).strip().lower()[:1] for token in no} == {"n"}


def test_probabilities_are_the_model_s(lmm: Lmm, pictures: list[PILImage.Image]) -> None:
    renderer = Renderer(lmm.processor)
    asked = ["Is there a cup?", "Is the blue chair beside the small dog?", "A?"]
    items: list[Item] = [(_ask(text), picture) for picture in pictures[:2] for text in asked]
    got = yes_no.probabilities(lmm, renderer, items, batch_size=4)
    yes, no = yes_no.first_tokens(renderer, items[0])
    for item, p in zip(items, got, strict=True):
        with torch.no_grad():
            whole = lmm.model.model(**renderer.prompt_batch([item])).last_hidden_state[:, -1]
        every = next_logits(lmm.model, whole)[0].softmax(-1)
        assert p == pytest.approx(float(every[yes].sum() / (every[yes].sum() + every[no].sum())), abs=1e-5)
    assert len({round(p, 4) for p in got}) > 3
    encoded = encode_pictures(lmm, renderer, [image for _, image in items])
    again = yes_no.probabilities(
        lmm, renderer, [(m, image) for (m, _), image in zip(items, encoded, strict=True)], batch_size=64
    )
    assert again == pytest.approx(got, abs=1e-5)
    assert yes_no.probabilities(lmm, renderer, [], batch_size=4) == []


def test_a_tokenizer_that_cannot_tell_them_apart_is_named(
    lmm: Lmm, pictures: list[PILImage.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yes_no, "_NO", yes_no._YES)
    with pytest.raises(yes_no.YesNoError, match="begin with the same token; generate answers"):
        yes_no.first_tokens(Renderer(lmm.processor), (_ask("Is there a cup?"), pictures[0]))


def test_models_of_other_kinds_read_whole_prompts(
    lmm: Lmm, pictures: list[PILImage.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer = Renderer(lmm.processor)
    items: list[Item] = [(_ask(text), pictures[0]) for text in ("Why?", "Is there a cup on the table?")]
    got = yes_no.probabilities(lmm, renderer, items, batch_size=4)
    monkeypatch.setattr(yes_no, "is_llava", lambda model: False)
    assert yes_no.probabilities(lmm, renderer, items, batch_size=4) == pytest.approx(got, abs=1e-5)
