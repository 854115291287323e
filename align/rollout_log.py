"""``rollouts.jsonl``: some responses of each PPO step, one JSON object a line, to be read by people."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from align.rl import Rollout
from data.jsonl import write_text
from data.schema import Prompt


def append_rollouts(
    path: Path,
    step: int,
    prompts: Sequence[Prompt],
    rollout: Rollout,
    limit: int,
    decode: Callable[[Sequence[int]], str],
) -> None:
    """Append the first ``limit`` responses of a step with their rewards, part by part."""
    lengths = rollout.mask.sum(1).tolist()
    with path.open("a", encoding="utf-8") as file:
        for i, prompt in enumerate(prompts[:limit]):
            row: dict[str, Any] = {
                "step": step,
                "id": prompt.id,
                "image": prompt.image.id if prompt.image else None,
                "question": prompt.question,
                "response": decode(rollout.response_ids[i, : lengths[i]].tolist()),
                "score": float(rollout.scores[i]),
                "reward": float(rollout.rewards[i]),
                "parts": {name: float(part[i]) for name, part in rollout.parts.items()},
                "kl": float((rollout.logprobs[i] - rollout.ref_logprobs[i]).sum()),
                "tokens": lengths[i],
                "complete": bool(rollout.complete[i]),
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def truncate_rollouts(path: Path, step: int) -> None:
    """Forget the responses after ``step`` and a last line torn by a kill."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    write_text(path, "".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= step))
