"""``align reward audit``: what a finished reward model's scores depend on, as figures, rows and a page.

The run directory holds ``audit.jsonl`` (every response with all its scores), ``audit.json`` (figures with
intervals, and what they say in words), ``audit.md`` and ``report.html``.
"""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from align.audit import (
    FALSE,
    TRUE,
    ModelScorer,
    Source,
    Subject,
    donors,
    measure,
    subjects_of,
)
from align.began import base_digest, check_began, digest_of, weights_digest
from align.cards import LABELERS
from align.checkpoint import CheckpointError, RunDir, progress
from align.config import DataSettings, ModelSettings, RewardAuditSettings, RewardSettings, resolve
from align.launch import one_process
from align.models.lmm import check_model
from align.padding import Padding, of_captions, of_scene
from align.pairs import Pair, by_length, ceiling, check_facts, digest, hold_out, label_agreement, pairs_of
from align.reward import read_preferences
from align.reward_model import RewardInfo, RewardModel, check_files, find_reward, read_info
from apps.audit_page import markdown_of, page_of
from apps.audit_words import LESS, card_with, findings_of
from data.jsonl import DataError, Rejects, read_rows, read_text, write_json, write_rows, write_text
from data.schema import Preference
from data.world.build import read_scenes
from evals.audit import figures
from evals.report import write_report

#: conversations measured between two saves
PART = 32
#: the difference between two changes of one response
CONTRASTS = {LESS: (FALSE, TRUE)}


def run(settings: RewardAuditSettings) -> Path:
    """Measure, and return the run directory. An interrupted audit goes on and ends with the same files.

    Raises:
        DataError: unreadable data, records without the facts that the model reads, or pictures that are no
            scene of ``world``.
        RewardError: no reward model there, or one whose text is not that of its weights.
        ModelError: its base is no multimodal model. CheckpointError: the output is another run's.
        LaunchError: this is one of several processes.
    """
    one_process("reward audit")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    info = read_info(settings.reward_model)
    rejects = Rejects()
    data, records = read_records(settings, info, rejects)
    check_facts(records, info.facts, name_of(data))
    subjects = subjects_of(records)[: settings.limit]
    source = source_of(settings, subjects)
    base = ModelSettings(
        path=info.model.path, adapter=info.model.adapter, dtype=info.model.dtype, bits=info.model.bits,
        device=settings.device, attention=settings.attention, trust_remote_code=settings.trust_remote_code,
    )  # fmt: skip
    check_files(find_reward(settings.reward_model))
    check_model(base)
    if settings.dry_run:
        return Path(settings.output)
    with RunDir.create(settings.output, settings, "reward-audit") as directory:
        if directory.is_done:
            return directory.path
        check_began(directory, belongings(settings.reward_model, base, subjects))
        rejects.write(directory.path / "rejects.jsonl")
        parts = measured(settings, base, subjects, source, data.images, directory.path / "parts")
        rows = [row for part in parts for row in rows_of(part)]
        write_rows(directory.path / "audit.jsonl", rows)
        found = summary(settings, info, data, records, rows)
        report(settings, found, rows, subjects, data.images, directory.path)
        shutil.rmtree(directory.path / "parts")
        directory.done()
    return directory.path


def belongings(reward_model: str, base: ModelSettings, subjects: Sequence[Subject]) -> dict[str, str]:
    """What the scores follow from beside the settings."""
    told = ([s.id, s.asked, s.responses, s.picture, s.facts.model_dump()] for s in subjects)
    return {
        "reward model weights": weights_digest(reward_model),
        "weights of the reward model's base": base_digest(base),
        "responses, pictures or facts": digest_of(told),
    }


def read_records(
    settings: RewardAuditSettings, info: RewardInfo, rejects: Rejects
) -> tuple[DataSettings, list[Preference]]:
    """The records to audit with, and where they are from; ``rejects`` gets the bad ones.

    Raises:
        DataError: none are named, and the reward model's run held none out, or is not beside it, or its data
            has changed since; or what is named cannot be read.
    """
    if settings.data is not None:
        return settings.data, read_preferences(settings.data, rejects)
    file = find_reward(settings.reward_model).parent / "settings.yaml"
    mend = "name preferences that it was not trained on (data.path, data.images)"
    if not file.is_file():
        rule = "no data is named, and the reward model does not lie in its run, which knows what it held out"
        raise DataError(rule, key="data", mend=mend)
    theirs = resolve(RewardSettings, file)
    if theirs.eval_data is not None:
        records = read_preferences(theirs.eval_data, rejects)
        check_held(pairs_of(records, theirs.target)[0], info, name_of(theirs.eval_data))
        return theirs.eval_data, records
    if theirs.holdout == 0:
        raise DataError("no data is named, and the reward run held nothing out", key="data", mend=mend)
    records = read_preferences(theirs.data, rejects)
    pairs = pairs_of(records, theirs.target)[0]
    held = hold_out(pairs, theirs.holdout, theirs.seed)[1]
    check_held(held, info, name_of(theirs.data), pairs)
    ids = {pair.id for pair in held}
    return theirs.data, [record for record in records if record.id in ids]


def check_held(held: Sequence[Pair], info: RewardInfo, source: str, split: Sequence[Pair] = ()) -> None:
    """That ``held``, of the pairs ``split``, are the pairs that the reward run held out.

    A model without their digest comes from a version that knew pictures by their ids.

    Raises DataError: the data has changed since, or ids would have split it otherwise.
    """
    mend = "put it back as it was, or name preferences that were not trained on (data.path, data.images)"
    n = (info.heldout or {}).get("n")
    same = len(held) == n if info.heldout_sha256 is None else digest(held) == info.heldout_sha256
    if not same:
        rule = f"has changed since training: the {len(held)} pairs held out now are not the {n} of then"
        raise DataError(rule, file=source, mend=mend)
    ids = {(pair.image.id, pair.cluster) for pair in split if pair.image is not None}
    if info.heldout_sha256 is None and not len({i for i, _ in ids}) == len({p for _, p in ids}) == len(ids):
        rule = (
            "which pairs an older version held out is not known: pictures have several ids, or ids pictures"
        )
        raise DataError(
            rule, file=source, mend="name preferences that were not trained on (data.path, data.images)"
        )


def name_of(data: DataSettings) -> str:
    """Its files, for messages."""
    return data.path if isinstance(data.path, str) else ", ".join(data.path)


def source_of(settings: RewardAuditSettings, subjects: Sequence[Subject]) -> Source:
    """Where true and false sentences come from: the world's scenes, or a record's and its donor's captions.

    Raises DataError for a picture that is no scene of the world.
    """

    def captions(
        subject: Subject, other: Subject | None, response: str, rng: random.Random, count: int
    ) -> Padding | None:
        return None if other is None else of_captions(subject.facts, other.facts, response, rng, count)

    if settings.world is None:
        return captions
    scenes = read_scenes(Path(settings.world))
    for subject in subjects:
        if subject.image is not None and subject.image.id not in scenes:
            rule = f"the image of {subject.id!r} is not a scene of this world"
            raise DataError(rule, key="world", mend="give the world folder that it came from, or world=null")

    def scene(
        subject: Subject, other: Subject | None, response: str, rng: random.Random, count: int
    ) -> Padding | None:
        image = subject.image
        return None if image is None else of_scene(scenes[image.id], response, rng, count)

    return scene


# --- measuring ---


def measured(
    settings: RewardAuditSettings,
    base: ModelSettings,
    subjects: Sequence[Subject],
    source: Source,
    root: str | None,
    folder: Path,
) -> list[Path]:
    """One file of rows for each part of the subjects, in order; those that exist are kept.

    Raises CheckpointError for a file about other responses.
    """
    files = {start: folder / f"{start:08d}.jsonl" for start in range(0, len(subjects), PART)}
    for start, file in files.items():
        if file.exists():
            check_part(file, subjects[start : start + PART])
    missing = [start for start, file in files.items() if not file.exists()]
    if missing:
        others = donors(subjects, settings.seed)
        scorer = ModelScorer(RewardModel.load(settings.reward_model, base=base), settings.batch_size)
        for start in progress(missing, "audit"):
            rows = measure(scorer, subjects[start : start + PART], others, settings, source, root)
            write_rows(files[start], list(rows))
    return list(files.values())


def rows_of(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a part. Raises DataError for a damaged line."""
    for _, row in read_rows(file):
        if isinstance(row, DataError):
            raise row
        yield row


def check_part(file: Path, subjects: Sequence[Subject]) -> None:
    """Raise CheckpointError unless the part from an earlier start is of these responses and pictures."""
    wanted = [(s.id, text, s.picture) for s in subjects for text in s.responses]
    if [(row["id"], row["text"], row.get("picture")) for row in rows_of(file)] != wanted:
        raise CheckpointError(
            f"{file}: is of other responses or pictures than the data now holds; choose another output, "
            "or give the data that the run was started with"
        )


# --- summing up ---


def summary(
    settings: RewardAuditSettings,
    info: RewardInfo,
    data: DataSettings,
    records: Sequence[Preference],
    rows: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """What ``audit.json`` holds."""
    found = figures(rows, CONTRASTS, n_boot=settings.bootstrap, seed=settings.seed)
    held = " (held out in training)" if settings.data is None else ""
    told = {
        "reward_model": str(find_reward(settings.reward_model)), "facts": list(info.facts),
        "data": f"{name_of(data)}{held}",
        "source": "scenes" if settings.world else "captions", "seed": settings.seed,
    }  # fmt: skip
    found = told | found | {"agreement": agreement(settings, info, records, rows)}
    return found | {"findings": [asdict(finding) for finding in findings_of(found)]}


def agreement(
    settings: RewardAuditSettings,
    info: RewardInfo,
    records: Sequence[Preference],
    rows: Sequence[dict[str, Any]],
) -> dict[str, Any] | None:
    """How the scores agree with the choices, by which response was the longer, and how labelers agree.

    None where no choice is recorded. The question is the one that trained the model, where it was asked.
    """
    known = {row["id"] for row in rows}
    records = [record for record in records if record.id in known]
    asked = {question for record in records for question in record.choices}
    target = info.target if info.target in asked else "preferred"
    records = [r for r in records if len({response.text for response in r.responses}) > 1]
    if all((r.preferred if target == "preferred" else r.choices.get(target)) is None for r in records):
        return None
    pairs = pairs_of(records, target)[0]
    scored = {(row["id"], row["text"]): row for row in rows}

    def column(key: str, of: str) -> list[Any]:
        return [scored[pair.id, getattr(pair, of)][key] for pair in pairs]

    lengths = column("tokens", "chosen"), column("tokens", "rejected")
    clusters = [pair.cluster for pair in pairs]
    bins = by_length(column("score", "chosen"), column("score", "rejected"), *lengths, clusters)
    negated = [[-float(n) for n in side] for side in lengths]
    shorter = by_length(negated[0], negated[1], *lengths, clusters)["all"]
    told = {name: _plain(asdict(share)) for name, share in bins.items()}
    return {
        "target": target, **told, "shorter_is_better": _plain(asdict(shorter)),
        "labelers": labelers_of(settings, pairs),
    }  # fmt: skip


def labelers_of(settings: RewardAuditSettings, pairs: Sequence[Pair]) -> dict[str, Any]:
    """How often two labelers choose alike, where that is from, and what no scores can exceed by it."""
    measured = label_agreement(pairs)
    if settings.label_agreement is not None:
        known: dict[str, Any] = {"value": settings.label_agreement, "source": "settings"}
    elif measured is None:
        known = {"value": LABELERS, "source": "thesis"}
    else:
        known = asdict(measured) | {"source": "measured"}
    return {"low": None, "high": None, "n": 0} | known | {"at_most": ceiling(known["value"])}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in values.items()}


def report(
    settings: RewardAuditSettings,
    found: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    subjects: Sequence[Subject],
    root: str | None,
    folder: Path,
) -> None:
    """Write the figures, the page and the Markdown; with ``card``, the summary into the model's card."""
    write_json(folder / "audit.json", found)
    write_text(folder / "audit.md", markdown_of(found))
    shown = page_of(found, rows, subjects, root, settings.pictures)
    write_report(folder / "report.html", shown)
    if settings.card:
        card = find_reward(settings.reward_model) / "README.md"
        write_text(card, card_with(read_text(card) if card.exists() else "", found))
