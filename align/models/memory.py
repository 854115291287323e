"""Less memory for a frozen base under adapters: activations computed again, weights split over processes."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from align.models.adapters import adapter_of
from align.models.lmm import ModelError, unwrap


@contextlib.contextmanager
def checkpointed(model: Any, on: bool = True) -> Iterator[None]:
    """Inside, the language model's layers keep their inputs alone and run again in the backward pass.

    The layers' own flags are set and not ``model.train()``: dropout inside them stays off, so a layer gives
    in both passes what it gives outside. A backward pass must come before another adapter is switched on: it
    runs the layers with the adapter that is active then, and gives wrong gradients without an error.

    Raises:
        ModelError: a model whose layers cannot do it.
    """
    if not on:
        yield
        return
    base = unwrap(model)
    # transformers 5.24 renamed it
    kind = "activation" if hasattr(base, "activation_checkpointing_enable") else "gradient"
    getattr(base, f"{kind}_checkpointing_enable")({"use_reentrant": False})
    layers = [m for m in base.get_decoder().modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(
            f"gradient_checkpointing: {type(base.get_decoder()).__name__} has no layers that can do it; "
            "set it to false"
        )
    try:
        for layer in layers:
            layer.training = True
        yield
    finally:
        for layer in layers:
            layer.training = False
        getattr(base, f"{kind}_checkpointing_disable")()


def shard(model: Any, device: torch.device) -> None:
    """Split the language model's frozen weights over all processes (FSDP2); adapters stay whole in each.

    A layer's weights are gathered while it runs. Embeddings, norms outside the layers, language head, vision
    tower and projector stay whole too: they are used on their own, and by some processes more often than by
    others. Every process must then run the layers equally often. What stays whole is moved to ``device``.

    Raises:
        ValueError: fewer than two processes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() < 2:
        raise ValueError("weights are split over processes, and there is one; start two or more by torchrun")
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    decoder = unwrap(model).get_decoder()
    whole = {p for name, p in decoder.named_parameters() if adapter_of(name) is not None}
    for layer in decoder.layers:
        # said, because each layer is told before its root is: the default would keep what was gathered
        fully_shard(layer, mesh=mesh, ignored_params=whole, reshard_after_forward=True)
    split = {p for p in decoder.parameters() if isinstance(p, DTensor)}
    fully_shard(decoder, mesh=mesh, ignored_params={*decoder.parameters()} - split)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if not isinstance(tensor, DTensor):
                tensor.data = tensor.data.to(device)


def peak_memory(device: torch.device) -> float:
    """Most memory in use so far, in GB of 2^30 bytes: torch's tensors on a GPU, else the whole process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    # Linux counts in KB, macOS in bytes
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def any_process(going: bool, device: torch.device) -> bool:
    """Whether ``going`` is true in any process; every process must call it."""
    flag = torch.tensor(int(going), device=device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag)
