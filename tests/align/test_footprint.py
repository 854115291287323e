"""align.footprint: passes on the meta device take what the real ones take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from align.actors import POLICY
from align.config import LoraSettings, ModelSettings
from align.footprint import LiveBytes, fused_attention, over_depth, peak_of
from align.meta import META, base_on_meta, held
from align.models.lmm import add_adapters, load, token_logprobs, unwrap
from align.models.memory import checkpointed
from align.models.tiny import build_tiny_llava

ROWS, TOKENS, RESPONSE = 6, 200, 90


def test_bytes_live_as_long_as_their_tensors() -> None:
    x = torch.empty(100, device=META)
    with LiveBytes([x]) as live:
        a = x + 1
        view = a[10:]
        assert live.now == 400
        b = a.double()
        assert (live.now, live.peak) == (1200, 1200)
        del a
        assert live.now == 1200  # the view holds it
        del view
        b += 1
        x += 1
        assert (live.now, live.peak) == (800, 1200)
    del b


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llava(tmp_path_factory.mktemp("model") / "base", hidden_size=64)


def batch(device: str) -> dict[str, Tensor]:
    ids = torch.zeros(ROWS, TOKENS, dtype=torch.long, device=device)
    mask = torch.ones_like(ids)
    if device == "cpu":
        mask[0, :5] = 0
    return {"input_ids": ids, "attention_mask": mask}


def forward(model: Any, device: str) -> Tensor:
    return token_logprobs(model, batch(device), response_len=RESPONSE)[0].sum()


def learn(model: Any, device: str) -> None:
    torch.autograd.backward(forward(model, device))


def score(model: Any, device: str) -> None:
    with torch.no_grad():
        forward(model, device)


def real_peak(run: Callable[[], object]) -> int:
    """Most bytes that torch's allocator gave out at once, as its profiler saw it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def models(path: Path, dtype: str = "float32", **changes: Any) -> tuple[Any, Any]:
    settings = ModelSettings(path=str(path), dtype=dtype, device="cpu", **changes)
    lora = LoraSettings(r=8)
    real = add_adapters(load(settings).model, lora, [POLICY])
    base = base_on_meta(settings)
    with META:
        return real, add_adapters(base, lora, [POLICY]).eval()


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "float32"},
        {"dtype": "float32", "attention": "eager"},
        {"dtype": "bfloat16"},
        {"dtype": "bfloat16", "bits": 4},
        {"dtype": "bfloat16", "bits": 8},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_update_takes_what_the_allocator_gives_out(
    path: Path, changes: dict[str, Any], checkpointing: bool
) -> None:
    real, meta = models(path, **changes)
    with checkpointed(real, checkpointing):
        learn(real, "cpu")  # gradients are there from now on
        measured = real_peak(lambda: learn(real, "cpu"))
    for parameter in meta.parameters():
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    present = [*held(meta), *(p.grad for p in meta.parameters() if p.grad is not None)]
    with checkpointed(meta, checkpointing):
        assert peak_of(lambda: learn(meta, "meta"), present) == pytest.approx(measured, rel=0.08)


def test_a_pass_without_gradients(path: Path) -> None:
    real, meta = models(path)
    score(real, "cpu")
    measured = real_peak(lambda: score(real, "cpu"))
    assert peak_of(lambda: score(meta, "meta"), held(meta)) == pytest.approx(measured, rel=0.05)


def test_what_is_kept_for_the_backward_pass(path: Path) -> None:
    real, meta = models(path)
    weights = {p.untyped_storage().data_ptr() for p in real.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = forward(real, "cpu")
    with LiveBytes(held(meta)) as live, fused_attention():
        same = forward(meta, "meta")
    # beside what is saved, the loss and the positions' tables are alive
    assert live.now == pytest.approx(sum(saved.values()), rel=0.08)
    del loss, same


def test_depth_is_extrapolated_exactly(tmp_path: Path, path: Path) -> None:
    config = base_on_meta(ModelSettings(path=str(path))).config
    config.text_config.num_hidden_layers = 7
    config.text_config.layer_types = None
    config.save_pretrained(tmp_path)
    base = base_on_meta(ModelSettings(path=str(tmp_path)))
    with META:
        model = add_adapters(base, LoraSettings(r=8), [POLICY])
    depths: list[int] = []

    def measured(run: Callable[[Any, str], object]) -> int:
        depths.append(unwrap(model).get_decoder().config.num_hidden_layers)
        return peak_of(lambda: run(model, "meta"), held(model))

    whole = measured(learn), measured(score)
    assert over_depth(model, lambda: measured(learn)) == whole[0]
    assert over_depth(model, lambda: measured(score)) == whole[1]
    assert depths == [7, 7, 2, 3, 2, 3]
    # of layers that differ, all must run
    first = unwrap(model).get_decoder().layers[0]
    first.mlp.extra = torch.nn.Parameter(torch.empty(1, device=META))
    over_depth(model, lambda: measured(score))
    assert depths[6:] == [7]


def test_a_number_read_in_a_pass_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no value on the meta device"):
        peak_of(lambda: int(torch.ones(3, device=META).sum()))
    assert torch.nn.functional.scaled_dot_product_attention.__name__ == "scaled_dot_product_attention"
