"""Two models of one chain compared on the same questions and pictures: POPE and free descriptions.

Needs the evaluations' responses, POPE's files and the scenes; the pictures may be gone.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apps.chain import POPE_SPLITS
from data.schema import Image
from data.world.build import read_scenes
from data.world.language import mentioned
from evals.objects import ObjectBenchmark
from evals.pope import PopeBenchmark, read_split
from evals.runner import EvalItem

#: a model's name -> the step that evaluated it
MODELS = {"SFT": "eval_sft", "SFT+": "eval_sft_plus", "RLHF": "eval_ppo", "Fact-RLHF": "eval_ppo_fact"}
#: the same of PPO's siblings, where a chain has them (``apps.siblings``)
SIBLINGS = {"DPO": "eval_dpo", "GRPO": "eval_grpo", "best of 4": "eval_best_of"}
#: decoding's name in the tables -> its folder in an evaluation
DECODING = {"T = 0.7": "t0.7", "greedy": "t0"}


def descriptions(folder: Path, a: str, b: str) -> dict[str, Any]:
    """Model ``a`` minus ``b``, paired by picture, also where both name as much; by decoding's folder.

    A model is one of ``MODELS`` or ``SIBLINGS``, or the name of the step that evaluated it. Left out is a
    decoding that one of them has no answers of.
    """
    scenes = read_scenes(folder / "data")
    steps = MODELS | SIBLINGS
    found = {}
    for how in DECODING.values():
        files = {m: folder / steps.get(m, m) / how / "responses.jsonl" for m in (a, b)}
        if not all(file.exists() for file in files.values()):
            continue
        rows = {m: _rows(file, "describe") for m, file in files.items()}
        images = {row["id"]: row["image"] for row in rows[a]}
        items = tuple(EvalItem(i, Image(id=image, path=f"{image}.png"), "") for i, image in images.items())
        truth = {image: scenes[image].objects for image in images.values()}
        said_a, said_b = _said(rows, a, b)
        found[how] = ObjectBenchmark(items, truth, mentioned).compare(said_a, said_b)
    return found


def pope(folder: Path, a: str, b: str) -> dict[str, Any]:
    """Model ``a`` minus ``b`` on POPE's three splits, by the official rule: F1 and McNemar's test."""
    rows = {m: _rows(folder / MODELS[m] / "t0" / "responses.jsonl", "pope") for m in (a, b)}
    splits = tuple(read_split(folder / f"data/eval/pope_{name}.jsonl") for name in POPE_SPLITS)
    said_a, said_b = _said(rows, a, b)
    return PopeBenchmark(splits).compare(said_a, said_b)


def _said(rows: Mapping[str, list[dict[str, str]]], *models: str) -> list[dict[str, str]]:
    return [{row["id"]: row["response"] for row in rows[m]} for m in models]


@functools.lru_cache(maxsize=16)
def _responses(path: Path) -> tuple[dict[str, str], ...]:
    return tuple(json.loads(line) for line in path.read_text("utf-8").splitlines())


def _rows(path: Path, benchmark: str) -> list[dict[str, str]]:
    return [row for row in _responses(path) if row["benchmark"] == benchmark]
