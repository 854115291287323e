"""The shorter forward pass of LoRA layers is PEFT's own, with its gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from align.config import LoraSettings, ModelSettings
from align.models.lmm import adapters_off, add_adapters, hidden_states, load, use_adapter
from align.models.lora import lean

NAMES = ("policy", "value")


def adapted(path: Path, dtype: str = "float32", dropout: float = 0.0) -> Any:
    """Two adapters that do something."""
    model = load(ModelSettings(path=str(path), device="cpu", dtype=dtype)).model  # type: ignore[arg-type]
    wrapped = add_adapters(model, LoraSettings(r=4, alpha=8, dropout=dropout), NAMES)
    torch.manual_seed(3)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data, std=0.1)
    return wrapped.eval()


def states(model: Any) -> torch.Tensor:
    ids = torch.randint(4, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    return hidden_states(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    states(model).square().sum().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_states_and_gradients_are_as_pefts(tiny_llava: Path) -> None:
    model = adapted(tiny_llava)
    wanted = []
    for name in NAMES:
        use_adapter(model, name, trainable=NAMES)
        wanted.append((states(model).detach(), gradients(model)))
    with adapters_off(model):
        bare = states(model).detach()
    assert not torch.allclose(wanted[0][0], wanted[1][0], atol=1e-2)
    assert not torch.allclose(wanted[0][0], bare, atol=1e-2)
    lean(model)
    for name, (hidden, gradient) in zip(NAMES, wanted):
        use_adapter(model, name, trainable=NAMES)
        torch.testing.assert_close(states(model), hidden, atol=1e-5, rtol=1e-5)
        found = gradients(model)
        assert found.keys() == gradient.keys() and any(name in key for key in found)
        for key, grad in found.items():
            torch.testing.assert_close(grad, gradient[key], atol=1e-4, rtol=1e-4)
    with adapters_off(model):
        assert torch.equal(states(model), bare)


def test_in_bfloat16_it_is_no_further_from_float32_than_pefts(tiny_llava: Path) -> None:
    exact = states(adapted(tiny_llava)).detach()
    model = adapted(tiny_llava, "bfloat16")
    assert {p.dtype for n, p in model.named_parameters() if "lora_" in n} == {torch.float32}
    theirs = (states(model).float() - exact).norm()
    lean(model)
    assert (states(model).float() - exact).norm() < 1.2 * theirs
    found = gradients(model)
    assert found and {grad.dtype for grad in found.values()} == {torch.float32}


@pytest.mark.parametrize("training", [False, True])
def test_dropout_in_training_goes_pefts_way(tiny_llava: Path, training: bool) -> None:
    model = adapted(tiny_llava, dropout=0.5)
    lean(model)
    model.train(training)
    torch.manual_seed(0)
    first = states(model)
    torch.manual_seed(1)
    assert torch.equal(first, states(model)) is not training


def test_merged_weights_are_read_once(tiny_llava: Path) -> None:
    model = adapted(tiny_llava)
    lean(model)
    before = states(model).detach()
    model.merge_adapter()
    torch.testing.assert_close(states(model), before, atol=1e-4, rtol=1e-4)
    model.unmerge_adapter()
