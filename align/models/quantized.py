"""Frozen bases in 8 or 4 bits (bitsandbytes)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from align.models.build import ModelError


def quantization(bits: int, dtype: torch.dtype) -> BitsAndBytesConfig:
    """8 bits, or NF4 with double quantization; vision tower, projector and head stay in ``dtype``."""
    # names are matched from their start, hence the leading ".*"
    skip = [".*vision_tower", ".*vision_model", ".*visual", ".*multi_modal_projector", "lm_head"]
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skip,
    )


def quantize(model: PreTrainedModel, path: str, options: dict[str, Any]) -> PreTrainedModel:
    """A copy of ``model``, quantized as if its weights had been read from ``path`` with ``options``.

    For merged adapters: quantized weights lie on a coarse grid, and the small change that an adapter makes
    would snap back when added to them. Added to the full weights ahead of the rounding, it survives on
    average.
    """
    small, report = type(model).from_pretrained(
        None, config=model.config, state_dict=model.state_dict(), output_loading_info=True, **options
    )
    if report["missing_keys"]:
        raise ModelError(
            f"{path}: cannot be quantized with its adapters merged, transformers does not find "
            f"{sorted(report['missing_keys'])[:3]} again; set model.bits to null"
        )
    small.generation_config = model.generation_config
    # adapters trained on it record where their base is
    small.name_or_path = small.config.name_or_path = path
    return small


def keep_unpacked(model: nn.Module) -> None:
    """Stop bitsandbytes' 4-bit layers from repacking on CPU.

    After a no-grad forward they would repack for inference; a later backward then gives no input gradient, so
    an adapter trained after generation would learn nothing, and a save would be corrupt.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
