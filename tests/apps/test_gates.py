"""What is measured of a reward model, with a fake one that scores by a rule."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from align.pairs import Pair, PairReport, report
from apps import gates
from data.jsonl import DataError, read_json, write_records
from data.schema import HALLUCINATION, HELPFULNESS, Image, Message, Preference, Response
from data.world.annotators import Labeler
from data.world.build import read_scenes
from data.world.scene import OBJECTS, Scene


def pair(scene: Scene, name: str, texts: Sequence[str], better: int) -> Preference:
    return Preference(
        id=name,
        image=Image(id=scene.id, path=f"images/{scene.id}.png"),
        messages=[Message(role="user", content="What is in this picture?")],
        responses=[Response(text=text) for text in texts],
        choices={HALLUCINATION: None, HELPFULNESS: better},
    )


@pytest.fixture
def root(tmp_path: Path, world: Path) -> Path:
    """Four test pairs: noisy choices of the second response, clean ones of the first."""
    (tmp_path / "data").symlink_to(world)
    scene = next(iter(read_scenes(world).values()))
    true = scene.objects[0]
    one, two = [name for name in OBJECTS if name not in scene.objects][:2]
    texts = [
        (f"A {true}.", f"A {true} and a {one}."),  # none and one
        (f"A {one} and a {one}.", f"A {one}."),  # one and one, mentioned twice
        (f"A {one}.", f"A {one} and a {two}."),  # one and two
        (f"A {true} here.", f"A {true}."),  # none and none
    ]
    for name, better in (("noisy", 1), ("clean", 0)):
        records = [pair(scene, f"p{i}", both, better) for i, both in enumerate(texts)]
        write_records(tmp_path / f"labels/test_{name}.jsonl", records)
    return tmp_path


@pytest.fixture
def scorer(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A reward model that likes long responses; the list holds what it was asked with."""
    asked: list[Any] = []

    def load(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace()

    def report_pairs(
        model: Any,
        pairs: Sequence[Pair],
        images: str,
        *,
        seed: int,
        batch_size: int,
        known: dict[Any, float],
    ) -> PairReport:
        # what earlier reports scored is at hand for later ones
        assert bool(known) == (len(asked) > 1)
        known[pairs[0].id, pairs[0].chosen] = 0.0
        asked.append(([p.id for p in pairs], images, seed))
        chosen, rejected = [float(len(p.chosen)) for p in pairs], [float(len(p.rejected)) for p in pairs]
        return report(chosen, rejected, [9] * len(pairs), [3] * len(pairs))

    monkeypatch.setattr("align.reward_model.RewardModel.load", load)
    monkeypatch.setattr("align.reward.report_pairs", report_pairs)
    return asked


def test_each_kind_of_pairs_is_measured(root: Path, scorer: list[Any]) -> None:
    found = gates.measure(root, "reward_fact", 5)
    load, noisy, clean, differ = scorer
    assert load == root / "reward_fact"
    images = str(root / "data")
    assert noisy == clean == (["p0", "p1", "p2", "p3"], images, 5)
    assert differ == (["p0", "p2"], images, 5)
    # the second response is the longer one in p0 and p2, the first in p1 and p3
    assert [found[kind]["accuracy"] for kind in ("noisy", "clean", "hallucination")] == [0.5, 0.5, 0.0]
    assert [found[kind]["n"] for kind in ("noisy", "clean", "hallucination")] == [4, 4, 2]
    # no pair is equally long in tokens, and the lengths do vary
    assert found["clean"]["equal_length_accuracy"] is None
    assert math.isfinite(found["clean"]["length_correlation"])
    assert gates.read_report(root, "reward_fact") == found
    json.dumps(read_json(root / "reward_fact_report/results.json"), allow_nan=False)


def test_the_pictures_may_be_others(root: Path, scorer: list[Any]) -> None:
    gates.measure(root, "reward", 5, "blurred")
    assert {images for _, images, _ in scorer[1:]} == {"blurred"}


def test_no_pair_may_differ_in_hallucination(root: Path, scorer: list[Any], world: Path) -> None:
    scene = next(iter(read_scenes(world).values()))
    same = [pair(scene, "p", (f"A {scene.objects[0]} here.", f"A {scene.objects[0]}."), 0)]
    write_records(root / "labels/test_clean.jsonl", same)
    found = gates.measure(root, "reward", 0)["hallucination"]
    assert found.pop("n") == 0
    assert set(found.values()) == {None} and "length_correlation" in found


def test_no_pair_is_left_out_of_a_measurement(tmp_path: Path) -> None:
    scene = Scene("s", "rest", "bedroom", (), 0)
    write_records(tmp_path / "t.jsonl", [pair(scene, f"p{i}", ("a", "b"), 0) for i in range(200)])
    assert len(gates.read_pairs(tmp_path / "t.jsonl")) == 200
    with (tmp_path / "t.jsonl").open("a") as file:
        file.write("{oops\n")
    with pytest.raises(DataError, match=r"t\.jsonl:201: not valid JSON"):
        gates.read_pairs(tmp_path / "t.jsonl")


def test_labelers_agree_with_each_other_as_often_as_chance_has_it(world: Path) -> None:
    scenes = read_scenes(world)
    pairs = []
    for scene in scenes.values():
        absent = next(name for name in OBJECTS if name not in scene.objects)
        true = " ".join(f"A {name}." for name in scene.objects)
        pairs.append(pair(scene, scene.id, (true, f"{true} A {absent}."), 0))
    found = gates.agreement(pairs, scenes)
    assert found["n"] == len(pairs) > 200
    labeler = Labeler()
    # noticed: right unless it slips; unnoticed: what is named alike is a coin's
    right = labeler.notice * (1 - labeler.flip) + (1 - labeler.notice) * 0.5
    assert found["share"] == pytest.approx(right**2 + (1 - right) ** 2, abs=0.1)
    assert gates.agreement([], scenes) == {"share": None, "n": 0}


@pytest.mark.parametrize(("accuracy", "passed"), [(0.5501, True), (0.55, False), (0.4, False), (None, False)])
def test_the_gate(accuracy: float | None, passed: bool) -> None:
    assert gates.passes({"clean": {"accuracy": accuracy}}) is passed
