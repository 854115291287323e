"""A policy's base, lent to a reward model: whole weights to run on, and checkpoints without the guest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

from align.reward_model import RewardError


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
