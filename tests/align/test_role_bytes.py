"""Policy, reference, value and reward model take one base and three adapters, counted exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from align.actors import POLICY, VALUE, Actors
from align.config import LoraSettings, ModelSettings, PpoSettings
from align.models.lmm import add_adapters, load
from align.models.tiny import build_tiny_llava
from align.reward_model import ADAPTER, RewardInfo, RewardModel

#: hidden size, feed-forward size and layers of LLaVA-1.5's language model, and r = 64 weights for each linear
SHAPES = {"7b": (4096, 11008, 32, 159_907_840), "13b": (5120, 13824, 40, 250_347_520)}


def size(*modules: Any) -> int:
    """Bytes of all their parameters, one that several hold counted once."""
    return sum(p.nbytes for p in {id(p): p for m in modules for p in m.parameters()}.values())


def test_a_run_holds_one_base(tmp_path: Path):
    base = build_tiny_llava(tmp_path / "base")
    model = ModelSettings(path=str(base), device="cpu")
    RewardModel.start(RewardInfo(model=model), LoraSettings(r=4)).save(tmp_path / "reward", "a card")
    settings = PpoSettings.model_validate({
        "output": str(tmp_path / "run"),
        "model": model.model_dump(),
        "reward_model": str(tmp_path / "reward"),
        "data": {"path": "prompts.jsonl"},
        "lora": {"r": 4},
    })  # fmt: skip
    actors = Actors.load(settings)
    bare = load(model).model
    hidden, text = bare.config.text_config.hidden_size, bare.config.text_config
    attention = 2 * (hidden + hidden) + 2 * (hidden + hidden // 2)  # half as many heads of keys and values
    linear = attention + 3 * (hidden + text.intermediate_size)
    adapter = 4 * 4 * linear * text.num_hidden_layers
    head = 4 * (hidden + 1)
    held = size(actors.lmm.model, actors.reward.lmm.model, actors.value_head, actors.reward.head)
    assert held == size(bare) + 3 * adapter + 2 * head


@pytest.mark.parametrize("shape", SHAPES)
def test_at_the_shape_of_llava(shape: str):
    """At most 1.15 times the base in bfloat16, although PEFT keeps adapters in float32."""
    hidden, wide, layers, weights = SHAPES[shape]
    text = LlamaConfig(
        hidden_size=hidden, intermediate_size=wide, num_hidden_layers=layers, vocab_size=32064,
        num_attention_heads=hidden // 128, num_key_value_heads=hidden // 128,
    )  # fmt: skip
    tower = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        image_size=336, patch_size=14, projection_dim=768,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=tower))
        model = model.to(torch.bfloat16)
        base = size(model)
        wrapped = add_adapters(model, LoraSettings(r=64), [POLICY, VALUE, ADAPTER])
    learned = {name: p for name, p in wrapped.named_parameters() if "lora_" in name}
    assert {p.dtype for p in learned.values()} == {torch.float32}
    assert sum(p.numel() for p in learned.values()) == 3 * weights
    heads = 2 * 4 * (hidden + 1)
    whole = size(wrapped) + heads
    assert whole == base + 4 * 3 * weights + heads
    assert 1.1 < whole / base < 1.15
