"""``align rounds``: sample, label, reward model, PPO, and again from the policy that came of it.

    rounds.json               the manifest: what each round has come to, and the policy in the end
    start/eval/               the model that the first round starts from, measured
    round-1/ …                prompts.jsonl, ppo_prompts.jsonl: the round's share of the prompts
        sample/ reward/ ppo/ eval/    a run directory a stage
        labels/               the choices that the reward model learns from
    report/                   all evaluations side by side

A stage that has finished is never run again, and one that was killed goes on from its newest checkpoint: with
``--resume`` the same command ends with the same policy, bit for bit where the arithmetic is deterministic.
"""

from __future__ import annotations

import gc
import logging
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from align.checkpoint import RunDir
from align.config import RoundsSettings, RunSettings
from apps import eval_report
from apps.rounds.app_labels import check_store, collect, resolved
from apps.rounds.checks import RoundsError, check, program
from apps.rounds.labels import SUMMARY, awaited_file, write_labels
from apps.rounds.prompts import deal, read_prompts
from apps.rounds.stages import (
    eval_settings,
    folder_of,
    policy_after,
    ppo_settings,
    reward_settings,
    sample_settings,
)
from apps.stages import run_stage
from data.jsonl import Rejects, read_json, write_json, write_text

log = logging.getLogger(__name__)

MANIFEST = "rounds.json"
#: what a round says of PPO: its last step
LAST = ("objective/scores", "objective/rewards", "objective/kl", "response/length")
STAGES: dict[str, Callable[[RoundsSettings, int], RunSettings]] = {
    "sample": sample_settings,
    "reward": reward_settings,
    "ppo": ppo_settings,
    "eval": eval_settings,
}


@dataclass(frozen=True)
class Awaited:
    """Rounds that stand still until people have labelled what was sampled."""

    number: int
    samples: Path
    #: how many records ``samples`` has
    count: int
    #: where their labels are looked for, and in which format (None: the project's own)
    file: Path
    format: str | None
    #: of the annotation app, where it is asked; then ``done`` of the records have their votes
    store: str | None = None
    images: str | None = None
    done: int = 0


def run(settings: RoundsSettings) -> Path | Awaited:
    """Go through the rounds; returns the output, or what is waited for.

    Raises:
        DataError: prompts, labels or benchmarks that cannot be used. RoundsError, and what the stages raise:
            settings that do not fit each other, or a stage that failed.
    """
    output, rejects, prompts = Path(settings.output), Rejects(), None
    if not (output / MANIFEST).exists():
        prompts = read_prompts(settings, rejects)
        check(settings, prompts)
    if settings.dry_run:
        return output
    # the stages report to TensorBoard and W&B, each its own run
    with RunDir.create(output, settings.model_copy(update={"report_to": []}), "rounds") as directory:
        if directory.is_done:
            return output
        if prompts is not None:
            rejects.write(output / "rejects.jsonl")
            manifest: dict[str, Any] = {"rounds": deal(settings, prompts), "policy": None}
            if settings.labels.store is not None:
                manifest["store"] = resolved(settings.labels.store)
            write_json(output / MANIFEST, manifest)
        elif settings.labels.store is not None:
            check_same_store(settings)
        directory.truncate_metrics(0)
        if settings.eval is not None:
            go(settings, 0, "eval")
        for number in range(1, settings.rounds + 1):
            waits = go_round(settings, number)
            if waits is not None:
                return waits
            directory.log(number, **figures(settings, number))
        if compare(settings):
            directory.done()
    return output


def check_same_store(settings: RoundsSettings) -> None:
    """Raise RoundsError for another store than the rounds began with, which would ask for all votes again,
    and what ``check_store`` raises.

    Settings of the same words may name another: a relative path in another directory.
    """
    assert settings.labels.store is not None
    file = Path(settings.output) / MANIFEST
    # an older version did not write it down
    then, now = read_json(file).get("store"), resolved(settings.labels.store)
    if then not in (None, now):
        raise RoundsError(
            f"labels.store {settings.labels.store!r} is {now} from here, and the rounds began with {then}; "
            f"start from the directory that they began in; if the store was moved, name its place in {file}"
        )
    check_store(settings.labels.store, settings.prompts.images)


def go_round(settings: RoundsSettings, number: int) -> Awaited | None:
    """All that is left to do of a round; returns what it waits for, if anything."""
    folder = folder_of(settings, number)
    go(settings, number, "sample")
    # labels may be mended until the reward model has begun to learn from them
    if not (folder / "reward/meta.json").exists():
        file, samples = awaited_file(settings, number, folder), folder / "sample/samples.jsonl"
        count = sum(1 for line in samples.read_text("utf-8").split("\n") if line)
        if not count:
            raise RoundsError(
                f"{samples}: no prompt drew two different responses; begin again elsewhere, with a higher "
                "sample.generate.temperature or more prompts"
            )
        if settings.labels.store is not None:
            votes = collect(settings, number, folder)
            if not votes.enough(settings.labels.share):
                told = settings.labels.store, settings.prompts.images, votes.done
                return Awaited(number, samples, votes.pairs, folder / "choices.jsonl", None, *told)
        if file is not None and not file.exists():
            return Awaited(number, samples, count, file, settings.labels.format)
        write_labels(settings, number, folder)
    note(settings, number, labels=read_json(folder / "labels" / SUMMARY))
    go(settings, number, "reward")
    note(settings, number, reward=heldout(folder))
    go(settings, number, "ppo")
    policy = policy_after(settings, number).model_dump(include={"path", "adapter"})
    note(settings, number, ppo=read_json(folder / "ppo/result.json"), policy=policy)
    if settings.eval is not None:
        go(settings, number, "eval")
    return None


def go(settings: RoundsSettings, number: int, stage: str) -> None:
    """Run one stage, unless it has finished already; what it held of a GPU's memory is let go of."""
    given = STAGES[stage](settings, number)
    folder = Path(given.output)
    if (folder / "DONE").exists():
        return
    name = f"round {number} of {settings.rounds}: {stage}" if number else f"before the first round: {stage}"
    print(name, flush=True)
    began = time.monotonic()
    if stage == "ppo" and settings.launch:
        launch(settings.launch, given)
    else:
        run_stage(stage, given)
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
    print(f"{name}, {time.monotonic() - began:.0f} s", flush=True)


def launch(words: Sequence[str], settings: RunSettings) -> None:
    """PPO in processes of its own: ``words``, then the command that runs it from a recipe beside its folder.

    Raises RoundsError when it ends otherwise than done.
    """
    folder = Path(settings.output)
    recipe = folder.with_suffix(".yaml")
    text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_text(recipe, text)
    command = [program(words[0]), *words[1:], "-m", "apps.cli", "ppo", str(recipe), "--resume"]
    status = subprocess.run(command, check=False).returncode
    if status or not (folder / "DONE").exists():
        raise RoundsError(
            f"{folder}: PPO ended with status {status}, for the reason told above; mend it, and the same "
            "command with --resume goes on from there"
        )


# --- what the rounds have come to ---


def note(settings: RoundsSettings, number: int, **found: Any) -> None:
    """Put what a round has come to into the manifest; its policy is also that of the whole."""
    path = Path(settings.output) / MANIFEST
    manifest = read_json(path)
    manifest["rounds"][number - 1] |= found
    manifest["policy"] = found.get("policy", manifest["policy"])
    write_json(path, manifest)


def heldout(folder: Path) -> dict[str, Any] | None:
    """How the round's reward model agrees with the choices held out; None where none were."""
    found: dict[str, Any] | None = read_json(folder / "reward/reward/reward.json")["heldout"]
    return found


def figures(settings: RoundsSettings, number: int) -> dict[str, float]:
    """A round in numbers: labels, the reward model's accuracy, and PPO's last step."""
    folder = folder_of(settings, number)
    labels = read_json(folder / "labels" / SUMMARY)
    # a round of an older version does not say how many were rejected
    counts = ("sampled", "labelled", "decided", "rejected")
    found = {f"labels/{key}": float(labels[key]) for key in counts if key in labels}
    if (agreement := heldout(folder)) is not None:
        found["reward/accuracy"] = float(agreement["accuracy"])
    last = RunDir(folder / "ppo", ppo_settings(settings, number)).metrics()[-1]
    return found | {f"ppo/{key}": float(last[key]) for key in LAST if key in last}


def compare(settings: RoundsSettings) -> bool:
    """Put all evaluations on one page; whether all that was to be measured is."""
    if settings.eval is None:
        return True
    folders = [folder_of(settings, number) / "eval" for number in range(settings.rounds + 1)]
    missing = [str(folder) for folder in folders if not (folder / "DONE").exists()]
    if missing:
        log.warning("not all is answered in %s: the same command with --resume asks again", missing[0])
        return False
    named = [f"round {n}={folder}" if n else f"start={folder}" for n, folder in enumerate(folders)]
    eval_report.run(named, Path(settings.output) / "report")
    return True
