"""What a PPO step costs at LLaVA-1.5-7B's shape, counted on weights without content: ours, and four models.

Matrix products and attention of every phase, without recomputed activations. It is work and not time: writing
waits for memory rather than for arithmetic, so its passes over the weights are counted as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from align.config import LoraSettings
from align.decode import LEAVING
from align.models.lmm import adapters_off, add_adapters, unwrap

IMAGE, PROMPT, LONGEST_PROMPT = 576, 64, 128
MEAN, LONGEST = 150, 896
#: behind the response in a reward model's row: our template, and five captions
JUDGED = 50 + 65
ROLLOUTS, MINIBATCH, MICRO_BATCH, BATCH, EPOCHS = 512, 256, 16, 64, 2


@dataclass
class Cost:
    """FLOPs of one row: ``linear``·T + ``square``·T² for its T tokens, ``head`` for each of its logits."""

    linear: float
    square: float
    head: float

    def row(self, tokens: float, logits: float = 0) -> float:
        return self.linear * tokens + self.square * tokens**2 + self.head * logits


@functools.cache
def model() -> Any:
    text = LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=32, vocab_size=32064, max_position_embeddings=4096,
    )  # fmt: skip
    tower = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        image_size=336, patch_size=14, projection_dim=768,
    )  # fmt: skip
    with torch.device("meta"):
        base = LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=tower))
        base = base.to(torch.bfloat16).requires_grad_(False)
        return add_adapters(base, LoraSettings(r=64), ["policy"])


def flops(work: Callable[[], Any]) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def cost(learns: bool) -> Cost:
    """Of one pass through the language model with its adapter; ``learns``: and back."""
    base = unwrap(model())

    def run(tokens: int) -> None:
        states = torch.empty(1, tokens, 4096, dtype=torch.bfloat16, device="meta")
        # a whole mask: nothing is looked up in weights without content
        mask = torch.empty(1, 1, tokens, tokens, dtype=torch.bool, device="meta")
        with torch.set_grad_enabled(learns):
            hidden = base.model.language_model(
                inputs_embeds=states, attention_mask=mask, use_cache=False
            ).last_hidden_state
        if learns:
            hidden.sum().backward()

    def head() -> None:
        states = torch.empty(1, 4096, dtype=torch.bfloat16, device="meta", requires_grad=learns)
        logits = base.get_output_embeddings()(states)
        if learns:
            logits.sum().backward()

    one, two = flops(lambda: run(100)), flops(lambda: run(200))
    square = (two - 2 * one) / (200**2 - 2 * 100**2)
    linear = (one - square * 100**2) / 100
    return Cost(linear, square, flops(head))


def tower() -> float:
    """The vision tower and the projector, of one picture."""
    pixels = torch.empty(1, 3, 336, 336, dtype=torch.bfloat16, device="meta")
    with torch.no_grad():
        return flops(lambda: unwrap(model()).model.get_image_features(pixels))


def lengths() -> list[int]:
    """Of the responses: geometric, cut at the longest, with the mean that is wanted."""
    rates = torch.linspace(0.5, 20, 20_000)
    rate = float(rates[(-(-rates).expm1() / rates - MEAN / LONGEST).abs().argmin()]) / LONGEST
    # at equal steps of the distribution, so that no draw decides
    chances = (torch.arange(ROLLOUTS) + 0.5) / ROLLOUTS
    found = (torch.log1p(-chances) / -rate).ceil().clamp(1, LONGEST).long()
    order = torch.randperm(ROLLOUTS, generator=torch.Generator().manual_seed(0))
    return found[order].tolist()


def written(said: Sequence[int], one: Cost, first: int, leave: bool) -> tuple[float, int]:
    """FLOPs of writing responses behind ``first`` tokens in batches, and how many passes it takes.

    Rows that have ended leave (ours, once they are a tenth) or go on until the last has ended.
    """
    total, passes = 0.0, 0
    for start in range(0, len(said), BATCH):
        batch = left = list(said[start : start + BATCH])
        for step in range(1, max(batch)):
            going = [n for n in left if n > step]
            if leave and len(going) <= (1 - LEAVING) * len(left):
                left = going
            # the token just chosen looks at all before it: a row of the square
            total += len(left) * (one.linear + one.square * (first + step) + one.head)
            passes += 1
    return total, passes


def passed(rows: Sequence[tuple[int, int]], one: Cost, size: int) -> float:
    """FLOPs of passes over rows of (tokens, logits), in parts of ``size`` as wide as their longest."""
    total = 0.0
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        widest = max(tokens for tokens, _ in part)
        total += len(part) * one.row(widest, max(logits for _, logits in part))
    return total


def step(ours: bool) -> tuple[dict[str, float], int]:
    """FLOPs of each phase of a step, and how many passes writing takes."""
    said, image = lengths(), tower()
    forward, learn = cost(learns=False), cost(learns=True)
    with adapters_off(model()):
        bare = cost(learns=False)
    if ours:
        rows = [(IMAGE + PROMPT + n, n) for n in said]
        judged = sorted((tokens + JUDGED, 0) for tokens, _ in rows)
        ordered = sorted(rows)
        updated = [sorted(rows[at : at + MINIBATCH]) for at in range(0, ROLLOUTS, MINIBATCH)]
        prompt, towers = IMAGE + PROMPT, 1
    else:
        prompt, towers = IMAGE + LONGEST_PROMPT, 1 + 4 + 2 * EPOCHS
        ordered = [(prompt + LONGEST, LONGEST)] * ROLLOUTS
        judged = [(prompt + LONGEST + JUDGED, 0)] * ROLLOUTS
        updated = [ordered[:MINIBATCH]] * (ROLLOUTS // MINIBATCH)
    mute = [(tokens, 0) for tokens, _ in ordered]
    writing, passes = written(said, forward, prompt, ours)
    learning = sum(
        passed(part, learn, MICRO_BATCH) + passed([(tokens, 0) for tokens, _ in part], learn, MICRO_BATCH)
        for part in updated
    )
    return {
        "vision tower and projector": towers * ROLLOUTS * image,
        "reading the prompts": ROLLOUTS * forward.row(prompt, 1),
        "writing the responses": writing,
        "judging: policy": passed(ordered, forward, MICRO_BATCH),
        "judging: reference": passed(ordered, bare, MICRO_BATCH),
        "judging: value": passed(mute, forward, MICRO_BATCH),
        "judging: reward": passed(judged, forward, MICRO_BATCH),
        "updating policy and value": EPOCHS * learning,
    }, passes


def test_work_at_the_shape_of_llava() -> None:
    (mine, my_passes), (four, four_passes) = step(ours=True), step(ours=False)
    print(
        f"\nPPO at LLaVA-1.5-7B's shape, TFLOP a rollout: {ROLLOUTS} rollouts, {EPOCHS} epochs, {IMAGE} image"
        f" tokens,\n prompts of {PROMPT} (padded: {LONGEST_PROMPT}), responses of {MEAN} on average"
        f" (padded: {LONGEST}), LoRA r 64"
    )
    print(f"  {'':28}{'ours':>8}{'four':>8}{'ratio':>8}")
    for name, count in [*mine.items(), ("all", sum(mine.values()))]:
        other = four.get(name, sum(four.values()))
        print(f"  {name:28}{count / ROLLOUTS / 1e12:8.2f}{other / ROLLOUTS / 1e12:8.2f}{count / other:8.2f}")
    again = four["vision tower and projector"] - mine["vision tower and projector"]
    print(f"  sharing the tower's features alone: {sum(mine.values()) / (sum(mine.values()) + again):.2f}")
    image = IMAGE / (IMAGE + PROMPT + MEAN)
    print(f"  image tokens are {image:.0%} of what our passes read; passes over the weights to write:")
    print(f"  {my_passes} and {four_passes} ({BATCH} rows at once)")
    assert sum(mine.values()) < 0.5 * sum(four.values())


def test_bytes_of_the_roles() -> None:
    base = sum(p.nbytes for n, p in model().named_parameters() if ".lora_" not in n)
    adapter = sum(p.nbytes for n, p in model().named_parameters() if ".lora_" in n)
    heads = 2 * 4 * (4096 + 1)
    one, four = base + 3 * adapter + heads, 4 * base + 3 * adapter + heads
    print("\nweights at LLaVA-1.5-7B's shape, bfloat16, adapters in float32:")
    print(
        f"  base {base / 1e9:.2f} GB, four roles on it {one / 1e9:.2f} GB = {one / base:.3f} times the base"
    )
    print(f"  as four models {four / 1e9:.2f} GB")
    assert one == pytest.approx(1.136 * base, rel=1e-3)
