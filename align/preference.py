"""DPO on our preferences: settings, pairs, model, TRL's DPOTrainer, save (Rafailov et al. 2023).

The reference is the base with the adapter off. TRL would render the pairs by its own rules; here they come
from ``align.render``, the same tokens as SFT and PPO see, and pictures may be encoded once and kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler
from transformers import set_seed
from trl import DPOConfig, DPOTrainer

from align.began import check_began, lessons
from align.checkpoint import RunDir
from align.config import DataSettings, DpoSettings, is_hub_id
from align.context import window
from align.generate import inference
from align.launch import one_process
from align.meta import read_config
from align.models.lmm import (
    Lmm,
    adapters_off,
    check_model,
    hidden_states,
    load,
    load_processor,
    logprobs_of,
    lora_config,
    move,
)
from align.pairs import Pair, Share, hold_out, pairs_of
from align.render import IGNORE, Renderer
from align.sft import Pictures, check_cacheable, keep_features
from align.sft_trainer import ByLength
from align.trl_stage import KeepsLearned, LogToRun, arguments, card_of, fit, save_policy, set_optimizer
from data.jsonl import DataError, Rejects, write_json
from data.load import load as load_records
from data.schema import Example, Message, Preference

#: names of TRL's that differ from ours; others are the field's and stay
NAMES = {"learning_rate": "lr", "mean_token_accuracy": "token_accuracy"}
#: a count of all tokens so far, which starts anew in a resumed run
DROPPED = ("num_tokens",)


def run(settings: DpoSettings) -> Path:
    """Train a policy, and return the folder of its adapter (``<output>/policy``).

    ``metrics.jsonl`` has TRL's figures: loss, rewards/margins, rewards/accuracies, logps/chosen …; with
    held-out pairs its last line has theirs (heldout/…), also in ``result.json``.

    Raises:
        DataError: unreadable preferences, none that ``target`` decides, none within ``max_length``, or some
            beyond the model's context.
        ModelError: the checkpoint is no multimodal model, or ``cache_features`` does not suit it.
        TrainingError: a loss or gradient that is not finite. LaunchError: one of several processes.
        CheckpointError: the output is another run's, or it began with other pairs or another model.
    """
    one_process("dpo")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    output = Path(settings.output) / "policy"
    # ahead of the data and the model, which may take minutes
    if not settings.dry_run and RunDir.check(settings.output, settings, "dpo"):
        return output
    rejects = Rejects()
    pairs, held, skipped = read_pairs(settings, rejects)
    check_model(settings.model)
    check_lengths(settings, pairs, held)
    if settings.dry_run:
        return output
    with RunDir.create(settings.output, settings, "dpo") as run_dir:
        if run_dir.is_done:  # by another process meanwhile
            return output
        check_began(run_dir, lessons(settings.model, pairs, held))
        rejects.write(run_dir.path / "rejects.jsonl")
        set_seed(settings.seed)
        lmm = load(settings.model)
        renderer = Renderer(lmm.processor)
        parts = [Pairs(pairs, renderer, settings), Pairs(held, renderer, settings, settings.eval_data)]
        skipped["too long"] = len(pairs) + len(held) - sum(len(part.pairs) for part in parts)
        if settings.cache_features:
            check_cacheable(lmm, ())
            keep_features(lmm, renderer, [part.chosen for part in parts])
        trainer = build(lmm, renderer, settings, parts[0], run_dir)
        fit(trainer, settings, run_dir)
        found = {}
        if parts[1].pairs:
            found = heldout(lmm, PairCollator(renderer, parts[1]), settings)
            if not any("heldout/n" in line for line in run_dir.metrics()):
                run_dir.log(trainer.args.max_steps, **found)
        write_json(run_dir.path / "result.json", {"steps": trainer.args.max_steps, **found})
        save_policy(
            trainer.model, output, card(settings, len(parts[0].pairs), skipped, found), settings.model
        )
        run_dir.done()
    return output


def read_pairs(
    settings: DpoSettings, rejects: Rejects | None = None
) -> tuple[list[Pair], list[Pair], Counter[str]]:
    """Training pairs, held-out pairs, and the counts of what was passed over. Raises DataError."""
    pairs, skipped = pairs_of(_read(settings.data, rejects), settings.target)
    if settings.eval_data is not None:
        return pairs, pairs_of(_read(settings.eval_data, rejects), settings.target)[0], skipped
    return *hold_out(pairs, settings.holdout, settings.seed), skipped


def _read(data: DataSettings, rejects: Rejects | None) -> list[Preference]:
    records = load_records(want="preference", **data.model_dump(), rejects=rejects)
    return [record for record in records if isinstance(record, Preference)]


def check_lengths(settings: DpoSettings, pairs: Sequence[Pair], held: Sequence[Pair]) -> None:
    """Every pair that the run will read must fit the model's context; no weights are read.

    Pictures of other models than LLaVA count as one token; a dry run does not look up Hub ids. Raises
    DataError with the pair, its tokens and the mend.
    """
    if settings.dry_run and is_hub_id(settings.model.path):
        return
    limit = window(read_config(settings.model))
    if limit is None:
        return
    renderer = Renderer(load_processor(settings.model))
    for part in (Pairs(pairs, renderer, settings), Pairs(held, renderer, settings, settings.eval_data)):
        longest = max(part.lengths, default=0)
        if longest > limit:
            rule = (
                f"pair {part.pairs[part.lengths.index(longest)].id!r} takes {longest} tokens (with its "
                f"picture), and the context of {settings.model.path} is {limit}"
            )
            raise DataError(rule, key="max_length", mend=f"set it to {limit}: longer pairs are then left out")


def conversation(pair: Pair, response: str) -> Example:
    """A pair's conversation with one of its responses, as SFT would learn it."""
    messages = [*pair.messages, Message(role="assistant", content=response)]
    return Example(id=pair.id, image=pair.image, messages=messages)


class Pairs:
    """The pairs that fit ``max_length``, as conversations with the chosen and with the rejected response.

    Pictures are below the image root of ``data``, or of the training data.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        renderer: Renderer,
        settings: DpoSettings,
        data: DataSettings | None = None,
    ) -> None:
        both = [conversation(p, p.chosen) for p in pairs], [conversation(p, p.rejected) for p in pairs]
        longest = [max(ab) for ab in zip(*(renderer.train_lengths(side) for side in both), strict=True)]
        fits = [settings.max_length is None or n <= settings.max_length for n in longest]
        self.pairs = [p for p, fit_ in zip(pairs, fits, strict=True) if fit_]
        if pairs and not self.pairs:
            rule = (
                f"all {len(pairs)} pairs are longer than {settings.max_length} tokens (from {min(longest)})"
            )
            raise DataError(rule, key="max_length", mend="raise it; an image's tokens count")
        self.lengths = [n for n, fit_ in zip(longest, fits, strict=True) if fit_]
        chosen, self.rejected = ([e for e, f in zip(side, fits, strict=True) if f] for side in both)
        self.chosen = Pictures(chosen, (data or settings.data).images)

    def rows(self) -> Dataset:
        """What TRL walks over: positions; the column "image" tells it to leave the rest to our collator."""
        return Dataset.from_dict({"row": list(range(len(self.pairs))), "image": [""] * len(self.pairs)})


class PairCollator:
    """Positions to DPOTrainer's batch: the chosen conversations, then the rejected ones in that order."""

    def __init__(self, renderer: Renderer, pairs: Pairs) -> None:
        self.renderer, self.pairs = renderer, pairs

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """input_ids, attention_mask and completion_mask (2B, T), right padded, and the images' inputs."""
        at = [row["row"] for row in rows]
        shown = [self.pairs.chosen[i] for i in at]
        examples = [e for e, _ in shown] + [self.pairs.rejected[i] for i in at]
        batch: dict[str, Any] = dict(self.renderer.train_batch(examples, [image for _, image in shown] * 2))
        if "vision_features" in batch:
            # kept features go by the name of the pixels that they replace
            batch["pixel_values"] = batch.pop("vision_features")
        batch["completion_mask"] = last_turn(batch.pop("labels"))
        return batch


def last_turn(labels: Tensor) -> Tensor:
    """(B, T) labels of whole conversations -> (B, T), 1 at the tokens of the last assistant turn."""
    mask = torch.zeros_like(labels)
    for row, learned in zip(mask, labels != IGNORE, strict=True):
        at = learned.nonzero().flatten().tolist()
        start = next((b for a, b in zip(at[-2::-1], at[:0:-1]) if a != b - 1), at[0])
        row[start : at[-1] + 1] = 1
    return mask


class PairTrainer(KeepsLearned, DPOTrainer):
    """TRL's, with batches of like length in ``order``, a function of (seed, epoch)."""

    order: ByLength

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler[int]:
        return self.order


class InOrder(LogToRun):
    """Tells the sampler its epoch, also where a resumed run begins."""

    def __init__(self, run_dir: RunDir, order: ByLength, updates_an_epoch: int) -> None:
        super().__init__(run_dir, name_of)
        self.order, self.updates_an_epoch = order, updates_an_epoch

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.order.epoch = state.global_step // self.updates_an_epoch


def name_of(theirs: str) -> str | None:
    """Our name of a figure that TRL logs, None for one that is not kept."""
    return None if theirs in DROPPED else NAMES.get(theirs, theirs)


def build(lmm: Lmm, renderer: Renderer, settings: DpoSettings, pairs: Pairs, run_dir: RunDir) -> PairTrainer:
    """The trainer, with its optimizer; the adapter is on ``lmm.model`` afterwards."""
    order = ByLength(pairs.lengths, settings.batch_size * settings.grad_accum, settings.seed)
    batches = -(-len(pairs.pairs) // settings.batch_size)
    updates = -(-batches // settings.grad_accum)
    total = settings.max_steps or max(1, int(updates * settings.epochs))
    args = arguments(
        DPOConfig, settings, run_dir.path / "trainer", lmm.device,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.grad_accum,
        max_steps=total,
        max_grad_norm=settings.optim.max_grad_norm,
        logging_steps=settings.log_every,
        save_steps=settings.save_every or 500,
        bf16=settings.bf16,
        gradient_checkpointing=settings.gradient_checkpointing,
        dataloader_num_workers=settings.workers,
        max_length=None,
        beta=settings.beta,
        loss_type=[settings.loss_type],
        label_smoothing=settings.label_smoothing,
    )  # fmt: skip
    trainer = PairTrainer(
        model=lmm.model,
        args=args,
        data_collator=PairCollator(renderer, pairs),
        train_dataset=pairs.rows(),
        processing_class=lmm.processor,
        callbacks=[InOrder(run_dir, order, updates)],
        peft_config=lora_config(lmm.model, settings.lora),
    )
    trainer.order = order
    lmm.model = trainer.model
    set_optimizer(trainer, settings.optim, total)
    return trainer


@torch.no_grad()
def log_ratios(lmm: Lmm, collate: PairCollator, size: int) -> tuple[Tensor, Tensor]:
    """log π − log π_ref of the chosen and of the rejected responses (n,), summed over their tokens.

    The policy is ``lmm.model`` with its active adapter, the reference the same with adapters off.
    """
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    n = len(collate.pairs.pairs)
    with inference(lmm.model):
        for start in range(0, n, size):
            rows = [{"row": i} for i in range(start, min(start + size, n))]
            batch = move(collate(rows), lmm.device)
            mask = batch.pop("completion_mask")[:, 1:]
            said = batch["input_ids"][:, 1:]
            logprobs = logprobs_of(lmm.model, hidden_states(lmm.model, batch)[:, :-1], said)[0]
            with adapters_off(lmm.model):
                reference = logprobs_of(lmm.model, hidden_states(lmm.model, batch)[:, :-1], said)[0]
            ratio = torch.where(mask > 0, logprobs - reference, 0).sum(1).cpu()
            for side, part in zip(found, ratio.chunk(2), strict=True):
                side.append(part)
    return torch.cat(found[0]), torch.cat(found[1])


def heldout(lmm: Lmm, collate: PairCollator, settings: DpoSettings) -> dict[str, float]:
    """How often the policy, against the base, prefers held-out pairs' chosen responses, and by how much.

    ``margin`` is β times the difference of the log ratios, DPO's implicit reward. An equal one is half right.
    """
    chosen, rejected = log_ratios(lmm, collate, settings.batch_size)
    margin = settings.beta * (chosen - rejected)
    right = ((margin > 0) + 0.5 * (margin == 0)).double().numpy()
    share = Share.of(right, [pair.cluster for pair in collate.pairs.pairs])
    return {
        "heldout/accuracy": share.value,
        "heldout/low": share.low,
        "heldout/high": share.high,
        "heldout/margin": float(margin.mean()),
        "heldout/n": len(margin),
    }


def card(settings: DpoSettings, n: int, skipped: Counter[str], found: dict[str, float]) -> str:
    """The policy's README.md."""
    left = ", ".join(f"{count} {what}" for what, count in skipped.items() if count) or "none"
    lines = [
        f"- {n} pairs by the question `{settings.target}`, seed {settings.seed}; passed over: {left}.",
        f"- β {settings.beta}, loss {settings.loss_type}, learning rate {settings.optim.lr}.",
    ]
    if found:
        lines.append(
            f"- Of {found['heldout/n']:.0f} held-out pairs it prefers the chosen response, against the base, "
            f"in {found['heldout/accuracy']:.1%} (95 % interval {found['heldout/low']:.1%} to "
            f"{found['heldout/high']:.1%}), by a mean margin of {found['heldout/margin']:.3f}."
        )
    return card_of("DPO", settings.model, lines)
