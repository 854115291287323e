"""What rounds say on the terminal when they end or wait."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from pathlib import Path

from apps.annotate.store import parse_url, without_password
from apps.rounds.run import MANIFEST, Awaited
from data.jsonl import read_json


def waiting(awaited: Awaited, command: str) -> Iterator[str]:
    """Which labels are awaited where, and the command that goes on with them."""
    if awaited.store is not None:
        images = "" if awaited.images is None else f" --images {shlex.quote(awaited.images)}"
        yield f"round {awaited.number} waits for votes: {awaited.done} of {awaited.count} pairs have theirs"
        store = shlex.quote(without_password(parse_url(awaited.store)))
        yield f"  serve them:         align annotate serve --store {store}{images}"
        # for the last pairs nobody may be left who has neither voted on them nor skipped them
        if share := math.floor(100 * awaited.done / awaited.count) / 100:
            yield f"  or ask for fewer:   labels.share={share:g}, in the recipe or behind the command"
        yield f"  then continue with: {command}"
        return
    layout = f"format {awaited.format}" if awaited.format else "preferences with choices, one a line"
    yield f"round {awaited.number} waits for labels: {awaited.count} records of sampled responses"
    yield f"  to be labelled:     {awaited.samples}"
    yield f"  labels awaited in:  {awaited.file} ({layout})"
    yield f"  then continue with: {command}"


def ended(output: Path) -> Iterator[str]:
    """A line a round, the final policy, and the page of evaluations."""
    manifest = read_json(output / MANIFEST)
    for entry in manifest["rounds"]:
        reward, ppo, labels = entry["reward"], entry["ppo"], entry["labels"]
        agrees = "nothing held out" if reward is None else f"right on {reward['accuracy']:.1%} held out"
        stopped = f", {ppo['stopped']}" if ppo["stopped"] else ""
        yield (
            f"round {entry['round']}: {labels['decided']} choices; reward model {agrees}; "
            f"PPO {ppo['steps']} steps{stopped}"
        )
    policy = manifest["policy"]
    yield f"the policy: model.path={policy['path']} 'model.adapter=[{', '.join(policy['adapter'])}]'"
    if (output / "report/report.html").exists():
        yield f"the page: {output / 'report/report.html'}"
