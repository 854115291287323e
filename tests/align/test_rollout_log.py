"""What rollouts.jsonl says of a step, by hand-computed values."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PilImage

from align.rl import Rollout
from align.rollout_log import append_rollouts
from data.schema import Facts, Image, Prompt

WORDS = {5: "A", 6: " dog", 7: "</s>", 0: "<pad>"}


def decode(ids: Any) -> str:
    return "".join(WORDS[i] for i in ids)


def rollout() -> Rollout:
    """Two responses, of three tokens and of one; what stands at padding must not matter."""
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    nine = 9 * (1 - mask)
    return Rollout(
        response_ids=torch.tensor([[5, 6, 7], [7, 0, 0]]),
        mask=mask,
        complete=torch.tensor([True, False]),
        logprobs=torch.tensor([[-1.0, -0.5, -2.0], [-3.0, 0, 0]]),
        entropy=torch.zeros(2, 3),
        ref_logprobs=torch.tensor([[-1.0, -2.0, -1.5], [-3.0, 0, 0]]) - nine,
        values=torch.tensor([[0.25, 7, 7], [0.5, 7, 7]]),
        scores=torch.tensor([1.5, -1.0]),
        parts={"length": torch.tensor([-0.5, 0.0]), "mine": torch.tensor([2.0, 1.0])},
        rewards=torch.tensor([3.0, 0.0]),
        kl=torch.zeros(2, 3),
        advantages=torch.tensor([[1.0, -2.0, 4.0], [0.5, 0, 0]]) + nine,
        returns=torch.tensor([[0.75, 7, 7], [0.0, 7, 7]]),
    )


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_value_by_hand(tmp_path: Path) -> None:
    prompts = [
        Prompt(id="a", question="What?", image=Image(id="i", path="x/i.png"), facts=Facts(captions=["c"])),
        Prompt(id="b", question="And?"),
    ]
    path = tmp_path / "rollouts.jsonl"
    append_rollouts(path, 4, prompts, rollout(), 2, decode, lambda p: f"facts of {p.id}")
    first, second = rows(path)
    # log ratios of the first: 0, 1.5 and -0.5
    k3 = (math.exp(-1.5) - 1 + 1.5) + (math.exp(0.5) - 1 - 0.5)
    assert first.pop("kl_k3") == pytest.approx(k3, abs=1e-6)
    assert first == {
        "step": 4, "id": "a", "image": {"id": "i", "path": "x/i.png"}, "question": "What?",
        "facts": "facts of a", "response": "A dog</s>", "score": 1.5, "reward": 3.0,
        "parts": {"length": -0.5, "mine": 2.0}, "kl": 1.0,
        "moved": [
            {"at": 1, "token": " dog", "log_ratio": 1.5},
            {"at": 2, "token": "</s>", "log_ratio": -0.5},
        ],
        "value": 0.25, "return": 0.75, "advantage": {"mean": 1.0, "min": -2.0, "max": 4.0},
        "tokens": 3, "complete": True,
    }  # fmt: skip
    assert (second["image"], second["response"], second["tokens"]) == (None, "</s>", 1)
    assert (second["kl"], second["kl_k3"], second["moved"]) == (0, 0, [])
    assert second["advantage"] == {"mean": 0.5, "min": 0.5, "max": 0.5} and not second["complete"]


def test_no_more_than_asked_for_and_facts_of_those_alone(tmp_path: Path) -> None:
    seen: list[str] = []

    def shown(prompt: Prompt) -> str | None:
        seen.append(prompt.id)
        return None

    prompts = [Prompt(id="a", question="What?"), Prompt(id="b", question="And?")]
    append_rollouts(tmp_path / "r.jsonl", 1, prompts, rollout(), 1, decode, shown)
    assert [row["id"] for row in rows(tmp_path / "r.jsonl")] == seen == ["a"]


def test_a_picture_that_the_records_hold_is_kept_small_and_once(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    PilImage.new("RGB", (900, 300), "red").save(buffer, "PNG")
    image = Image(id="i", data=buffer.getvalue())
    prompts = [Prompt(id=name, question="What?", image=image) for name in ("a", "b")]
    append_rollouts(tmp_path / "r.jsonl", 1, prompts, rollout(), 2, decode)
    first, second = (row["image"] for row in rows(tmp_path / "r.jsonl"))
    assert first == second and set(first) == {"id", "file"}
    (kept,) = [p for p in tmp_path.rglob("*") if p.is_file() and p.name != "r.jsonl"]
    assert kept == tmp_path / first["file"]
    with PilImage.open(kept) as small:
        assert small.size == (256, 85)
