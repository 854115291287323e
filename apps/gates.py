"""How good a reward model of the built-in world is: noisy choices, clean ones, pairs that differ in hallucination.

A reward model at chance is a failed training and says nothing of plain or fact-augmented RLHF; the
studies gate on these figures (``GATE``) before they compare anything.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.jsonl import read_json, read_records, write_json
from data.schema import Preference
from data.world.annotators import false_objects
from data.world.build import read_scenes

#: a reward model must agree with more than this share of the clean choices
GATE = 0.55


def measure(root: Path, reward: str, seed: int, images: str | None = None) -> dict[str, Any]:
    """Score the test pairs under ``root/labels`` and write ``root/<reward>_report/results.json``.

    ``images``: the image root that this reward model sees, when it is not the world's own.
    """
    from align.config import DataSettings
    from align.pairs import pairs_of
    from align.reward import report_pairs, score_pairs
    from align.reward_model import RewardModel

    model = RewardModel.load(root / reward)
    labels, images = root / "labels", images or str(root / "data")
    found = {
        name: asdict(score_pairs(model, DataSettings(path=str(labels / f"test_{name}.jsonl"), images=images), seed=seed))
        for name in ("noisy", "clean")
    }
    scenes = read_scenes(root / "data")
    clean = [r for r in read_records(labels / "test_clean.jsonl", "preference") if isinstance(r, Preference)]
    differ = [r for r in clean if r.image and _false_counts(r, scenes[r.image.id])]
    pairs, _ = pairs_of(differ, "preferred")
    found["hallucination"] = asdict(report_pairs(model, pairs, images, seed=seed))
    found["agreement"] = agreement(root)
    write_json(root / f"{reward}_report" / "results.json", found)
    return found


def _false_counts(record: Preference, scene: Any) -> bool:
    """Whether the responses differ in the number of different false objects."""
    return len({len(set(false_objects(scene, r.text))) for r in record.responses}) > 1


def agreement(root: Path) -> dict[str, float]:
    """How often two independent simulated labelers choose alike on the test pairs (thesis: 69 %)."""
    from apps.world_commands import annotate

    scenes = read_scenes(root / "data")
    pairs = [r for r in read_records(root / "labels/test_noisy.jsonl", "preference") if isinstance(r, Preference)]
    one, two = (annotate(pairs, scenes, seed=s) for s in (1001, 1002))
    same = sum(a.preferred == b.preferred for a, b in zip(one, two, strict=True))
    return {"share": same / len(pairs), "n": float(len(pairs))}


def read_report(root: Path, reward: str) -> dict[str, Any] | None:
    path = root / f"{reward}_report" / "results.json"
    return read_json(path) if path.exists() else None


def passes(report: dict[str, Any]) -> bool:
    return report["clean"]["accuracy"] > GATE
