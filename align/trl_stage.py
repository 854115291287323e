"""What the stages trained by TRL have in common: settings, log, checkpoints, a policy saved as PPO saves it.

TRL names the adapter that learns "default", and takes the base with its adapters off for the reference.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from align.checkpoint import RunDir, load_tensors, save_tensors
from align.config import ModelSettings, OptimSettings, RunSettings
from align.folders import new_folder
from align.models.lmm import ModelError
from align.schedule import lr_factor
from align.sft_trainer import WEIGHTS, latest_checkpoint
from data.jsonl import read_json, write_json, write_text

ADAPTER = "default"

# TRL goes on using the old name of transformers' setting
warnings.filterwarnings("ignore", ".*gradient_checkpointing.* is deprecated", FutureWarning)


class TrainingError(ValueError):
    """A run of a trainer that cannot go on; the text says what was seen and what to change."""


class KeepsLearned:
    """Mixed into a Trainer: checkpoints hold what learns, by its own names, and nothing else.

    Trainer's own way goes through PEFT's files: every adapter on the model (but those that
    ``RewardFunction.share`` lends to it), read back by the trainer's rules, which differ between versions of
    transformers. And a loss or a gradient that is not finite ends the run, ahead of the update.
    """

    model: Any
    state: Any
    args: Any

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)  # type: ignore[misc]
        self._check_finite("loss", float(loss))
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        # called once a step, between the last backward pass and the optimizer's step
        norm = super()._get_grad_norm(*args, **kwargs)  # type: ignore[misc]
        self._check_finite("gradient's norm", float(norm))
        return norm

    def _check_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            raise TrainingError(
                f"update {self.state.global_step + 1}: the {name} is {value}, so it was not applied; lower "
                "optim.lr, or use bfloat16 or float32 instead of float16"
            )

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(folder / WEIGHTS, learned(self.model))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.restore(Path(resume_from_checkpoint))

    def restore(self, checkpoint: Path) -> None:
        """Put the weights of a checkpoint into the model. Raises ModelError if other weights learn now."""
        now, saved = learned(self.model), load_tensors(checkpoint / WEIGHTS)
        if saved.keys() != now.keys():
            differing = sorted(saved.keys() ^ now.keys())[:3]
            raise ModelError(f"{checkpoint}: holds other weights than what learns now, e.g. {differing}")
        for name, tensor in now.items():
            tensor.copy_(saved[name])


def learned(model: Any) -> dict[str, Tensor]:
    """The parameters that learn, by name."""
    return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}


class LogToRun(TrainerCallback):
    """Writes what a trainer logs to the run directory, under our names.

    ``names`` turns the trainer's names into ours; what it leaves out is not written. A step of the run is
    ``updates`` of the trainer's.
    """

    def __init__(self, run_dir: RunDir, names: Callable[[str], str | None], updates: int = 1) -> None:
        self.run_dir, self.names, self.updates = run_dir, names, updates

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # running means are no part of a checkpoint: log them ahead of one, and a resumed run writes the same
        if control.should_save:
            control.should_log = True

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if not logs or "train_runtime" in logs or not state.is_world_process_zero:
            return
        found = {self.names(key): value for key, value in logs.items() if value is not None}
        kept = {key: value for key, value in found.items() if key is not None}
        self.run_dir.log(state.global_step // self.updates, **kept)


def arguments(kind: Any, settings: RunSettings, folder: Path, device: torch.device, **own: Any) -> Any:
    """The trainer's settings: what all of ours have in common, and ``own``.

    ``kind`` is TRL's class; precision and activation checkpointing are always stated, as TRL turns them on.
    """
    if own["gradient_checkpointing"]:
        own["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    found = kind(
        output_dir=str(folder),
        # would log the running mean in place of a loss that is not finite
        logging_nan_inf_filter=False,
        save_strategy="steps" if settings.save_every else "no",
        save_total_limit=1,
        seed=settings.seed,
        use_cpu=device.type == "cpu",
        # policy, old policy and reference must be one function at the start
        disable_dropout=True,
        report_to="none",
        log_level="error",
        disable_tqdm=not sys.stderr.isatty(),
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        **own,
    )
    # Trainer would spread one process over all visible GPUs (nn.DataParallel) and multiply the batch
    found._n_gpu = min(found.n_gpu, 1)
    return found


def set_optimizer(trainer: Any, optim: OptimSettings, steps: int, updates: int = 1) -> None:
    """AdamW on what learns, with PPO's schedule over ``steps`` of ``updates`` optimizer steps each."""
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    for parameter in parameters:
        # TRL rounds the adapter of a quantized base to bfloat16, in which small steps are lost
        parameter.data = parameter.data.float()
    trainer.optimizer = torch.optim.AdamW(
        parameters, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay
    )
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
        trainer.optimizer, lambda at: lr_factor(at // updates, steps, optim.warmup_steps, optim.schedule)
    )


def fit(trainer: Any, settings: RunSettings, run_dir: RunDir, updates: int = 1) -> None:
    """Train, or go on from the newest checkpoint; afterwards the model holds the learned weights."""
    for noisy in (PrinterCallback, *([] if sys.stderr.isatty() else [ProgressCallback])):
        trainer.remove_callback(noisy)
    checkpoint = latest_checkpoint(Path(trainer.args.output_dir)) if settings.resume else None
    state: Mapping[str, Any] = read_json(checkpoint / "trainer_state.json") if checkpoint else {}
    done = int(state.get("global_step", 0))
    if settings.resume:
        run_dir.truncate_metrics(done // updates if checkpoint else -1)
    if checkpoint and done >= state["max_steps"]:
        # all steps are taken, and Trainer would take one more
        trainer.restore(checkpoint)
        return
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def save_policy(model: Any, directory: Path, card: str, base: ModelSettings) -> Path:
    """Write the trained adapter as PPO writes its policy: PEFT's layout, ``policy.json``, a card."""
    with new_folder(directory) as folder:
        model.save_pretrained(folder, selected_adapters=[ADAPTER], save_embedding_layers=False)
        write_json(folder / "policy.json", {"model": base.model_dump(mode="json")})
        write_text(folder / "README.md", card)
    return directory


def card_of(how: str, base: ModelSettings, lines: Sequence[str]) -> str:
    """The policy's README.md: how it was trained, on what base, and further ``lines``."""
    merged = f" with {', '.join(f'`{a}`' for a in base.adapters)} merged into it" if base.adapters else ""
    first = f"- Base: `{base.path}`{merged}. The adapter needs exactly these weights under it."
    return "\n".join(["# Policy", "", f"LoRA adapter trained with {how}.", "", first, *lines, ""])
