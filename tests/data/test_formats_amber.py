from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.formats import amber
from data.formats.amber import AmberItem
from data.jsonl import DataError, write_json
from data.schema import Facts, Image, Prompt

ANNOTATIONS: list[dict[str, Any]] = [
    {"id": 1, "type": "generative", "truth": ["sky", "ship", "ship"], "hallu": ["cloud"]},
    {"id": 2, "type": "discriminative-attribute-state", "truth": "yes"},
    {"id": 3, "type": "relation", "truth": "no"},
]
DESCRIBE = {"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."}
SUNNY = {"id": 2, "image": "AMBER_1.jpg", "query": "Is the sky sunny in this image?"}
TOUCHING = {"id": 3, "image": "AMBER_2.jpg", "query": "Is there direct contact between the cup and wall?"}


def folder(path: Path, annotations: list[Any] | None = None, **queries: list[Any]) -> Path:
    """A folder of these files; "query__x" is the file x in the folder query."""
    write_json(path / "annotations.json", ANNOTATIONS if annotations is None else annotations)
    for name, rows in queries.items():
        write_json(path / f"{name.replace('__', '/')}.json", rows)
    return path


def errors(path: Path) -> list[tuple[str, int | None, str | None]]:
    found = [got for _, got in amber.AMBER.pairs(path)]
    return [(Path(e.file or "").name, e.index, e.key) for e in found if isinstance(e, DataError)]


def test_all_queries_of_the_folder_get_their_annotation(tmp_path: Path) -> None:
    folder(tmp_path, query_generative=[DESCRIBE], query_discriminative=[SUNNY, TOUCHING])
    first = Image(id="AMBER_1.jpg", path="AMBER_1.jpg")
    assert amber.read_prompts(tmp_path) == [
        Prompt(
            id="2",
            image=first,
            question="Is the sky sunny in this image?",
            facts=Facts(answer="yes"),
            answer_type="yes",
            source="amber",
        ),
        Prompt(
            id="3",
            image=Image(id="AMBER_2.jpg", path="AMBER_2.jpg"),
            question="Is there direct contact between the cup and wall?",
            facts=Facts(answer="no"),
            answer_type="no",
            source="amber",
        ),
        Prompt(
            id="1",
            image=first,
            question="Describe this image.",
            facts=Facts(objects=["sky", "ship", "ship"]),
            length_class="detail",
            source="amber",
        ),
    ]


def test_the_official_folder_repeats_questions_in_a_file_of_all(tmp_path: Path) -> None:
    queries: dict[str, list[Any]] = {
        "query__query_all": [DESCRIBE, SUNNY, TOUCHING],
        "query__query_generative": [DESCRIBE],
        "query__query_discriminative-relation": [TOUCHING],
    }
    assert [p.id for p in amber.read_prompts(folder(tmp_path, **queries))] == ["1", "2", "3"]
    # the same number for another question is no repeat, and within one file nothing may stand twice
    queries["query__query_generative"] = [DESCRIBE | {"query": "What is it?"}]
    queries["query__query_all"] += [SUNNY]
    assert errors(folder(tmp_path, **queries)) == [
        ("query_all.json", 3, "id"),
        ("query_generative.json", 0, "id"),
    ]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"id": "1"}, "id"),
        ({"type": "descriptive"}, "type"),
        ({"truth": "yes"}, "truth"),
        ({"truth": ["sky", 1]}, "truth.1"),
        ({"hallu": None}, "hallu"),
        ({"type": "relation", "truth": "Yes"}, "truth"),
        ({"id": 2}, "id"),
    ],
)
def test_a_bad_annotation_is_told_at_its_place_and_its_question_too(
    tmp_path: Path, change: dict[str, Any], key: str
) -> None:
    folder(tmp_path, [*ANNOTATIONS[1:], ANNOTATIONS[0] | change], query_generative=[SUNNY, DESCRIBE])
    assert errors(tmp_path) == [("annotations.json", 2, key), ("query_generative.json", 1, "id")]


@pytest.mark.parametrize(
    ("change", "key"),
    [({"image": "../a.jpg"}, "image"), ({"query": 1}, "query"), ({"id": True}, "id"), ({"id": 9}, "id")],
)
def test_a_bad_question_is_told_at_its_place(tmp_path: Path, change: dict[str, Any], key: str) -> None:
    folder(tmp_path, query_generative=[DESCRIBE, TOUCHING | change, SUNNY])
    assert errors(tmp_path) == [("query_generative.json", 1, key)]
    with pytest.raises(DataError) as caught:
        amber.read(tmp_path / "query_generative.json", tmp_path / "annotations.json")
    assert (caught.value.index, caught.value.key) == (1, key)


def test_items_of_one_file_in_its_order_up_to_a_limit(tmp_path: Path) -> None:
    folder(tmp_path, query_generative=[TOUCHING, DESCRIBE, SUNNY | {"query": None}])
    files = (tmp_path / "query_generative.json", tmp_path / "annotations.json")
    assert amber.read(*files, limit=2) == [
        AmberItem(**TOUCHING, type="relation", label="no"),
        AmberItem(**DESCRIBE, type="generative", objects=["sky", "ship", "ship"], tempting=["cloud"]),
    ]


def test_what_is_no_folder_of_amber_is_named(tmp_path: Path) -> None:
    for path, rule in ((tmp_path / "absent", "no folder"), (tmp_path, "no questions")):
        with pytest.raises(DataError, match=rule) as caught:
            amber.read_prompts(path)
        assert caught.value.file == str(path) and caught.value.mend
    write_json(tmp_path / "query_generative.json", [DESCRIBE])
    with pytest.raises(DataError, match="no such file") as caught:
        amber.read_prompts(tmp_path)
    assert caught.value.file == str(tmp_path / "annotations.json")


def test_the_official_folder_as_prompts(shared: Path) -> None:
    path = shared / "data" / "amber"
    names = {file.name for file in path.iterdir()}
    assert names >= amber.AMBER.needs
    got = amber.read_prompts(path, strict=True)
    assert sorted(int(p.id) for p in got) == list(range(1, 15221))
    # as many "yes" and "no" as the annotations have
    assert Counter(p.answer_type for p in got) == {"no": 9427, "yes": 4789, "general": 1004}
    described = {p.id: p for p in got if p.length_class == "detail"}
    assert len(described) == 1004 and all(p.answer_type == "general" for p in described.values())
    assert described["1"].facts.objects == ["sky", "forest", "grass", "person", "lake", "mountain", "road"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)


@settings(max_examples=50, deadline=None)
@given(
    in_query=st.booleans(),
    key=st.sampled_from(["id", "image", "query", "type", "truth", "hallu"]),
    value=JSON,
    at=st.integers(0, 300),
    byte=st.binary(max_size=2),
)
def test_nothing_but_data_errors_comes_out(
    tmp_path_factory: pytest.TempPathFactory, in_query: bool, key: str, value: object, at: int, byte: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated_amber"
    path.mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = [DESCRIBE, SUNNY] if in_query else ANNOTATIONS
    mutated = json.dumps([rows[0] | {key: value}, *rows[1:]])
    folder(path, query_generative=[DESCRIBE, SUNNY])
    file = path / ("query_generative.json" if in_query else "annotations.json")
    file.write_text(mutated)
    got = [found for _, found in amber.AMBER.pairs(path)]
    assert len(got) >= 2 and all(isinstance(found, Prompt | DataError) for found in got)
    data = file.read_bytes()
    file.write_bytes(data[:at] + byte + data[at + 1 :])
    try:
        assert all(isinstance(found, Prompt | DataError) for _, found in amber.AMBER.pairs(path))
    except DataError as error:
        assert error.file == str(file)
