"""Supervised fine-tuning: cross-entropy on the assistant's tokens (thesis, 9.2 and appendix H).

Settings, data, model, training, save. The training loop is transformers' Trainer, with our collator.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image as PILImage
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from align.checkpoint import RunDir, load_tensors, save_tensors
from align.config import DataSettings, SftSettings
from align.generate import grid_features
from align.models.lmm import (
    Lmm,
    ModelError,
    add_adapters,
    is_llava,
    load,
    logprobs_of,
    move,
    save,
    swap_in,
    unwrap,
)
from align.models.lmm import hidden_states as last_hidden
from align.models.vision import KeptTower
from align.render import IGNORE, ImageInput, Renderer
from data.images import open_image
from data.load import load as load_records
from data.schema import Example, Image

WEIGHTS = "trained.safetensors"


def run(settings: SftSettings) -> Path:
    """Train and write ``<output>/model`` (a Hugging Face checkpoint) or, with LoRA, ``<output>/adapter``
    (PEFT).

    Returns that directory; with ``dry_run`` the data are read, one batch is checked and nothing is written.
    Raises DataError, RenderError (naming the sample), ModelError or CheckpointError.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    output = Path(settings.output) / ("adapter" if settings.lora else "model")
    examples = _read(settings.data)
    held_out = _read(settings.eval_data) if settings.eval_data else []
    set_seed(settings.seed)
    lmm = load(settings.model, trainable=settings.lora is None and "language" in settings.train_parts)
    renderer = Renderer(lmm.processor)
    prepare(lmm, settings)
    train_data = Pictures(examples, settings.data.images)
    eval_data = Pictures(held_out, settings.eval_data.images) if settings.eval_data else None
    collate = Collator(renderer, settings.max_length)
    check_batch(lmm, collate, [train_data[i] for i in range(min(len(train_data), settings.batch_size))])
    if settings.dry_run:
        return output
    with RunDir.create(settings.output, settings, "sft") as run_dir:
        if run_dir.is_done:
            return output
        if settings.cache_features:
            keep_features(lmm, renderer, [d for d in (train_data, eval_data) if d is not None])
        train(lmm, settings, train_data, eval_data, collate, run_dir)
        _write(lmm, output, adapter=settings.lora is not None)
        run_dir.done()
    return output


def _read(data: DataSettings) -> list[Example]:
    records = load_records(want="example", **data.model_dump())
    return [record for record in records if isinstance(record, Example)]


class Pictures(Dataset):
    """(example, image) pairs; a picture is opened when its example is drawn, or replaced by kept features."""

    def __init__(self, examples: Sequence[Example], root: str | None) -> None:
        self.examples = list(examples)
        self.root = root
        #: grid features by image id
        self.features: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Example, ImageInput]:
        example = self.examples[index]
        if example.image is None:
            return example, None
        if example.image.id in self.features:
            return example, self.features[example.image.id]
        return example, self.open(example.image)

    def open(self, image: Image) -> PILImage.Image:
        """The picture, decoded now."""
        return open_image(image, self.root)


class Collator:
    """Rendering as the Trainer calls it: labels (B, K) are those of the last K = ``logits_to_keep``
    positions.

    Kept features go by the name of the pixels that they replace.
    """

    def __init__(self, renderer: Renderer, max_length: int | None) -> None:
        self.renderer = renderer
        self.max_length = max_length

    def __call__(self, pairs: Sequence[tuple[Example, ImageInput]]) -> dict[str, Any]:
        batch = self.renderer.train_batch([e for e, _ in pairs], [i for _, i in pairs], self.max_length)
        if "vision_features" in batch:
            batch["pixel_values"] = batch.pop("vision_features")
        # logits are needed from just ahead of the first label on: the image and question need no softmax
        start = int((batch["labels"] != IGNORE).any(0).nonzero()[0]) - 1
        batch["labels"] = batch["labels"][:, start:]
        batch["logits_to_keep"] = batch["labels"].shape[1]
        return batch


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to: vision, projector or language."""
    if any(key in name for key in ("multi_modal_projector", "mm_projector", "connector", "merger")):
        return "projector"
    if any(key in name for key in ("vision_tower", "vision_model", "visual", "image_newline")):
        return "vision"
    return "language"


def prepare(lmm: Lmm, settings: SftSettings) -> None:
    """Freeze and unfreeze parts; with LoRA, add the adapter and let the other asked parts learn in full."""
    learning = set(settings.train_parts)
    if settings.cache_features and ("vision" in learning or not is_llava(lmm.model)):
        raise ModelError(
            "cache_features needs a frozen tower of a LLaVA model; drop it, or vision in train_parts"
        )
    if settings.lora:
        names = {"projector": "multi_modal_projector", "vision": "vision_tower"}
        full = [names[part] for part in sorted(learning - {"language"})]
        if full and not is_llava(lmm.model):
            raise ModelError(
                f"train_parts {full} beside lora needs a LLaVA model; set train_parts to [language]"
            )
        lmm.model = add_adapters(lmm.model, settings.lora, ["default"], full=full)
    else:
        for name, parameter in lmm.model.named_parameters():
            parameter.requires_grad_(parameter.is_floating_point() and part_of(name) in learning)
    if not any(p.requires_grad for p in lmm.model.parameters()):
        raise ModelError(f"train_parts {sorted(learning)}: nothing would learn; name a part, or set lora")


def parameter_groups(model: nn.Module, settings: SftSettings) -> list[dict[str, Any]]:
    """Optimizer groups: each part's learning rate; weight decay on matrices only."""
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((part_of(name), parameter.ndim > 1), []).append(parameter)
    optim = settings.optim
    rates = {str(part): lr for part, lr in optim.part_lr.items()}
    return [
        {
            "params": parameters,
            "lr": rates.get(part, optim.lr),
            "weight_decay": optim.weight_decay if matrices else 0.0,
        }
        for (part, matrices), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def check_batch(lmm: Lmm, collate: Collator, pairs: Sequence[tuple[Example, ImageInput]]) -> float:
    """Render and run one batch; returns its loss. Raises ModelError if it is not finite."""
    loss, tokens = _loss_sum(lmm.model, move(collate(pairs), lmm.device))
    if not math.isfinite(loss):
        raise ModelError(f"the first batch's loss is {loss}; the checkpoint or its precision is broken")
    return loss / tokens


@torch.no_grad()
def _loss_sum(model: Any, batch: dict[str, Any]) -> tuple[float, int]:
    """Summed cross-entropy and number of the labelled tokens."""
    labels = batch["labels"][:, 1:]
    learned = labels != IGNORE
    hidden = last_hidden(model, batch)[:, -batch["logits_to_keep"] : -1]
    logprobs, _ = logprobs_of(model, hidden[learned].unsqueeze(0), labels[learned].unsqueeze(0))
    return -float(logprobs.sum()), int(learned.sum())


def evaluate(model: Any, data: Pictures, collate: Collator, batch_size: int, device: torch.device) -> float:
    """Mean cross-entropy over all labelled tokens: the batch size does not change it."""
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for batch in _batches(data, collate, batch_size):
        loss, tokens = _loss_sum(model, move(batch, device))
        total, count = total + loss, count + tokens
    model.train(was_training)
    return total / count


def _batches(data: Pictures, collate: Collator, size: int) -> Iterator[dict[str, Any]]:
    for start in range(0, len(data), size):
        yield collate([data[i] for i in range(start, min(start + size, len(data)))])


def keep_features(lmm: Lmm, renderer: Renderer, datasets: Sequence[Pictures]) -> None:
    """Encode every picture once, keep the features in memory, and put ``KeptTower`` in the tower's place."""
    for data in datasets:
        unique = list({e.image.id: e.image for e in data.examples if e.image is not None}.values())
        for start in range(0, len(unique), 64):
            chunk = unique[start : start + 64]
            features = grid_features(lmm, renderer, [data.open(image) for image in chunk])
            data.features |= {image.id: f.cpu() for image, f in zip(chunk, features, strict=True)}
    core = unwrap(lmm.model).model
    drops_first = core.config.vision_feature_select_strategy == "default"
    # hidden from the module tree, so that it is neither moved, trained nor checkpointed meanwhile
    object.__setattr__(lmm, "_tower", core.vision_tower)
    core.vision_tower = KeptTower(core.vision_tower, drops_first)


class SftTrainer(Trainer):
    """Checkpoints hold what learns, under the parameters' own names.

    Trainer's own would write LLaVA's keys in their legacy layout, and on resume find none of them: the run
    would go on from the initial weights with no more than a warning.
    """

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(folder / WEIGHTS, _learned(self.model))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        current = _learned(model if model is not None else self.model)
        saved = load_tensors(Path(resume_from_checkpoint) / WEIGHTS)
        if saved.keys() != current.keys():
            differing = sorted(saved.keys() ^ current.keys())[:3]
            raise ModelError(
                f"{resume_from_checkpoint}: holds other weights than what learns now, e.g. {differing}"
            )
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


def train(
    lmm: Lmm,
    settings: SftSettings,
    train_data: Pictures,
    eval_data: Pictures | None,
    collate: Collator,
    run_dir: RunDir,
) -> None:
    """Run (or resume) the Trainer; afterwards the model holds the learned weights."""
    optim = settings.optim
    optimizer = torch.optim.AdamW(parameter_groups(lmm.model, settings), lr=optim.lr, betas=optim.betas)
    evaluate_now = None
    if eval_data is not None:

        def evaluate_now() -> float:
            return evaluate(lmm.model, eval_data, collate, settings.batch_size, lmm.device)

    trainer = SftTrainer(
        model=lmm.model,
        args=_arguments(settings, run_dir.path / "trainer", lmm.device),
        train_dataset=train_data,
        data_collator=collate,
        optimizers=(optimizer, None),
        callbacks=[RunCallback(run_dir, evaluate_now)],
    )
    for noisy in (PrinterCallback, *([] if sys.stderr.isatty() else [ProgressCallback])):
        trainer.remove_callback(noisy)
    checkpoint = _latest(run_dir.path / "trainer") if settings.resume else None
    if settings.resume:
        run_dir.truncate_metrics(int(checkpoint.name.rsplit("-", 1)[1]) if checkpoint else -1)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def _arguments(settings: SftSettings, folder: Path, device: torch.device) -> TrainingArguments:
    optim = settings.optim
    checkpointing: dict[str, Any] = {}
    if settings.gradient_checkpointing:
        checkpointing = {
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": False},
        }
    return TrainingArguments(
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


def _latest(folder: Path) -> Path | None:
    """The newest complete checkpoint: Trainer writes its state file last."""
    found = []
    for path in folder.glob("checkpoint-*"):
        try:
            json.loads((path / "trainer_state.json").read_text())
        except (OSError, json.JSONDecodeError):
            continue
        found.append(path)
    return max(found, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


def _write(lmm: Lmm, output: Path, adapter: bool) -> None:
    tower = lmm.__dict__.pop("_tower", None)
    if tower is not None:
        unwrap(lmm.model).model.vision_tower = tower
    if not adapter:
        save(lmm.model, lmm.processor, output)
        return
    temp = Path(tempfile.mkdtemp(prefix=".adapter-", dir=output.parent))
    lmm.model.save_pretrained(temp)
    lmm.processor.save_pretrained(temp)
    swap_in(temp, output)
