"""A policy's base or its tower, lent to a reward model: whole weights to run on, and checkpoints without
the guest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from align.models.lmm import Lmm, is_llava, unwrap
from align.reward_model import RewardError

#: of a configuration, what decides no feature
_UNREAD = {"dtype", "torch_dtype", "transformers_version", "_name_or_path"}


class SavesOwn:
    """Stands for a policy's ``save_pretrained``: saves all of its adapters but those that were lent to it.

    A trainer saves all that there are; and one that resumes reads, in transformers before 5.24, those in
    subfolders alone, the reward model's, so that the policy would start afresh without a word.
    """

    def __init__(self, policy: PeftModel) -> None:
        self.policy, self.save = policy, policy.save_pretrained
        self.left_out: list[str] = []

    def __call__(
        self,
        save_directory: str,
        safe_serialization: bool = True,
        selected_adapters: list[str] | None = None,
        **how: Any,
    ) -> None:
        """PEFT's own, for ``selected_adapters`` or else what is not ``left_out``."""
        if selected_adapters is None:
            selected_adapters = [name for name in self.policy.peft_config if name not in self.left_out]
        self.save(save_directory, safe_serialization, selected_adapters, **how)


def leave_out(policy: Any, name: str) -> None:
    """What is saved of ``policy`` from now on leaves out the adapter ``name``, unless asked for by name."""
    if not isinstance(policy.save_pretrained, SavesOwn):
        policy.save_pretrained = SavesOwn(policy)
    policy.save_pretrained.left_out.append(name)


def check_whole(model: nn.Module, folder: Path) -> None:
    """Raise RewardError where ``model``, under the reward model of ``folder``, is split over processes.

    A trainer may split it as late as it begins to train.
    """
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    parameters = list(model.parameters())
    if any(hasattr(p, "ds_id") for p in parameters):
        # transformers then loads every model in parts, so a base of its own would not help
        how, mend = "DeepSpeed ZeRO-3", "set zero_stage to 2 or less"
    elif any(isinstance(p, DTensor) for p in parameters) or any(
        isinstance(m, FullyShardedDataParallel) for m in model.modules()
    ):
        how, mend = "FSDP", "let it load its own base (own_base=True, without share), or train with DDP"
    else:
        return
    raise RewardError(
        f"{folder}: the weights that the reward model runs on are split over processes ({how}), and its "
        f"passes need them whole in each; {mend}"
    )


def lend_tower(policy: Lmm, judge: Lmm) -> bool:
    """Have ``judge`` see through the policy's vision tower where its own is the same one, and let go of that.

    LLaVA-1.5 of 7B and of 13B have one tower, frozen in both. Then a picture's features are one tensor for
    the two, bit for bit: their towers, the layers read and the picture's way to pixels are compared. Returns
    whether features of the one may be given to the other.
    """
    if policy.model is judge.model:
        return True
    if not (is_llava(policy.model) and is_llava(judge.model)) or _seeing(policy) != _seeing(judge):
        return False
    ours, theirs = (unwrap(lmm.model).model for lmm in (policy, judge))
    if not _equal(ours.vision_tower, theirs.vision_tower):
        return False
    theirs.vision_tower = ours.vision_tower
    return True


def _seeing(lmm: Lmm) -> tuple[Any, ...]:
    """All that a LLaVA's features depend on beside the tower's weights."""
    config = unwrap(lmm.model).config
    tower = {key: value for key, value in config.vision_config.to_dict().items() if key not in _UNREAD}
    return (
        type(unwrap(lmm.model).model.vision_tower),
        tower,
        config.vision_feature_layer,
        config.vision_feature_select_strategy,
        type(lmm.processor.image_processor),
        lmm.processor.image_processor.to_dict(),
    )


def _equal(a: nn.Module, b: nn.Module) -> bool:
    """Whether two modules hold the same tensors, of one precision, on whichever devices."""
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(
        tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name].to(tensor.device))
        for name, tensor in ours.items()
    )
