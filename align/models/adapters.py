"""LoRA adapters on one set of base weights: policy, value and reward beside the reference (thesis, 9.3)."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from align.config import LoraSettings, is_hub_id
from align.models.build import ModelError


def check_adapter(path: str) -> None:
    """Raise ModelError unless ``path`` is the folder of a whole PEFT adapter; Hub ids pass."""
    folder = Path(path)
    if is_hub_id(path):
        return
    if not folder.is_dir():
        raise ModelError(
            f"{path}: no such directory; give an adapter's directory or a Hub id like owner/name"
        )
    if not (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{path}: adapter_config.json is missing; give the folder of a PEFT adapter "
            "(a run keeps its own in 'adapter' or 'policy')"
        )
    if not any((folder / f"adapter_model.{kind}").exists() for kind in ("safetensors", "bin")):
        raise ModelError(f"{path}: no weights (adapter_model.safetensors); the copy is incomplete")


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """Around the building of a PeftModel: without the deprecation that PEFT, not the user, has to mend."""
    # PeftModel.__init__ reads transformers' old name of `is_activation_checkpointing`; other warnings pass
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def add_adapters(
    model: PreTrainedModel, lora: LoraSettings, names: Sequence[str], *, full: Sequence[str] = ()
) -> Any:
    """Wrap ``model`` with one LoRA adapter a name, on the language model only; the first is active, all
    learn.

    Each starts as the identity. Modules named in ``full`` (e.g. "multi_modal_projector") learn in full and
    are saved with the adapter, one copy an adapter. Raises ModelError when no linear layer bears one of
    ``lora.targets``.
    """
    from peft import get_peft_model

    config = lora_config(model, lora, full=full)
    with quiet_peft():
        wrapped = get_peft_model(model, config, adapter_name=names[0])
    for name in names[1:]:
        wrapped.add_adapter(name, config)
    use_adapter(wrapped, names[0], trainable=names)
    return wrapped


def lora_config(model: PreTrainedModel, lora: LoraSettings, *, full: Sequence[str] = ()) -> Any:
    """PEFT's configuration of what ``add_adapters`` adds, for trainers that wrap the model themselves.

    Raises ModelError when no linear layer of the language model bears one of ``lora.targets``.
    """
    from peft import LoraConfig

    decoder = model.get_decoder()
    prefix = next((name for name, module in model.named_modules() if module is decoder), "")
    linear = {n.rsplit(".", 1)[-1] for n, m in decoder.named_modules() if isinstance(m, nn.Linear)}
    unknown = sorted(set(lora.targets) - linear)
    if unknown:
        raise ModelError(
            f"lora.targets {unknown}: no such layer in the language model; it has {sorted(linear)}"
        )
    # anchored: the same leaf names occur in CLIP towers
    pattern = (
        re.escape(prefix) + r"\." if prefix else ""
    ) + rf".*\.({'|'.join(map(re.escape, lora.targets))})"
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=pattern,
        modules_to_save=list(full) or None,
        task_type="CAUSAL_LM",
    )


def use_adapter(model: Any, name: str, trainable: Sequence[str] | None = None) -> None:
    """Make ``name`` the active adapter, without PEFT's side effect on which parameters learn.

    PEFT's ``set_adapter`` freezes all but the active one, so a joint backward after a switch would silently
    give the other adapters no gradient. Here exactly the adapters in ``trainable`` learn; None leaves every
    parameter as it was. Switching between a forward and its backward is safe unless gradient checkpointing is
    on.
    """
    before = {n: p.requires_grad for n, p in model.named_parameters()}
    model.set_adapter(name)
    for key, parameter in model.named_parameters():
        owner = adapter_of(key)
        learns = before[key] if trainable is None or owner is None else owner in trainable
        parameter.requires_grad_(learns)


def adapter_of(parameter_name: str) -> str | None:
    """The adapter that a parameter of a PEFT model belongs to, or None for the base's."""
    found = re.search(r"\.(?:lora_[A-Za-z_]+|modules_to_save)\.([^.]+)", parameter_name)
    return found.group(1) if found else None


@contextlib.contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """The base model alone, e.g. as the reference policy; afterwards every requires_grad is as before."""
    if not hasattr(model, "disable_adapter"):
        yield
        return
    before = {n: p.requires_grad for n, p in model.named_parameters()}
    try:
        with model.disable_adapter():
            yield
    finally:
        for key, parameter in model.named_parameters():
            parameter.requires_grad_(before[key])
