"""Tiny random LLaVA checkpoints and a small folder of pictures with conversations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (30, 60, 220)}


@pytest.fixture(autouse=True)
def _quiet_progress() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()


def _built(folder: Path, tower: str) -> Path:
    from align.models.tiny import build_tiny_llava

    return build_tiny_llava(folder / tower, tower)


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA checkpoint with Hugging Face's CLIP tower."""
    return _built(tmp_path_factory.mktemp("tiny"), "clip")


@pytest.fixture(scope="session")
def tiny_llava_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with an open_clip ViT."""
    return _built(tmp_path_factory.mktemp("tiny"), "vit")


@pytest.fixture(scope="session")
def tiny_llava_resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with an open_clip ResNet."""
    return _built(tmp_path_factory.mktemp("tiny"), "resnet")


@pytest.fixture(scope="session", params=["clip", "vit", "resnet"])
def any_tiny_llava(
    request: pytest.FixtureRequest, tiny_llava: Path, tiny_llava_vit: Path, tiny_llava_resnet: Path
) -> Path:
    """Each of the three in turn."""
    return {"clip": tiny_llava, "vit": tiny_llava_vit, "resnet": tiny_llava_resnet}[request.param]


@pytest.fixture(scope="session")
def pictures() -> list[PILImage.Image]:
    """Four different noisy pictures, not square."""
    rng = np.random.default_rng(0)
    return [PILImage.fromarray(rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)) for _ in range(4)]


@pytest.fixture(scope="session")
def colour_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one plain picture a colour and ``sft.jsonl``: 12 conversations that name the colour."""
    folder = tmp_path_factory.mktemp("colours")
    lines = []
    for i in range(12):
        name = list(COLOURS)[i % 3]
        PILImage.new("RGB", (32, 32), COLOURS[name]).save(folder / f"{name}.png")
        messages = [
            {
                "role": "user",
                "content": "What is in the image?" if i % 2 else "Describe the picture in detail.",
            },
            {"role": "assistant", "content": f"There is a {name} table."},
        ]
        image = {"id": name, "path": f"{name}.png"}
        lines.append(json.dumps({"kind": "example", "id": str(i), "image": image, "messages": messages}))
    (folder / "sft.jsonl").write_text("\n".join(lines) + "\n")
    return folder
