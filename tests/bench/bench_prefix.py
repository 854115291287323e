"""POPE-like questions, six a picture, on LLaVA's token shape: one by one, batched, and prefixes shared."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.config import GenerateSettings, ModelSettings
from align.generate import Item, generate, rollout_tokens
from align.models.lmm import Lmm, load
from align.pictures import encode_pictures, open_pictures
from align.render import Renderer
from data.schema import Message, Response
from data.world.build import image_of, read_scenes
from data.world.scene import OBJECTS
from tests.bench.conftest import build_base
from tests.bench.measure import show, side_by_side

PICTURES = 4
#: of each picture, as POPE asks
QUESTIONS = 6
#: what "Yes" or "No" with the end of the turn takes, and a little more
NEW_TOKENS = 4


@pytest.fixture(scope="module")
def wide(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Lmm:
    """576 tokens a picture (336 px, patch 14), as LLaVA-1.5 has, at a width of 128."""
    path = build_base(world, tmp_path_factory.mktemp("wide") / "base", pixels=336, patch=14)
    return load(ModelSettings(path=str(path), device="cpu"))


def test_questions_a_second(wide: Lmm, world: Path) -> None:
    renderer = Renderer(wide.processor)
    assert renderer.image_length() == 576
    how = GenerateSettings(max_new_tokens=NEW_TOKENS, temperature=0.0, batch_size=PICTURES * QUESTIONS)
    scenes = list(read_scenes(world).values())[:PICTURES]
    names = list(OBJECTS)
    images = [image_of(scene) for scene in scenes for _ in range(QUESTIONS)]
    asked = [
        [Message(role="user", content=f"Is there a {names[k % len(names)]} in the image?")]
        for k in range(len(images))
    ]
    said: dict[str, list[Response]] = {}

    def one_by_one() -> float:
        pictures = (open_pictures([image], world)[0] for image in images)
        said["one by one"] = [
            answer
            for ask, picture in zip(asked, pictures)
            for answer in generate(wide, renderer, [(ask, picture)], how, seed=0)
            if isinstance(answer, Response)
        ]
        return len(images)

    def tokens(items: list[Item]) -> list[Response]:
        out = rollout_tokens(wide, renderer, items, how, seed=0)
        lengths = out.response_mask.sum(-1).tolist()
        return [
            Response(text=renderer.decode(row[:n]), model=wide.name, complete=bool(complete))
            for row, n, complete in zip(out.response_ids.tolist(), lengths, out.complete)
        ]

    def batched() -> float:
        pictures = [picture for image in images for picture in open_pictures([image], world)]
        said["batched"] = tokens(list(zip(asked, pictures, strict=True)))
        return len(images)

    def features() -> float:
        encoded = encode_pictures(wide, renderer, open_pictures(images, world))
        said["features"] = tokens(list(zip(asked, encoded, strict=True)))
        return len(images)

    def shared() -> float:
        pictures = open_pictures(images, world)
        answers = generate(wide, renderer, list(zip(asked, pictures, strict=True)), how, seed=0)
        said["shared"] = [answer for answer in answers if isinstance(answer, Response)]
        return len(images)

    ways = {
        "prefix shared": shared,
        "batched, features shared": features,
        "batched": batched,
        "one by one": one_by_one,
    }
    rates = side_by_side(ways)
    assert len(said) == 4 and len({tuple(answers) for answers in map(str, said.values())}) == 1
    title = f"{len(images)} questions, {QUESTIONS} a picture of 576 tokens, {NEW_TOKENS} tokens of answer"
    show(title, "questions/s", rates)
