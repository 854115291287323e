"""What a stage would build, on the meta device: every shape and dtype is real, and no weight is read.

The models come from ``config.json`` alone and go through the functions that build the real ones, so what is
counted here is exact. Nothing on the meta device takes memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText

from align.actors import LEARNERS, POLICY, VALUE
from align.config import (
    LoraSettings,
    ModelSettings,
    PpoSettings,
    RewardSettings,
    RunSettings,
    SftSettings,
    is_hub_id,
)
from align.models.adapters import adapter_of, add_adapters, lora_config, quiet_peft, use_adapter
from align.models.build import ModelError
from align.models.lmm import Lmm, ScalarHead
from align.models.quantized import quantization
from align.reward_model import ADAPTER, find_reward, read_info, same_base
from align.template import times_read

META = torch.device("meta")


@dataclass(frozen=True)
class Judge:
    """The reward model of a PPO run, which need not be trained yet."""

    model: ModelSettings
    #: its adapter: the settings of a recipe, or a folder with PEFT's adapter_config.json
    adapter: LoraSettings | Path
    #: how often it reads the response: :func:`align.template.times_read`
    times_read: int = 1

    @classmethod
    def read(cls, path: str | Path) -> Judge:
        """Of a finished reward run. Raises RewardError where there is none."""
        info = read_info(path)
        return cls(info.model, find_reward(path), times_read(info.template))


@dataclass
class Build:
    """The models of one stage and one process, and what learns of them."""

    #: the base, with adapters where the stage has some
    model: Any
    #: optimizer groups, as the stage makes them
    groups: list[dict[str, Any]]
    #: scalar heads by name
    heads: dict[str, ScalarHead] = field(default_factory=dict)
    #: the reward model's own base with its adapter; None where it shares ``model``
    reward: Any = None

    def learned(self) -> list[nn.Parameter]:
        """All parameters that the optimizer changes."""
        return [parameter for group in self.groups for parameter in group["params"]]


def build_on_meta(settings: RunSettings, judge: Judge | None = None) -> Build:
    """All that ``align sft``, ``align reward`` or ``align ppo`` would hold, without weights.

    ``judge`` is PPO's reward model; None reads it from ``settings.reward_model``.

    Raises:
        ModelError: no configuration at ``model.path``, or settings that do not fit it. RewardError: no reward
            model. TypeError: a stage that trains nothing.
    """
    if isinstance(settings, PpoSettings):
        return ppo_on_meta(settings, judge or Judge.read(settings.reward_model))
    if isinstance(settings, RewardSettings):
        return reward_on_meta(settings)
    if isinstance(settings, SftSettings):
        return sft_on_meta(settings)
    raise TypeError(f"{type(settings).__name__} trains nothing; give settings of sft, reward or ppo")


def sft_on_meta(settings: SftSettings) -> Build:
    """See ``align.sft.run``."""
    from align.sft import parameter_groups, prepare  # late: it loads transformers' Trainer

    model = base_on_meta(settings.model)
    model.requires_grad_(settings.lora is None and "language" in settings.train_parts)
    lmm = Lmm(model, None, settings.model.path)
    with META:
        prepare(lmm, settings)
    return Build(lmm.model, parameter_groups(lmm.model, settings))


def reward_on_meta(settings: RewardSettings) -> Build:
    """See ``align.reward_model.RewardModel.start``."""
    base = base_on_meta(settings.model)
    with META:
        model = add_adapters(base, settings.lora, [ADAPTER])
    head = _head(base)
    return Build(model, [{"params": [*_of(model, ADAPTER), *head.parameters()]}], {ADAPTER: head})


def ppo_on_meta(settings: PpoSettings, judge: Judge) -> Build:
    """See ``align.actors.Actors.load``: policy, value and reward on one base, or the reward on its own."""
    base = base_on_meta(settings.model)
    shared = same_base(judge.model, settings.model)
    reward = None
    if shared:
        config = _adapter_config(base, judge.adapter)
        with META:
            model = add_adapters(base, settings.lora, [POLICY])
            for name in (VALUE, ADAPTER):
                model.add_adapter(name, config)
    else:
        reward = base_on_meta(judge.model.model_copy(update={"device": settings.model.device}))
        with META:
            model = add_adapters(base, settings.lora, LEARNERS)
            reward = _wrapped(reward, _adapter_config(reward, judge.adapter))
        reward.requires_grad_(False)
    use_adapter(model, POLICY, trainable=LEARNERS)
    heads = {VALUE: _head(base), ADAPTER: _head(reward or base)}
    heads[ADAPTER].requires_grad_(False)
    groups = [
        {"params": _of(model, POLICY)},
        {"params": [*_of(model, VALUE), *heads[VALUE].parameters()]},
    ]
    return Build(model, groups, heads, reward)


def _of(model: Any, adapter: str) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if adapter_of(name) == adapter]


def _head(model: Any) -> ScalarHead:
    with META:
        return ScalarHead(model.config.get_text_config().hidden_size)


def _adapter_config(base: Any, adapter: LoraSettings | Path) -> Any:
    from peft import PeftConfig

    if isinstance(adapter, LoraSettings):
        return lora_config(base, adapter)
    return PeftConfig.from_pretrained(str(adapter))


def _wrapped(base: Any, config: Any) -> Any:
    from peft import get_peft_model

    with quiet_peft():
        return get_peft_model(base, config, adapter_name=ADAPTER)


# --- the base ---


def read_config(settings: ModelSettings) -> Any:
    """The checkpoint's configuration; of a directory ``config.json`` alone is needed.

    Raises ModelError where it cannot be had: the Hub's cache is asked first, then the Hub.
    """
    path, folder = settings.path, Path(settings.path)
    if not is_hub_id(path) and not (folder / "config.json").is_file():
        what = "config.json is missing" if folder.is_dir() else "no such directory"
        raise ModelError(f"{path}: {what}; give a checkpoint's directory or a Hub id like owner/name")
    for cached in (True, False) if is_hub_id(path) else (True,):
        try:
            return AutoConfig.from_pretrained(
                path, trust_remote_code=settings.trust_remote_code, local_files_only=cached
            )
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
    mend = "restore the file"
    if is_hub_id(path):
        mend = "check the Hub id and the connection, or give a directory that holds its config.json"
    raise ModelError(f"{path}: its config.json cannot be had ({reason}); {mend}")


def base_on_meta(settings: ModelSettings) -> Any:
    """The frozen base of ``align.models.lmm.load``, quantized as ``bits`` asks; merged adapters add nothing.

    Raises ModelError for a checkpoint that takes no images.
    """
    config = read_config(settings)
    dtype = getattr(torch, settings.dtype)
    # fused attention needs a package and a GPU to be built; its layers are the same
    attention = "eager" if settings.attention == "eager" else "sdpa"
    try:
        with META:
            model = AutoModelForImageTextToText.from_config(
                config,
                dtype=dtype,
                attn_implementation=attention,
                trust_remote_code=settings.trust_remote_code,
            )
            if settings.bits:
                _quantize(model, settings.bits, dtype)
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{settings.path}: cannot be built as an image-text-to-text model ({reason}); give another one"
        ) from error
    return model.requires_grad_(False).eval()


def _quantize(model: Any, bits: int, dtype: torch.dtype) -> None:
    """Put bitsandbytes' layers where transformers would, holding tensors of the sizes that they end up with.

    NF4 (Dettmers et al., "QLoRA", 2023, section 3): two weights a byte, an 8-bit scale for each 64 weights
    (double quantization), a float32 scale for each 256 of those. 8 bits: one byte a weight and a float32
    scale for each output.
    """
    from bitsandbytes.nn import Linear4bit, Linear8bitLt
    from transformers.quantizers import AutoHfQuantizer

    quantizer = AutoHfQuantizer.from_config(quantization(bits, dtype), pre_quantized=False)
    quantizer.preprocess_model(model=model, device_map=None)
    for module in model.modules():
        if isinstance(module, (Linear4bit, Linear8bitLt)):
            # full weights, ahead of their rounding
            (_to_4_bits if bits == 4 else _to_8_bits)(module, dtype)
            if module.bias is not None:
                module.bias.data = module.bias.data.to(dtype)
    quantizer.postprocess_model(model)


def _to_4_bits(module: Any, dtype: torch.dtype) -> None:
    from bitsandbytes.functional import QuantState
    from bitsandbytes.nn import Params4bit

    full = module.weight
    blocks = -(-full.numel() // full.blocksize)
    scales = QuantState(
        torch.empty(-(-blocks // 256)), code=torch.empty(256), blocksize=256, dtype=torch.float32
    )
    state = QuantState(
        torch.empty(blocks, dtype=torch.uint8),
        shape=full.shape,
        dtype=dtype,
        blocksize=full.blocksize,
        code=torch.empty(16),
        quant_type=full.quant_type,
        offset=torch.empty(()),
        state2=scales,
    )
    kept = full.__dict__ | {"quant_state": state, "bnb_quantized": True}
    packed = torch.empty((full.numel() + 1) // 2, 1, dtype=torch.uint8)
    module.weight = Params4bit(packed, requires_grad=False, **kept)
    module.quant_state = state


def _to_8_bits(module: Any, dtype: torch.dtype) -> None:
    from bitsandbytes.nn import Int8Params

    shape = module.weight.shape
    weight = Int8Params(torch.empty(shape, dtype=torch.int8), requires_grad=False, has_fp16_weights=False)
    weight.CB, weight.SCB = weight.data, torch.empty(shape[0])
    module.weight = weight
    # how many outliers there are is known from values alone
    module.state.threshold = 0.0


# --- counting ---


def held(module: nn.Module) -> Iterator[Tensor]:
    """Every tensor that a module keeps: parameters, buffers, and the scales of quantized layers."""
    yield from module.parameters()
    yield from module.buffers()
    for part in module.modules():
        state = getattr(getattr(part, "weight", None), "quant_state", None)
        while state is not None:
            yield from (t for t in (state.absmax, state.code, state.offset) if t is not None)
            state = state.state2
        for holder in (getattr(part, "weight", None), getattr(part, "state", None)):
            # the scales move from the weight to the state in the first pass
            scales = getattr(holder, "SCB", None)
            if isinstance(scales, Tensor):
                yield scales


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' memory; what several of them share counts once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())
