"""A model of the built-in world's shape with random weights, and a few of the world's pictures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

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


@dataclass(frozen=True)
class Shape:
    """A model and a step of PPO."""

    pixels: int
    patch: int
    rank: int
    rollouts: int
    minibatch: int
    micro_batch: int
    max_new_tokens: int
    #: rows that are generated at once
    batch_size: int
    tower: dict[str, int] | None = None


def build_base(
    world: Path, folder: Path, pixels: int, patch: int, tower: dict[str, int] | None = None
) -> Path:
    """An open_clip ViT under a Llama, both of width 128 with 4 layers of 4 heads; random weights.

    ``tower``: another ViT's layers, width and head_width.
    """
    from transformers import LlamaConfig

    from align.models.lmm import build_llava, save
    from align.models.tiny import train_tokenizer
    from align.models.vision import OpenClipVisionConfig
    from data.jsonl import read_records
    from data.schema import Example

    examples = read_records(world / "sft.jsonl", "example")
    corpus = [m.content for e in examples if isinstance(e, Example) for m in e.messages]
    tokenizer = train_tokenizer(corpus, VOCABULARY)
    shape = tower or {"layers": 4, "width": 128, "head_width": 32}
    shape = {**shape, "patch_size": patch, "image_size": pixels}
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


def end_after(base: Path, world: Path, mean_share: float, longest: int) -> None:
    """``set_end`` of the checkpoint ``base``."""
    from align.models.lmm import save

    lmm = load(ModelSettings(path=str(base), device="cpu"))
    row = end_row(lmm, world, mean_share, longest)
    set_end([lmm], row)
    save(lmm.model, lmm.processor, base)


def end_row(lmm: Lmm, world: Path, mean_share: float, longest: int) -> torch.Tensor:
    """The end token's row (H,) in the head, so that responses take ``mean_share`` of ``longest``.

    It points along the mean hidden state, so that the token's probability hardly depends on what was said:
    lengths are about geometric, cut at ``longest``. At 1 no response ends.
    """
    from align.models.lmm import hidden_states, move, next_logits
    from align.pictures import open_pictures
    from align.render import Renderer
    from data.jsonl import read_records
    from data.schema import Message, Prompt

    renderer = Renderer(lmm.processor)
    # the mean of a geometric length cut at n, over n: (1 − e^−x) / x for a chance x / n a token
    rates = torch.linspace(0.01, 40, 4000)
    rate = float(rates[(-(-rates).expm1() / rates - mean_share).abs().argmin()]) / longest
    prompts = [p for p in read_records(world / "prompts.jsonl", "prompt") if isinstance(p, Prompt)][:8]
    asked = [[Message(role="user", content=p.question)] for p in prompts]
    pictures = open_pictures([p.image for p in prompts], world)
    batch = renderer.prompt_batch(list(zip(asked, pictures)))
    words = torch.randint(4, len(lmm.tokenizer), (8, 64), generator=torch.Generator().manual_seed(0))
    batch["input_ids"] = torch.cat([batch["input_ids"], words], dim=1)
    batch["attention_mask"] = torch.cat([batch["attention_mask"], torch.ones_like(words)], dim=1)
    with torch.no_grad():
        states = hidden_states(lmm.model, move(batch, lmm.device))[:, -64:].flatten(0, 1)
        logits, hidden = next_logits(lmm.model, states), states.float()
        logits[:, renderer.end_token_id] = float("-inf")
        others = logits.logsumexp(-1)
        along = hidden.mean(0) / hidden.mean(0).square().sum()
        if mean_share == 1:
            return -1000 * along
        low, high = -100.0, 100.0
        for _ in range(40):
            middle = (low + high) / 2
            chance = torch.sigmoid(middle * (hidden @ along) - others).mean()
            low, high = (middle, high) if chance < rate else (low, middle)
    return middle * along


def set_end(lmms: Iterable[Lmm], row: torch.Tensor) -> None:
    """Put the end token's row into the heads of these models."""
    from align.render import Renderer

    for lmm in lmms:
        head = lmm.model.get_output_embeddings().weight
        head.data[Renderer(lmm.processor).end_token_id] = row.to(head)


@pytest.fixture(scope="session")
def base(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``build_base`` of the world's pictures: 96 px, patch 16."""
    return build_base(world, tmp_path_factory.mktemp("base") / "model", SIDE, 16)


@pytest.fixture(scope="session")
def lmm(base: Path) -> Lmm:
    return load(ModelSettings(path=str(base), device="cpu"))
