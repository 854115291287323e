"""Mixtures: exact counts, one order from the seed, a manifest that says what is in them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from data.jsonl import DataError, read_json, read_records, write_records
from data.mix import MixSettings, mix, shares
from data.schema import Example, Image, Message


def examples(name: str, n: int, **more: Any) -> list[Example]:
    turns = [Message(role="user", content="Q"), Message(role="assistant", content="A")]
    return [
        Example(id=f"{k}", image=Image(id=f"{name}{k}", path=f"{name}{k}.jpg"), messages=turns, **more)
        for k in range(n)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_records(tmp_path / "a.jsonl", examples("a", 10))
    write_records(tmp_path / "b.jsonl", examples("b", 5, source="own"))
    rows = [{"id": "r", "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}]
    (tmp_path / "c.json").write_text(json.dumps(rows * 4))
    return tmp_path


def settings(folder: Path, **changes: Any) -> MixSettings:
    base: dict[str, Any] = {
        "output": str(folder / "out.jsonl"),
        "sources": {
            "a": {"path": str(folder / "a.jsonl"), "image_prefix": "pictures/a", "count": 6},
            "b": {"path": str(folder / "b.jsonl")},
            "c": {"path": str(folder / "c.json"), "count": 2},
        },
    }
    return MixSettings.model_validate(base | changes)


def test_counts_order_ids_and_manifest(folder: Path) -> None:
    manifest = mix(settings(folder))
    records = read_records(folder / "out.jsonl", "example", strict=True)
    assert len(records) == 13
    of = [record.id.split("/")[0] for record in records]
    assert {name: of.count(name) for name in "abc"} == {"a": 6, "b": 5, "c": 2}
    assert of != sorted(of)
    assert {r.source for r in records} == {"a", "own", "c"}
    assert all(r.image.path.startswith("pictures/a/a") for r in records if r.id.startswith("a/"))
    assert manifest == read_json(folder / "out.jsonl.manifest.json")
    output = (folder / "out.jsonl").read_bytes()
    assert manifest["output"] == {
        "file": "out.jsonl", "records": 13, "sha256": hashlib.sha256(output).hexdigest(),
    }  # fmt: skip
    c = manifest["sources"]["c"]
    assert (c["format"], c["records"], c["taken"], c["share"]) == ("llava", 4, 2, 2 / 13)
    assert c["sha256"] == hashlib.sha256((folder / "c.json").read_bytes()).hexdigest()


def test_the_same_settings_give_the_same_bytes_and_another_seed_others(folder: Path) -> None:
    mix(settings(folder))
    first = (folder / "out.jsonl").read_bytes()
    mix(settings(folder))
    assert (folder / "out.jsonl").read_bytes() == first
    mix(settings(folder, seed=1))
    assert (folder / "out.jsonl").read_bytes() != first


def test_repeats_take_all_once_before_any_again(folder: Path) -> None:
    given = settings(folder, sources={"b": {"path": str(folder / "b.jsonl"), "count": 12, "repeat": True}})
    mix(given)
    ids = [record.id for record in read_records(folder / "out.jsonl", strict=True)]
    assert sorted(i for i in ids if "@" not in i) == [f"b/{k}" for k in range(5)]
    assert sorted(i.split("@")[0] for i in ids if i.endswith("@2")) == [f"b/{k}" for k in range(5)]
    assert sum(i.endswith("@3") for i in ids) == 2


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.floats(0.01, 100), min_size=1),
    st.integers(1, 10_000),
)
def test_weights_share_out_the_total_exactly(weights: dict[str, float], total: int) -> None:
    sources = {name: {"path": name, "weight": weight, "repeat": True} for name, weight in weights.items()}
    found = shares(
        MixSettings.model_validate({"output": "o", "total": total, "sources": sources}),
        dict.fromkeys(weights, 1),
    )
    assert sum(found.values()) == total
    for name, weight in weights.items():
        assert abs(found[name] - total * weight / sum(weights.values())) < 1


def test_counts_come_first_and_weights_share_the_rest(folder: Path) -> None:
    sources = {
        "a": {"path": "a", "count": 10},
        "b": {"path": "b", "weight": 3},
        "c": {"path": "c", "weight": 1},
    }
    given = MixSettings.model_validate({"output": "o", "total": 50, "sources": sources})
    assert shares(given, {"a": 10, "b": 100, "c": 100}) == {"a": 10, "b": 30, "c": 10}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"sources": {"a": {"path": "a.jsonl", "count": 11}}},
            "sources.a: 11 records are wanted, and it holds 10",
        ),
        ({"total": 3}, "total: the counts make 13 records"),
        ({"total": 99}, "total: the counts make 13 records"),
        ({"kind": "prompt", "sources": {"a": {"path": "a.jsonl"}}}, "no record is taken"),
        ({"sources": {"x": {"path": "nothing.json"}}}, "sources.x"),
    ],
)
def test_what_cannot_be_mixed_is_named(
    folder: Path, changes: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(DataError) as error:
        mix(settings(folder, **changes))
    assert said in str(error.value)
    assert not (folder / "out.jsonl").exists()


def test_settings_that_contradict_themselves(folder: Path) -> None:
    with pytest.raises(ValidationError, match="weights share out a total"):
        settings(folder, sources={"a": {"path": "a", "weight": 1}})
    with pytest.raises(ValidationError, match="count and weight are both given"):
        settings(folder, total=3, sources={"a": {"path": "a", "weight": 1, "count": 2}})


def test_captions_become_facts(folder: Path) -> None:
    (folder / "captions.json").write_text(json.dumps({"b0.jpg": ["one", "two"]}))
    source = {"path": str(folder / "b.jsonl"), "captions": str(folder / "captions.json")}
    manifest = mix(settings(folder, sources={"b": source}))
    held = [r.facts.captions for r in read_records(folder / "out.jsonl")]
    assert sorted(held) == [[], [], [], [], ["one", "two"]]
    assert manifest["sources"]["b"]["without_captions"] == 4
