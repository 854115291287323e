"""How much memory a pass takes, found by running it on the meta device: the real code, on no numbers.

Every tensor that the pass brings to life is counted, from its birth to its death, so this is the peak of
tensors in eager execution. Not counted: workspaces inside kernels, the CUDA context, and what the caching
allocator rounds up.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary

from align.models.lmm import unwrap


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operations make while it is active; ``held`` existed before."""

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known = WeakIdKeyDictionary()
        for tensor in held:
            self._known[tensor.untyped_storage()] = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default and args[0].device.type == "meta":
            # code that asks "all ones?" of a mask takes the way of padded rows
            if args[0].dtype != torch.bool:
                raise RuntimeError("the pass reads a number, which has no value on the meta device")
            return False
        made = function(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return made

    def _add(self, storage: Any) -> None:
        if storage in self._known:
            return
        count = storage.nbytes()
        self._known[storage] = count
        self.now += count
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, count).atexit = False

    def _free(self, count: int) -> None:
        self.now -= count


class _Fused(torch.autograd.Function):
    """What fused attention keeps for its backward pass: q, k, v, the output, and a number a query."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        norm = q.new_empty(q.shape[:-1], dtype=torch.float32)
        if mask is not None and mask.dtype == torch.bool:
            # torch turns it into numbers that are added
            mask = q.new_empty(mask.shape)
        ctx.save_for_backward(q, k, v, mask, out, norm)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """Attention on the meta device takes what a GPU's fused kernels take; else torch writes out all scores.

    A function in torch's place, since none of its modes reaches what checkpointing computes again during the
    backward pass.
    """
    functional: Any = F
    original = functional.scaled_dot_product_attention

    def attend(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *others: Any, **named: Any
    ) -> Tensor:
        if q.device.type != "meta":
            return original(q, k, v, attn_mask, *others, **named)
        return _Fused.apply(q, k, v, attn_mask)

    functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


def peak_of(run: Callable[[], object], held: Iterable[Tensor] = ()) -> int:
    """Most bytes alive at once of what ``run`` makes on the meta device, beside ``held``."""
    with LiveBytes(held) as live, fused_attention():
        run()
    return live.peak


def over_depth(model: Any, measure: Callable[[], int]) -> int:
    """``measure()`` at the model's whole depth, from two shallow runs where all its layers are alike.

    What a pass keeps grows by the same number of bytes with each layer, so a run with two layers and one with
    three say it all.
    """
    decoder = unwrap(model).get_decoder()
    depth = decoder.config.num_hidden_layers
    if depth <= 3 or not _alike(decoder):
        return measure()
    two, three = (_at_depth(decoder.config, n, measure) for n in (2, 3))
    return two + (depth - 2) * (three - two)


def _at_depth(config: Any, layers: int, measure: Callable[[], int]) -> int:
    with shallow(config, layers):
        return measure()


@contextlib.contextmanager
def shallow(config: Any, layers: int) -> Iterator[None]:
    """A decoder runs its first ``layers`` layers only."""
    whole = config.num_hidden_layers
    config.num_hidden_layers = layers
    try:
        yield
    finally:
        config.num_hidden_layers = whole


def _alike(decoder: Any) -> bool:
    """Whether all layers are of one shape and kind, and the decoder heeds its configuration's depth."""
    kinds = getattr(decoder.config, "layer_types", None) or ["full_attention"]
    layers = getattr(decoder, "layers", None)
    if layers is None or len(set(kinds)) > 1 or len(layers) != decoder.config.num_hidden_layers:
        return False
    shapes = [[(name, p.shape, p.dtype) for name, p in layer.named_parameters()] for layer in layers]
    return all(other == shapes[0] for other in shapes)
