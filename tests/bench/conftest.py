"""A model of the built-in world's shape with random weights, and a few of the world's pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.config import ModelSettings
from align.models.lmm import Lmm, load
from data.world.build import WorldRates, WorldSizes, build

SIDE = 96
VOCABULARY = 720


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "data"
    sizes = WorldSizes(sft=24, human=1, pairs=1, prompts=32, describe=1, pope_images=1)
    build(folder, sizes, WorldRates(), seed=0, workers=1)
    return folder


def build_base(world: Path, folder: Path, pixels: int, patch: int) -> Path:
    """An open_clip ViT under a Llama, both of width 128 with 4 layers of 4 heads; random weights."""
    import torch
    from transformers import LlamaConfig

    from align.models.lmm import build_llava, save
    from align.models.tiny import train_tokenizer
    from align.models.vision import OpenClipVisionConfig
    from data.jsonl import read_records
    from data.schema import Example

    examples = read_records(world / "sft.jsonl", "example")
    corpus = [m.content for e in examples if isinstance(e, Example) for m in e.messages]
    tokenizer = train_tokenizer(corpus, VOCABULARY)
    shape = {"layers": 4, "width": 128, "head_width": 32, "patch_size": patch, "image_size": pixels}
    text = LlamaConfig(
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=VOCABULARY,
        max_position_embeddings=1024,
    )
    torch.manual_seed(0)
    vision = OpenClipVisionConfig(shape, embed_dim=128)
    model, processor = build_llava(vision, text, tokenizer, image_size=pixels)
    return save(model, processor, folder)


@pytest.fixture(scope="session")
def base(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``build_base`` of the world's pictures: 96 px, patch 16."""
    return build_base(world, tmp_path_factory.mktemp("base") / "model", SIDE, 16)


@pytest.fixture(scope="session")
def lmm(base: Path) -> Lmm:
    return load(ModelSettings(path=str(base), device="cpu"))
