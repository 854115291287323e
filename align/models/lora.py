"""LoRA layers that do in three operations what PEFT's own do in six, for the one adapter that is active."""

from __future__ import annotations

import types
from typing import Any

from peft.tuners.lora.layer import Linear
from torch import Tensor, nn


def lean(model: Any) -> None:
    """Give every LoRA layer over a plain linear one a shorter forward pass.

    W·x + s·B·A·x, with the adapter's product added in place. Adapters are cast to the type of ``x``, as under
    autocast (PEFT casts ``x`` to theirs: float32 for a bfloat16 base). What is not the ordinary case (several
    adapters, dropout in training, another variant, merged weights) goes PEFT's way.
    """
    for module in model.modules():
        if isinstance(module, Linear) and type(module.base_layer) is nn.Linear:
            module.forward = types.MethodType(_forward, module)


def _forward(layer: Linear, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    names = layer.active_adapters
    if args or kwargs or layer.merged or layer.lora_variant or len(names) != 1:
        return Linear.forward(layer, x, *args, **kwargs)
    base, name = layer.base_layer, names[0]
    if layer.disable_adapters or name not in layer.lora_A:
        return base(x)
    if layer.training and not isinstance(layer.lora_dropout[name], nn.Identity):
        return Linear.forward(layer, x)
    down, up = layer.lora_A[name].weight.to(x.dtype), layer.lora_B[name].weight.to(x.dtype)
    rows = x.reshape(-1, x.shape[-1])
    out = nn.functional.linear(rows, base.weight, base.bias)
    out = out.addmm_(rows @ down.t(), up.t(), alpha=layer.scaling[name])
    return out.view(*x.shape[:-1], out.shape[-1])
