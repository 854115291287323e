"""Sampling: tokens a second in one batch whose questions share their pictures' features, and one by one."""

from __future__ import annotations

from pathlib import Path

import torch

from align.config import GenerateSettings
from align.generate import Item, rollout_tokens
from align.models.lmm import Lmm
from align.pictures import encode_pictures, open_pictures
from align.render import ImageInput, Renderer
from data.schema import Message
from data.world.build import image_of, read_scenes
from data.world.language import DESCRIBE
from tests.bench.measure import show, side_by_side

PICTURES = 8
#: of each picture
QUESTIONS = 4


def test_tokens_a_second(lmm: Lmm, world: Path) -> None:
    renderer = Renderer(lmm.processor)
    how = GenerateSettings(max_new_tokens=24, temperature=1.0, batch_size=PICTURES * QUESTIONS)
    scenes = list(read_scenes(world).values())[:PICTURES]
    images = [image_of(scene) for scene in scenes for _ in range(QUESTIONS)]
    asked = [[Message(role="user", content=DESCRIBE[i % len(DESCRIBE)])] for i in range(len(images))]

    def items(pictures: list[ImageInput]) -> list[Item]:
        return list(zip(asked, pictures, strict=True))

    # greedy, the shared pictures give the tokens that each question's own would
    greedy = how.model_copy(update={"temperature": 0.0})
    plain = [picture for image in images for picture in open_pictures([image], world)]
    pictures = encode_pictures(lmm, renderer, open_pictures(images, world))
    said = [rollout_tokens(lmm, renderer, items(of), greedy, seed=0) for of in (pictures, plain)]
    assert torch.equal(said[0].response_ids, said[1].response_ids)

    def tokens(batch: list[Item]) -> int:
        return int(rollout_tokens(lmm, renderer, batch, how, seed=0).response_mask.sum())

    def shared() -> float:
        return tokens(items(encode_pictures(lmm, renderer, open_pictures(images, world))))

    def each_encoded() -> float:
        return tokens(items([picture for image in images for picture in open_pictures([image], world)]))

    def one_by_one() -> float:
        return sum(tokens([item]) for image, ask in zip(images, asked)
                   for item in [(ask, open_pictures([image], world)[0])])  # fmt: skip

    ways = {
        "one batch, shared features": shared,
        "one batch, each encoded": each_encoded,
        "one by one": one_by_one,
    }
    rates = side_by_side(ways)
    show(f"rollout: {len(images)} prompts on {PICTURES} pictures, 24 tokens each", "tokens/s", rates)
