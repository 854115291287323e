"""What a run began with, beside its settings: under anything else it is not gone on from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.checkpoint import CheckpointError, RunDir
from align.reward_model import find_reward
from data.jsonl import read_json, write_json
from data.schema import Prompt


def belongings(reward_model: str | Path, prompts: Sequence[Prompt], processes: int = 1) -> dict[str, Any]:
    """What a run's results follow from beside its settings; ``reward_model`` is the settings'."""
    ids = hashlib.sha256("\n".join(f"{p.id}\t{p.question}" for p in prompts).encode()).hexdigest()
    judged = hashlib.sha256()
    for prompt in prompts:
        # where the prompt is from decides nothing
        judged.update(prompt.model_dump_json(exclude={"source", "split"}).encode() + b"\n")
    return {
        "processes": processes,
        "reward model weights": weights_digest(reward_model),
        "prompts": ids,
        "pictures, facts or kinds of the prompts": judged.hexdigest(),
    }


def weights_digest(reward_model: str | Path) -> str:
    """sha256 of a reward model's files that its scores depend on."""
    folder, found = find_reward(reward_model), hashlib.sha256()
    for name in ("reward.json", "head.safetensors", "adapter_model.safetensors"):
        found.update((folder / name).read_bytes())
    return found.hexdigest()


def check_belongs(then: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Raise CheckpointError where what lies in ``folder`` was made under other ``belongings``.

    What an older version did not write down is not asked for.
    """
    different = [name for name in now if name in then and then[name] != now[name]]
    if not different:
        return
    how = [
        f"{then[name]} processes, and there are {now[name]}" if name == "processes" else f"other {name}"
        for name in different
    ]
    raise CheckpointError(
        f"{folder}: was made with {'; '.join(how)}, so that the run would not go on as it began; start it as "
        "then, or choose another output"
    )


def check_goes_on(directory: RunDir, now: dict[str, Any]) -> None:
    """:func:`check_belongs` of a run's newest checkpoint, if there is one; no weights are read."""
    folder = directory.latest_checkpoint()
    if folder is not None and (folder / "run.json").exists():
        check_belongs(read_json(folder / "run.json"), now, folder)


def check_began(directory: RunDir, now: dict[str, Any]) -> None:
    """Write down what a run without checkpoints of ours begins with, or :func:`check_belongs` of that."""
    file = directory.path / "began.json"
    if file.exists():
        check_belongs(read_json(file), now, directory.path)
    else:
        write_json(file, now)
