"""Train a reward model on preferences: settings, pairs, model, loop with held-out checks, save (thesis, 9.2).

The loss of a pair is −log σ(r_chosen − r_rejected) (eq. 9.1) plus ``centre`` · |mean reward|, the mean taken
over the responses of one forward pass. Facts, when the model reads them, are shuffled anew at each step.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from align.began import check_began, lessons
from align.cards import reward_card
from align.checkpoint import (
    RunDir,
    checkpoint_step,
    load_state,
    load_tensors,
    progress,
    save_state,
    save_tensors,
)
from align.config import DataSettings, RewardSettings
from align.launch import one_process
from align.models.lmm import check_model, load_processor
from align.models.memory import checkpointed
from align.pairs import Pair, PairReport, check_facts, digest, hold_out, label_agreement, pairs_of, report
from align.pictures import encode_pictures, open_pictures
from align.render import REWARD_TEMPLATE, ImageInput, Renderer, RenderError
from align.reward_model import RewardError as RewardError
from align.reward_model import RewardInfo, ScoreItem, attach, load_head, read_info
from align.reward_model import RewardModel as RewardModel
from align.schedule import lr_factor, step_seed, stream
from align.template import times_read
from data.jsonl import Rejects, read_json, write_json
from data.load import load
from data.schema import Preference

log = logging.getLogger(__name__)


def run(settings: RewardSettings) -> Path:
    """Train, and return the folder of the saved reward model (``<output>/reward``).

    Everything is a function of the seed: a run killed and resumed gives the same numbers and weights. Bad
    records that were left out stand in ``<output>/rejects.jsonl``.

    Raises:
        DataError: unreadable data, nothing to train on, or records without the facts that ``facts`` asks for.
        ModelError: the checkpoint is no multimodal model. RenderError: texts longer than ``max_length``.
        RewardError: the loss is not finite, or the saved model does not score as the trained one.
        LaunchError: this is one of several processes. CheckpointError: the output is another run's, or it
            began with other pairs, facts or another model.
    """
    one_process("reward")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    rejects = Rejects()
    train, held, skipped = read_pairs(settings, rejects)
    check_model(settings.model)
    check_lengths(settings, train, held)
    if settings.dry_run:
        return Path(settings.output)
    with RunDir.create(settings.output, settings, "reward") as directory:
        folder = directory.path / "reward"
        if directory.is_done:
            return folder
        check_began(directory, lessons(settings.model, train, held, settings.facts))
        rejects.write(directory.path / "rejects.jsonl")
        log.info("%d pairs to train on, %d held out, passed over: %s", len(train), len(held), dict(skipped))
        torch.manual_seed(settings.seed)
        info = info_of(settings)
        model = RewardModel.start(info, settings.lora, settings.head_init, settings.head_init_scale)
        best = fit(model, train, held, settings, directory)
        info.heldout, info.heldout_sha256 = best, digest(held) if held else None
        labelers = label_agreement([*train, *held])
        model.save(folder, reward_card(info, settings, len(train), skipped, labelers))
        probe = (held or train)[:8]
        check_saved(model, folder, probe, settings)
        directory.done()
    return folder


def info_of(settings: RewardSettings) -> RewardInfo:
    """What the model will read, before it is trained."""
    return RewardInfo(
        model=settings.model,
        facts=list(settings.facts),
        template=settings.template or REWARD_TEMPLATE,
        max_facts=settings.max_facts,
        target=settings.target,
    )


# --- data ---


def read_pairs(
    settings: RewardSettings, rejects: Rejects | None = None
) -> tuple[list[Pair], list[Pair], Counter[str]]:
    """Training pairs, held-out pairs, and what was passed over; without loading any model.

    ``rejects`` gets the bad records of both.
    """
    records = read_preferences(settings.data, rejects)
    source = _name(settings.data)
    check_facts(records, settings.facts, source)
    train, skipped = pairs_of(records, settings.target)
    if settings.eval_data is not None:
        held_records = read_preferences(settings.eval_data, rejects)
        check_facts(held_records, settings.facts, _name(settings.eval_data))
        return train, pairs_of(held_records, settings.target)[0], skipped
    train, held = hold_out(train, settings.holdout, settings.seed)
    return train, held, skipped


def read_preferences(data: DataSettings, rejects: Rejects | None = None) -> list[Preference]:
    """All preferences that ``data`` names; ``rejects`` gets the bad ones. Raises DataError."""
    records = load(want="preference", **data.model_dump(), rejects=rejects)
    return [record for record in records if isinstance(record, Preference)]


def check_lengths(settings: RewardSettings, train: Sequence[Pair], held: Sequence[Pair]) -> None:
    """Every text that the run will score must fit ``max_length``; no picture is opened, no weights are read.

    Found in mid-run, one that is too long would end the run, and a resumed one at the same step again. The
    pictures of other models than LLaVA count as one token here.

    Raises:
        RenderError: names the pairs, the longest first, with their tokens.
    """
    if settings.max_length is None:
        return
    info, renderer = info_of(settings), Renderer(load_processor(settings.model))
    found: dict[str, int] = {}
    for pairs, seed in _scored(settings, train, held):
        items = pair_items(pairs, [None] * len(pairs))
        pictured = [pair.image is not None for pair in pairs] * 2
        shown = [
            (i.messages, i.response, info.facts_of(i.id, i.facts, seed), seen)
            for i, seen in zip(items, pictured)
        ]
        lengths = renderer.reward_lengths(shown, info.template)
        for item, length in zip(items, lengths, strict=True):
            if length > settings.max_length:
                found[item.id] = max(length, found.get(item.id, 0))
    if found:
        ordered = sorted(found, key=lambda name: (-found[name], name))
        named = ", ".join(f"{name}: {found[name]}" for name in ordered[:5])
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise RenderError(
            f"{len(found)} pairs exceed max_length {settings.max_length} tokens ({named}{more}), "
            "and a text to score is never cut; raise max_length or drop them"
        )


def _scored(
    settings: RewardSettings, train: Sequence[Pair], held: Sequence[Pair]
) -> Iterator[tuple[Sequence[Pair], str]]:
    """The pairs of every step and those held out, each with the seed that its facts are shown by."""
    for step in range(steps_of(len(train), settings)):
        yield drawn(train, step, settings), f"{settings.seed}/{step}"
    for start in range(0, len(held), 256):
        yield held[start : start + 256], f"eval/{settings.seed}"


def _name(data: DataSettings) -> str:
    return data.path if isinstance(data.path, str) else ", ".join(data.path)


def pair_pictures(pairs: Sequence[Pair], root: str | None) -> list[ImageInput]:
    """The pairs' pictures; the DataError for one that cannot be read names its pair."""
    return open_pictures([p.image for p in pairs], root, [p.id for p in pairs])


def pair_items(pairs: Sequence[Pair], pictures: Sequence[ImageInput]) -> list[ScoreItem]:
    """The chosen responses of all pairs, then the rejected ones; both of a pair share its picture."""
    chosen = [ScoreItem(p.id, p.messages, p.chosen, p.facts, i) for p, i in zip(pairs, pictures)]
    return chosen + [ScoreItem(p.id, p.messages, p.rejected, p.facts, i) for p, i in zip(pairs, pictures)]


# --- training ---


def pair_loss(chosen: Tensor, rejected: Tensor, centre: float) -> Tensor:
    """Mean over n pairs of −log σ(chosen − rejected), plus ``centre`` · |mean of the scores|; (n,) -> ()."""
    mean = torch.cat([chosen, rejected]).mean()
    return -F.logsigmoid(chosen - rejected).mean() + centre * mean.abs()


def steps_of(n: int, settings: RewardSettings) -> int:
    """Optimizer steps of a run on ``n`` pairs."""
    steps = math.ceil(math.ceil(n * settings.epochs) / (settings.batch_size * settings.grad_accum))
    return steps if settings.max_steps is None else min(steps, settings.max_steps)


def drawn(train: Sequence[Pair], step: int, settings: RewardSettings) -> list[Pair]:
    """The pairs of one optimizer step (0-based)."""
    size = settings.batch_size * settings.grad_accum
    last = min((step + 1) * size, math.ceil(len(train) * settings.epochs))
    return [train[i] for i in stream(len(train), settings.seed, step * size, last)]


def fit(
    model: RewardModel, train: list[Pair], held: list[Pair], settings: RewardSettings, directory: RunDir
) -> dict[str, float | int | None] | None:
    """Run the training loop; leaves the best held-out weights in ``model`` and returns their report."""
    total = steps_of(len(train), settings)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.optim.lr,
        betas=settings.optim.betas,
        weight_decay=settings.optim.weight_decay,
    )
    state = State(model, optimizer)
    start = state.resume(directory) if settings.resume else 0
    for step in progress(range(start, total), "reward"):
        torch.manual_seed(step_seed(settings.seed, "step", step))
        metrics = train_step(model, optimizer, drawn(train, step, settings), step, total, settings)
        done = step + 1
        if done == total or done % settings.log_every == 0:
            directory.log(done, **metrics)
        if held and (done == total or done % settings.eval_every == 0):
            found = evaluate(model, held, settings)
            directory.log(done, **{f"eval/{name}": value for name, value in asdict(found).items()})
            state.offer(found)
        if settings.save_every and done % settings.save_every == 0 and done < total:
            directory.save_checkpoint(done, state.save)
    state.restore_best()
    return state.best


def train_step(
    model: RewardModel,
    optimizer: torch.optim.Optimizer,
    pairs: list[Pair],
    step: int,
    total: int,
    settings: RewardSettings,
) -> dict[str, float]:
    """One optimizer step on ``pairs``, ``batch_size`` pairs at a time; returns the step's metrics."""
    optim = settings.optim
    for group in optimizer.param_groups:
        group["lr"] = optim.lr * lr_factor(step, total, optim.warmup_steps, optim.schedule)
    model.activate(learns=True)
    model.lmm.model.train(settings.lora.dropout > 0)
    optimizer.zero_grad(set_to_none=True)
    loss_sum, right, margin, reward = 0.0, 0.0, 0.0, 0.0
    # neighbours of like length share a pass, which saves padding; the gradient is of all of them
    ordered = sorted(pairs, key=lambda pair: (-_characters(pair, model.info), pair.id))
    for start in range(0, len(pairs), settings.batch_size):
        part = ordered[start : start + settings.batch_size]
        pictures = pair_pictures(part, settings.data.images)
        items = pair_items(part, encode_pictures(model.lmm, model.renderer, pictures))
        with (
            checkpointed(model.lmm.model, settings.gradient_checkpointing),
            torch.autocast(model.lmm.device.type, torch.bfloat16, enabled=settings.bf16),
        ):
            scores = model.forward(items, f"{settings.seed}/{step}", settings.max_length)
        chosen, rejected = scores.chunk(2)
        loss = pair_loss(chosen, rejected, settings.centre)
        if not bool(torch.isfinite(loss)):
            named = ", ".join(p.id for p in part[:5])
            raise RewardError(
                f"step {step + 1}: the loss is {loss.item()} on pairs {named}; "
                f"lower optim.lr (now {optim.lr}), or use bfloat16 or float32 instead of float16"
            )
        (loss * len(part) / len(pairs)).backward()
        loss_sum += loss.item() * len(part)
        right += float((chosen > rejected).sum())
        margin += float((chosen - rejected).detach().sum())
        reward += float(scores.detach().mean()) * len(part)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), optim.max_grad_norm)
    optimizer.step()
    n = len(pairs)
    return {
        "loss": loss_sum / n,
        "accuracy": right / n,
        "margin": margin / n,
        "reward_mean": reward / n,
        "grad_norm": float(norm),
        "lr": optimizer.param_groups[0]["lr"],
    }


def _characters(pair: Pair, info: RewardInfo) -> int:
    """About how long the longer of a pair's texts is."""
    facts = info.facts_of(pair.id, pair.facts, 0) or ""
    asked = sum(len(message.content) for message in pair.messages)
    return asked + len(facts) + times_read(info.template) * max(len(pair.chosen), len(pair.rejected))


def evaluate(model: RewardModel, held: list[Pair], settings: RewardSettings) -> PairReport:
    """Score the held-out pairs, with one fixed order of facts so that evaluations compare."""
    root = (settings.eval_data or settings.data).images
    model.lmm.model.eval()
    with torch.autocast(model.lmm.device.type, torch.bfloat16, enabled=settings.bf16):
        return report_pairs(
            model,
            held,
            root,
            seed=settings.seed,
            batch_size=settings.batch_size,
            max_length=settings.max_length,
        )


class State:
    """What a checkpoint holds: weights, optimizer, and the best weights so far with their report."""

    def __init__(self, model: RewardModel, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.best: dict[str, float | int | None] | None = None
        self.best_weights: dict[str, Tensor] = {}

    def weights(self) -> dict[str, Tensor]:
        """Copies of all that learns, by parameter name, each of its parameter's shape."""
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def offer(self, found: PairReport) -> None:
        """Keep the present weights if they agree better with the held-out choices (loss breaks a tie)."""
        best = self.best
        if best is None or (found.accuracy, -found.loss) > (best["accuracy"], -float(best["loss"] or 0)):
            self.best = {k: None if math.isnan(v) else v for k, v in asdict(found).items()}
            self.best_weights = self.weights()

    def restore_best(self) -> None:
        if self.best is not None:
            self._put(self.best_weights)

    def save(self, directory: Path) -> None:
        """Write weights, optimizer and the best report; the best weights only once there are some."""
        save_tensors(directory / "weights.safetensors", self.weights())
        save_state(directory / "optimizer.pt", self.optimizer.state_dict())
        write_json(directory / "state.json", {"best": self.best})
        if self.best is not None:
            save_tensors(directory / "best.safetensors", self.best_weights)

    def resume(self, directory: RunDir) -> int:
        """Go back to the newest checkpoint; returns the steps done."""
        folder = directory.latest_checkpoint()
        done = 0 if folder is None else checkpoint_step(folder)
        directory.truncate_metrics(done)
        if folder is not None:
            device = str(self.model.lmm.device)
            self._put(load_tensors(folder / "weights.safetensors", device))
            self.optimizer.load_state_dict(load_state(folder / "optimizer.pt", device))
            self.best = read_json(folder / "state.json")["best"]
            if self.best is not None:
                self.best_weights = load_tensors(folder / "best.safetensors", device)
        return done

    def _put(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[name])


# --- scoring ---


def report_pairs(
    model: RewardModel,
    pairs: Sequence[Pair],
    root: str | None,
    *,
    seed: int = 0,
    batch_size: int = 64,
    max_length: int | None = None,
    known: dict[tuple[str, str], float] | None = None,
) -> PairReport:
    """Score both responses of every pair, ``batch_size`` pairs at a time, and compare.

    ``known``: scores of (pair's id, response) that are not computed again, such as those of the same pairs
    labelled otherwise; new ones are put there.
    """
    known = {} if known is None else known
    # neighbours of like length share a batch, which saves padding
    ordered = sorted(pairs, key=lambda p: (-_characters(p, model.info), p.id))
    new = [p for p in ordered if not {(p.id, p.chosen), (p.id, p.rejected)} <= known.keys()]
    for start in range(0, len(new), batch_size):
        part = new[start : start + batch_size]
        pictures = encode_pictures(model.lmm, model.renderer, pair_pictures(part, root))
        scores = model.score(
            pair_items(part, pictures),
            seed=f"eval/{seed}",
            batch_size=2 * batch_size,
            max_length=max_length,
        ).tolist()
        known |= {(p.id, p.chosen): score for p, score in zip(part, scores)}
        known |= {(p.id, p.rejected): score for p, score in zip(part, scores[len(part) :])}
    return report(
        [known[p.id, p.chosen] for p in ordered],
        [known[p.id, p.rejected] for p in ordered],
        [_tokens(model, p.chosen) for p in ordered],
        [_tokens(model, p.rejected) for p in ordered],
        [p.cluster for p in ordered],
    )


def _tokens(model: RewardModel, text: str) -> int:
    return len(model.lmm.tokenizer(text, add_special_tokens=False)["input_ids"])


# --- saving ---


def check_saved(model: RewardModel, folder: Path, pairs: list[Pair], settings: RewardSettings) -> None:
    """Read the saved files back beside the trained weights and rescore; RewardError on a difference."""
    root = (settings.eval_data or settings.data).images
    items = pair_items(pairs, encode_pictures(model.lmm, model.renderer, pair_pictures(pairs, root)))
    model.lmm.model.eval()
    expected = model.score(items)
    attach(model.lmm, folder, "reloaded")
    # what the files say it reads, not what it was told
    again = RewardModel(model.lmm, load_head(folder, model.lmm), read_info(folder), "reloaded").score(items)
    model.activate()
    model.lmm.model.delete_adapter("reloaded")
    worst = float((expected - again).abs().max())
    if worst > 1e-4 * max(1.0, float(expected.abs().max())):
        raise RewardError(
            f"{folder}: rescored after saving, scores differ by {worst:.2g}; the files are not usable"
        )
