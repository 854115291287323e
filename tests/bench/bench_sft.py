"""Fine-tuning: turns a second with all turns of a picture in one pass, and with each turn on its own."""

from __future__ import annotations

from pathlib import Path

import torch

from align.config import ModelSettings
from align.models.lmm import hidden_states, load, logprobs_of
from align.pictures import open_pictures
from align.render import IGNORE, Renderer
from align.sft_trainer import ByLength
from data.jsonl import read_records
from data.schema import Example
from tests.bench.measure import show, side_by_side

BATCH = 24


def single_turns(example: Example) -> list[Example]:
    """Each question with its answer as a conversation of its own."""
    pairs = zip(example.messages[::2], example.messages[1::2], strict=True)
    return [
        example.model_copy(update={"id": f"{example.id}/{i}", "messages": list(pair)})
        for i, pair in enumerate(pairs)
    ]


def in_order(examples: list[Example]) -> list[Example]:
    """As the trainer takes them: rows of like length share a batch."""
    lengths = [sum(len(m.content) for m in example.messages) for example in examples]
    return [examples[i] for i in ByLength(lengths, BATCH, seed=0)]


def test_turns_a_second(base: Path, world: Path) -> None:
    lmm = load(ModelSettings(path=str(base), device="cpu"), trainable=True)
    lmm.model.model.vision_tower.requires_grad_(False)
    renderer = Renderer(lmm.processor)
    optimizer = torch.optim.AdamW([p for p in lmm.model.parameters() if p.requires_grad], lr=1e-4)
    whole = [e for e in read_records(world / "sft.jsonl", "example") if isinstance(e, Example)]
    single = [turn for example in whole for turn in single_turns(example)]
    whole, single = in_order(whole), in_order(single)

    def train(examples: list[Example]) -> float:
        """One optimizer step for each batch of ``BATCH`` rows; returns the turns that were learned."""
        for start in range(0, len(examples), BATCH):
            part = examples[start : start + BATCH]
            batch = renderer.train_batch(part, open_pictures([e.image for e in part], world))
            labels = batch.pop("labels")[:, 1:]
            learned = labels != IGNORE
            hidden = hidden_states(lmm.model, batch)[:, :-1][learned]
            logprobs, _ = logprobs_of(lmm.model, hidden.unsqueeze(0), labels[learned].unsqueeze(0))
            optimizer.zero_grad(set_to_none=True)
            (-logprobs.mean()).backward()
            optimizer.step()
        return len(single)

    assert sum(len(e.messages) // 2 for e in whole) == len(single), "both ways learn the same turns"
    ways = {"all turns in one pass": lambda: train(whole), "one turn at a time": lambda: train(single)}
    rates = side_by_side(ways)
    show(f"SFT: {len(single)} turns of {len(whole)} pictures, batches of {BATCH}", "turns/s", rates)
