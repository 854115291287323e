"""Supervised fine-tuning: cross-entropy on the assistant's tokens (thesis, 9.2 and appendix H).

Settings, data, model, training, save. The training loop is transformers' Trainer, with our collator.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, ProgressCallback, set_seed

from align.began import check_began, check_same, lessons
from align.checkpoint import RunDir
from align.config import DataSettings, SftSettings
from align.folders import new_folder
from align.generate import grid_features
from align.launch import one_process
from align.models.lmm import (
    Lmm,
    ModelError,
    add_adapters,
    is_llava,
    load,
    move,
    save,
    unwrap,
)
from align.models.vision import KeptTower
from align.pictures import PictureKey, open_picture, picture_key
from align.render import IGNORE, ImageInput, Renderer, RenderError
from align.sft_trainer import ByLength, RunCallback, SftTrainer, arguments, latest_checkpoint, loss_sum
from align.sft_trainer import SftError as SftError
from data.jsonl import Rejects, read_json
from data.load import load as load_records
from data.schema import Example


def run(settings: SftSettings) -> Path:
    """Train and write ``<output>/model`` (a Hugging Face checkpoint) or, with LoRA, ``<output>/adapter``
    (PEFT); the bad records that were left out stand in ``<output>/rejects.jsonl``.

    Returns that directory; with ``dry_run`` the data are read, one batch is checked and nothing is written.
    Raises DataError, RenderError (naming the sample), ModelError, CheckpointError, SftError for a loss or
    gradient that is not finite, or LaunchError in one of several processes.
    """
    # Trainer would share out the batches and gradients, but not the rest of the stage: batch_size and the
    # kept features would count per process, the others would wait out the held-out loss (NCCL gives up after
    # ten minutes) or for ever after one that met a NaN, and exact resume is not shown for shared-out batches
    one_process("sft")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    output = Path(settings.output) / ("adapter" if settings.lora else "model")
    # ahead of the data and the model, which may take minutes
    if not settings.dry_run and RunDir.check(settings.output, settings, "sft"):
        return output
    rejects = Rejects()
    examples = _read(settings.data, rejects)
    held_out = _read(settings.eval_data, rejects) if settings.eval_data else []
    belongs = lessons(settings.model, examples, held_out)
    if not settings.dry_run:
        check_same(settings.output, belongs)
    set_seed(settings.seed)
    lmm = load(settings.model, trainable=settings.lora is None and "language" in settings.train_parts)
    renderer = Renderer(lmm.processor)
    prepare(lmm, settings)
    train_data = Pictures(examples, settings.data.images)
    eval_data = Pictures(held_out, settings.eval_data.images) if settings.eval_data else None
    check_lengths(renderer, [*examples, *held_out], settings.max_length)
    collate = Collator(renderer, settings.max_length)
    check_batch(lmm, collate, [train_data[i] for i in range(min(len(train_data), settings.batch_size))])
    if settings.dry_run:
        return output
    with RunDir.create(settings.output, settings, "sft") as run_dir:
        if run_dir.is_done:  # by another process meanwhile
            return output
        check_began(run_dir, belongs)
        rejects.write(run_dir.path / "rejects.jsonl")
        if settings.cache_features:
            keep_features(lmm, renderer, [d for d in (train_data, eval_data) if d is not None])
        train(lmm, settings, train_data, eval_data, collate, run_dir)
        _write(lmm, output, adapter=settings.lora is not None)
        run_dir.done()
    return output


def _read(data: DataSettings, rejects: Rejects | None = None) -> list[Example]:
    records = load_records(want="example", **data.model_dump(), rejects=rejects)
    return [record for record in records if isinstance(record, Example)]


class Pictures(Dataset):
    """(example, image) pairs; a picture is opened when its example is drawn, or replaced by kept features."""

    def __init__(self, examples: Sequence[Example], root: str | None) -> None:
        self.examples = list(examples)
        self.root = root
        #: grid features by ``picture_key``
        self.features: dict[PictureKey, Tensor] = {}

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Example, ImageInput]:
        example = self.examples[index]
        if example.image is None:
            return example, None
        kept = self.features.get(picture_key(example.image))
        return example, open_picture(example.image, self.root, example.id) if kept is None else kept


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
    if settings.cache_features:
        check_cacheable(lmm, learning)
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


def check_cacheable(lmm: Lmm, learning: Collection[str]) -> None:
    """Raise ModelError unless ``keep_features`` can stand for the tower; ``learning``: parts that learn."""
    if "vision" in learning or not is_llava(lmm.model):
        raise ModelError(
            "cache_features needs a frozen tower of a LLaVA model; drop it, or vision in train_parts"
        )
    layers = unwrap(lmm.model).config.vision_feature_layer
    if not isinstance(layers, int):
        raise ModelError(
            "cache_features keeps one layer's features of the tower, and this model's vision_feature_layer "
            f"is {list(layers)}; set cache_features to false"
        )


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


def check_lengths(renderer: Renderer, examples: Sequence[Example], max_length: int | None) -> None:
    """Raise RenderError if cutting to ``max_length`` would leave samples nothing to learn, or cut an image.

    Found in mid-run, one would end the run, and a resumed one at the same step again.
    """
    said = [] if max_length is None else renderer.misfits(examples, max_length)
    if said:
        more = f"\nand {len(said) - 5} more samples" if len(said) > 5 else ""
        raise RenderError("\n".join(said[:5]) + more)


def check_batch(lmm: Lmm, collate: Collator, pairs: Sequence[tuple[Example, ImageInput]]) -> float:
    """Render and run one batch; returns its loss. Raises ModelError if it is not finite."""
    with torch.no_grad():
        summed, tokens = loss_sum(lmm.model, move(collate(pairs), lmm.device))
    loss = float(summed)
    if not math.isfinite(loss):
        raise ModelError(f"the first batch's loss is {loss}; the checkpoint or its precision is broken")
    return loss / tokens


@torch.no_grad()
def evaluate(model: Any, data: Pictures, collate: Collator, batch_size: int, device: torch.device) -> float:
    """Mean cross-entropy over all labelled tokens: the batch size does not change it."""
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for batch in _batches(data, collate, batch_size):
        loss, tokens = loss_sum(model, move(batch, device))
        total, count = total + float(loss), count + tokens
    model.train(was_training)
    return total / count


def _batches(data: Pictures, collate: Collator, size: int) -> Iterator[dict[str, Any]]:
    for start in range(0, len(data), size):
        yield collate([data[i] for i in range(start, min(start + size, len(data)))])


def keep_features(lmm: Lmm, renderer: Renderer, datasets: Sequence[Pictures]) -> None:
    """Encode every picture once, keep the features in memory, and put ``KeptTower`` in the tower's place."""
    for data in datasets:
        shown = {picture_key(e.image): (e.image, e.id) for e in data.examples if e.image is not None}
        unique = list(shown.items())
        for start in range(0, len(unique), 64):
            chunk = unique[start : start + 64]
            pictures = [open_picture(image, data.root, record) for _, (image, record) in chunk]
            features = grid_features(lmm, renderer, pictures)
            data.features |= {key: f.cpu() for (key, _), f in zip(chunk, features, strict=True)}
    core = unwrap(lmm.model).model
    drops_first = core.config.vision_feature_select_strategy == "default"
    # hidden from the module tree, so that it is neither moved, trained nor checkpointed meanwhile
    object.__setattr__(lmm, "_tower", core.vision_tower)
    core.vision_tower = KeptTower(core.vision_tower, drops_first)


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

    # the batches of one step together: they are weighed by their tokens
    lengths = collate.renderer.train_lengths(train_data.examples)
    order = ByLength(lengths, settings.batch_size * settings.grad_accum, settings.seed)
    trainer = SftTrainer(
        model=lmm.model,
        order=order,
        args=arguments(settings, run_dir.path / "trainer", lmm.device),
        train_dataset=train_data,
        data_collator=collate,
        optimizers=(optimizer, None),
        callbacks=[RunCallback(run_dir, order, evaluate_now)],
    )
    for noisy in (PrinterCallback, *([] if sys.stderr.isatty() else [ProgressCallback])):
        trainer.remove_callback(noisy)
    checkpoint = latest_checkpoint(run_dir.path / "trainer") if settings.resume else None
    state = read_json(checkpoint / "trainer_state.json") if checkpoint else None
    if settings.resume:
        run_dir.truncate_metrics(state["global_step"] if state else -1)
    if checkpoint and state and state["global_step"] >= state["max_steps"]:
        # all steps are taken, and Trainer would take one more
        trainer.restore(checkpoint)
        evaluated = any("eval_loss" in m for m in run_dir.metrics() if m["step"] == state["global_step"])
        if evaluate_now is not None and not evaluated:
            run_dir.log(state["global_step"], eval_loss=evaluate_now())
        return
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def _write(lmm: Lmm, output: Path, adapter: bool) -> None:
    tower = lmm.__dict__.pop("_tower", None)
    if tower is not None:
        unwrap(lmm.model).model.vision_tower = tower
    if not adapter:
        save(lmm.model, lmm.processor, output)
        return
    with new_folder(output) as folder:
        lmm.model.save_pretrained(folder)
        lmm.processor.save_pretrained(folder)
