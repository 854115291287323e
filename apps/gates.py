"""How good a reward model of the built-in world is: noisy choices, clean ones, false objects.

A reward model at chance is a failed training and says nothing of plain or fact-augmented RLHF; the
studies gate on these figures (``GATE``) before they compare anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.jsonl import read_json, read_records, write_json
from data.schema import Preference
from data.world.annotators import false_objects
from data.world.build import read_scenes
from data.world.scene import Scene

if TYPE_CHECKING:
    from align.pairs import PairReport

#: a reward model must agree with more than this share of the clean choices
GATE = 0.55
#: as in training: the texts of more pairs at once leave the processor's cache, and take longer
PAIRS_AT_ONCE = 8


def measure(root: Path, reward: str, seed: int, images: str | None = None) -> dict[str, Any]:
    """Score the test pairs under ``root/labels`` and write ``root/<reward>_report/results.json``.

    ``images``: the image root that this reward model sees, when it is not the world's own. The figures are
    those of ``align.pairs.PairReport`` for "noisy", "clean" and "hallucination" (the clean choices between
    responses that differ in false objects), None where undefined; "agreement": see :func:`agreement`.
    """
    from align.pairs import pairs_of
    from align.reward import report_pairs
    from align.reward_model import RewardModel

    model = RewardModel.load(root / reward)
    images = images or str(root / "data")
    scenes = read_scenes(root / "data")
    noisy, clean = (read_pairs(root / "labels" / f"test_{name}.jsonl") for name in ("noisy", "clean"))
    differ = [r for r in clean if r.image and _false_counts_differ(r, scenes[r.image.id])]
    found: dict[str, Any] = {}
    # all three are of the same responses
    known: dict[tuple[str, str], float] = {}
    for name, records in (("noisy", noisy), ("clean", clean), ("hallucination", differ)):
        pairs = pairs_of(records, "preferred")[0] if records else []
        scored = None
        if pairs:
            scored = report_pairs(model, pairs, images, seed=seed, batch_size=PAIRS_AT_ONCE, known=known)
        found[name] = figures(scored)
    found["agreement"] = agreement(noisy, scenes)
    write_json(root / f"{reward}_report" / "results.json", found)
    return found


def figures(report: PairReport | None) -> dict[str, float | int | None]:
    """JSON values of a report, None where undefined; of no pairs at all for None."""
    if report is None:
        from align.pairs import PairReport

        return dict.fromkeys((field.name for field in fields(PairReport)), None) | {"n": 0}
    return {k: v if math.isfinite(v) else None for k, v in asdict(report).items()}


def read_pairs(path: Path) -> list[Preference]:
    """All preferences of a file. Raises DataError for a bad line: a measurement leaves no pair out."""
    return [r for r in read_records(path, "preference", strict=True) if isinstance(r, Preference)]


def _false_counts_differ(record: Preference, scene: Scene) -> bool:
    """Whether the responses differ in the number of different false objects."""
    return len({len(set(false_objects(scene, r.text))) for r in record.responses}) > 1


def agreement(pairs: Sequence[Preference], scenes: dict[str, Scene]) -> dict[str, float | int | None]:
    """How often two independent simulated labelers choose alike (thesis: 69 %): ``share`` and ``n``."""
    from apps.world_commands import annotate

    one, two = (annotate(list(pairs), scenes, seed=seed) for seed in (1001, 1002))
    same = sum(a.preferred == b.preferred for a, b in zip(one, two, strict=True))
    return {"share": same / len(pairs) if pairs else None, "n": len(pairs)}


def read_report(root: Path, reward: str) -> dict[str, Any] | None:
    """What ``measure`` wrote, or None before."""
    path = root / f"{reward}_report" / "results.json"
    return read_json(path) if path.exists() else None


def passes(report: dict[str, Any]) -> bool:
    """Whether a reward model agrees with enough of the clean choices (``GATE``)."""
    accuracy = report["clean"]["accuracy"]
    return accuracy is not None and accuracy > GATE
