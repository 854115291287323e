"""transformers' Trainer as ``align.sft`` uses it: its checkpoints, its log and its settings."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from align.checkpoint import RunDir, load_tensors, save_tensors
from align.config import SftSettings
from align.models.lmm import ModelError, hidden_states, is_llava, logprobs_of
from align.rows import IGNORE
from align.schedule import permutation

WEIGHTS = "trained.safetensors"


class SftError(ValueError):
    """A training run that cannot go on; the text says what was seen and what to change."""


#: batches whose samples are put in order of their lengths together
POOL = 8


class ByLength(Sampler[int]):
    """A random order in which the samples of one batch are of like length: little is padded.

    Samples are shuffled, taken ``POOL`` batches at a time and sorted by length there, and the batches are
    shuffled; what does not fill a batch comes last. A function of (seed, epoch).
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self.lengths, self.batch, self.seed = list(lengths), batch, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        order = permutation(len(self.lengths), self.seed, "samples", self.epoch)
        batches = []
        for start in range(0, len(order), POOL * self.batch):
            pool = sorted(order[start : start + POOL * self.batch], key=lambda i: -self.lengths[i])
            batches += [pool[at : at + self.batch] for at in range(0, len(pool), self.batch)]
        full = [batch for batch in batches if len(batch) == self.batch]
        rest = [batch for batch in batches if len(batch) < self.batch]
        for k in permutation(len(full), self.seed, "batches", self.epoch):
            yield from full[k]
        for batch in rest:
            yield from batch


class SftTrainer(Trainer):
    """Checkpoints hold what learns, under the parameters' own names; ``order`` is the samples' order.

    Trainer's own would write LLaVA's keys in their legacy layout, and on resume find none of them: the run
    would go on from the initial weights with no more than a warning. And a loss or gradient that is not
    finite ends the run, ahead of the update.
    """

    def __init__(self, *args: Any, order: ByLength, **kwargs: Any) -> None:
        self.order = order
        super().__init__(*args, **kwargs)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler[int]:
        return self.order

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean cross-entropy; a LLaVA's language head is applied to the positions that are learned alone."""
        if not is_llava(model) or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, tokens = loss_sum(model, inputs)
        return loss / (tokens if num_items_in_batch is None else num_items_in_batch)

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


def loss_sum(model: Any, batch: dict[str, Any]) -> tuple[Tensor, int]:
    """Summed cross-entropy () and number of the labelled tokens of what ``align.sft.Collator`` makes."""
    labels = batch["labels"][:, 1:]
    learned = labels != IGNORE
    hidden = hidden_states(model, batch)[:, -batch["logits_to_keep"] : -1]
    logprobs, _ = logprobs_of(model, hidden[learned].unsqueeze(0), labels[learned].unsqueeze(0))
    return -logprobs.sum(), int(learned.sum())


def _learned(model: Any) -> dict[str, Tensor]:
    """Learning parameters and, for batch norms' statistics, the buffers."""
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    return {n: t.detach() for n, t in (*named.items(), *model.named_buffers())}


class RunCallback(TrainerCallback):
    """Writes Trainer's losses, and ours on the held-out data, to the run directory."""

    def __init__(self, run_dir: RunDir, order: ByLength, evaluate_now: Any | None) -> None:
        self.run_dir, self.order = run_dir, order
        self.evaluate_now = evaluate_now

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # also where a resumed run begins
        batches = math.ceil(len(self.order) / args.per_device_train_batch_size)
        self.order.epoch = state.global_step // math.ceil(batches / args.gradient_accumulation_steps)

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
