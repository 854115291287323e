"""transformers' Trainer as ``align.sft`` uses it: its checkpoints, its log and its settings."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from align.checkpoint import RunDir, load_tensors, save_tensors
from align.config import SftSettings
from align.models.lmm import ModelError

WEIGHTS = "trained.safetensors"


class SftError(ValueError):
    """A training run that cannot go on; the text says what was seen and what to change."""


class SftTrainer(Trainer):
    """Checkpoints hold what learns, under the parameters' own names.

    Trainer's own would write LLaVA's keys in their legacy layout, and on resume find none of them: the run
    would go on from the initial weights with no more than a warning. And a loss or gradient that is not
    finite ends the run, ahead of the update.
    """

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        self._check_finite("loss", float(loss))
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        # called once a step, between the last backward pass and the optimizer's step
        norm = super()._get_grad_norm(*args, **kwargs)
        self._check_finite("gradient's norm", float(norm))
        return norm

    def _check_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            raise SftError(
                f"step {self.state.global_step + 1}: the {name} is {value}, so this update was not applied; "
                f"lower optim.lr (now {self.args.learning_rate}) or optim.part_lr, or use bfloat16 or "
                "float32 instead of float16"
            )

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(folder / WEIGHTS, _learned(self.model))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.restore(Path(resume_from_checkpoint))

    def restore(self, checkpoint: Path) -> None:
        """Put the weights of a checkpoint into the model. Raises ModelError if other weights learn now."""
        current = _learned(self.model)
        saved = load_tensors(checkpoint / WEIGHTS)
        if saved.keys() != current.keys():
            differing = sorted(saved.keys() ^ current.keys())[:3]
            raise ModelError(f"{checkpoint}: holds other weights than what learns now, e.g. {differing}")
        for name, tensor in current.items():
            tensor.copy_(saved[name])


def _learned(model: Any) -> dict[str, Tensor]:
    """Learning parameters and, for batch norms' statistics, the buffers."""
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    return {n: t.detach() for n, t in (*named.items(), *model.named_buffers())}


class RunCallback(TrainerCallback):
    """Writes Trainer's losses, and ours on the held-out data, to the run directory."""

    def __init__(self, run_dir: RunDir, evaluate_now: Any | None) -> None:
        self.run_dir = run_dir
        self.evaluate_now = evaluate_now

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # the running mean of the loss is no part of a checkpoint: log it ahead of one, and a resumed run
        # writes the same numbers
        if control.should_save:
            control.should_log = True

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        names = {"loss": "loss", "grad_norm": "grad_norm", "learning_rate": "lr", "epoch": "epoch"}
        if logs and "loss" in logs and state.is_world_process_zero:
            self.run_dir.log(state.global_step, **{names[k]: v for k, v in logs.items() if k in names})

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.evaluate_now is not None and state.is_world_process_zero:
            self.run_dir.log(state.global_step, eval_loss=self.evaluate_now())


def arguments(settings: SftSettings, folder: Path, device: torch.device) -> TrainingArguments:
    """The settings in Trainer's words."""
    optim = settings.optim
    checkpointing: dict[str, Any] = {}
    if settings.gradient_checkpointing:
        checkpointing = {
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": False},
        }
    found = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.grad_accum,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        learning_rate=optim.lr,
        # transformers' "constant" knows no warm-up
        lr_scheduler_type="constant_with_warmup" if optim.schedule == "constant" else optim.schedule,
        warmup_steps=optim.warmup_steps,
        max_grad_norm=optim.max_grad_norm,
        bf16=settings.bf16,
        **checkpointing,
        logging_steps=settings.log_every,
        # would log the running mean in place of a loss that is not finite
        logging_nan_inf_filter=False,
        save_strategy="steps" if settings.save_every else "no",
        save_steps=settings.save_every or 500,
        save_total_limit=1,
        seed=settings.seed,
        use_cpu=device.type == "cpu",
        report_to="none",
        log_level="error",
        disable_tqdm=not sys.stderr.isatty(),
        remove_unused_columns=False,
        dataloader_num_workers=settings.workers,
        dataloader_pin_memory=device.type == "cuda",
    )
    # Trainer would spread one process over all visible GPUs (nn.DataParallel) and multiply the batch
    found._n_gpu = min(found.n_gpu, 1)
    return found


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint: Trainer writes its state file last."""
    found = []
    for path in folder.glob("checkpoint-*"):
        try:
            json.loads((path / "trainer_state.json").read_text())
        except (OSError, json.JSONDecodeError):
            continue
        found.append(path)
    return max(found, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)
