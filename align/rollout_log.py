"""``rollouts.jsonl``: some responses of each PPO step, one JSON object a line, to be read by people.

A row has ``step``, the prompt's ``id``, ``image``, ``question`` and ``facts`` (the text that the reward model
was shown, or null), the ``response``, its ``tokens`` and whether it is ``complete``; ``score``, ``parts`` and
their sum ``reward``; ``kl`` and ``kl_k3`` (summed over the response) and the tokens ``moved`` most; the
``value`` and the ``return`` ahead of the first token, and the ``advantage`` over the tokens. ``image`` holds
its id and where it is: ``path`` below the image root, ``url``, or ``file`` below the run directory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from align.rl import Rollout, kl_penalty
from data.files import replacing_bytes
from data.jsonl import write_text
from data.schema import Image, Prompt
from data.thumbnail import thumbnail

#: tokens of a response that are named for how far the policy has moved on them
MOVED = 3
#: pixels of a picture that is kept beside the log, because its records hold it as bytes
SIDE = 256


def append_rollouts(
    path: Path,
    step: int,
    prompts: Sequence[Prompt],
    rollout: Rollout,
    limit: int,
    decode: Callable[[Sequence[int]], str],
    shown: Callable[[Prompt], str | None] = lambda prompt: None,
) -> None:
    """Append the first ``limit`` responses of a step with their rewards, part by part.

    ``decode`` turns token ids into text; ``shown`` gives the facts that the reward model read with a prompt.
    """
    k3 = kl_penalty(rollout.logprobs, rollout.ref_logprobs, rollout.mask, "k3").sum(1)
    with path.open("a", encoding="utf-8") as file:
        for i, prompt in enumerate(prompts[:limit]):
            n = int(rollout.mask[i].sum())
            ids, ratio = rollout.response_ids[i, :n], (rollout.logprobs - rollout.ref_logprobs)[i, :n]
            advantages = rollout.advantages[i, :n]
            row: dict[str, Any] = {
                "step": step,
                "id": prompt.id,
                "image": _kept(prompt.image, path.parent) if prompt.image else None,
                "question": prompt.question,
                "facts": shown(prompt),
                "response": decode(ids.tolist()),
                "score": float(rollout.scores[i]),
                "reward": float(rollout.rewards[i]),
                "parts": {name: float(part[i]) for name, part in rollout.parts.items()},
                "kl": float(ratio.sum()),
                "kl_k3": float(k3[i]),
                "moved": _moved(ids, ratio, decode),
                "value": float(rollout.values[i, 0]),
                "return": float(rollout.returns[i, 0]),
                "advantage": {
                    "mean": float(advantages.mean()),
                    "min": float(advantages.min()),
                    "max": float(advantages.max()),
                },
                "tokens": n,
                "complete": bool(rollout.complete[i]),
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _moved(ids: Tensor, ratio: Tensor, decode: Callable[[Sequence[int]], str]) -> list[dict[str, Any]]:
    """The tokens with the largest |log π − log π_ref| (n,), the largest first; none that has not moved."""
    found = ratio.abs().topk(min(MOVED, len(ratio))).indices.tolist()
    return [
        {"at": at, "token": decode([int(ids[at])]), "log_ratio": float(ratio[at])}
        for at in found
        if float(ratio[at]) != 0
    ]


def _kept(image: Image, folder: Path) -> dict[str, str]:
    """Where a picture is found again; one given by bytes is kept, small, below ``folder``."""
    found = {"id": image.id} | {key: value for key in ("path", "url") if (value := getattr(image, key))}
    if image.data is not None:
        name = f"rollout_pictures/{hashlib.sha256(image.data).hexdigest()[:16]}"
        if not (folder / name).exists() and (small := thumbnail(image, None, SIDE)) is not None:
            with replacing_bytes(folder / name) as part:
                part.write_bytes(small)
        found["file"] = name
    return found


def truncate_rollouts(path: Path, step: int) -> None:
    """Forget the responses after ``step`` and a last line torn by a kill."""
    if not path.exists():
        return
    # the tear may lie inside a character
    whole = path.read_bytes()
    lines = whole[: whole.rfind(b"\n") + 1].decode("utf-8").split("\n")[:-1]
    write_text(path, "".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= step))
