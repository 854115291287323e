from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.formats import pope
from data.formats.pope import PopeItem
from data.jsonl import DataError, write_rows
from data.schema import Facts, Image, Prompt

ROW = {"question_id": 1, "image": "a.jpg", "text": "Is there a cat in the image?", "label": "yes"}


@pytest.mark.parametrize("split", pope.SPLITS)
def test_the_official_files_round_trip(shared: Path, tmp_path: Path, split: str) -> None:
    source = shared / "data" / "pope" / f"coco_pope_{split}.json"
    items = pope.read(source)
    assert len(items) == 3000 and {item.split for item in items} == {split}
    # 500 images with three questions of each label (SPEC: 3 positives and 3 negatives an image)
    assert Counter(item.label for item in items) == {"yes": 1500, "no": 1500}
    per_image = Counter((item.image, item.label) for item in items)
    assert len(per_image) == 1000 and set(per_image.values()) == {3}
    assert pope.write(tmp_path / "out.json", items) == 3000
    want = [json.loads(line) for line in source.read_text().splitlines()]
    assert [json.loads(line) for line in (tmp_path / "out.json").read_text().splitlines()] == want
    assert pope.read(tmp_path / "out.json")[0].split is None


def test_keys_of_other_distributions_are_kept(tmp_path: Path) -> None:
    write_rows(tmp_path / "random.jsonl", [ROW | {"category": "x"}])
    (item,) = pope.read(tmp_path / "random.jsonl")
    assert item == PopeItem(**ROW, split="random", category="x")
    pope.write(tmp_path / "o.jsonl", [item])
    assert json.loads((tmp_path / "o.jsonl").read_text()) == ROW | {"category": "x"}


@pytest.mark.parametrize(
    ("row", "key"),
    [
        (ROW | {"question_id": 2, "label": "Yes"}, "label"),
        (ROW | {"question_id": 2, "image": "../a.jpg"}, "image"),
        (ROW, "question_id"),
        ({k: v for k, v in ROW.items() if k != "text"}, "text"),
    ],
)
def test_a_bad_question_stops_the_benchmark(tmp_path: Path, row: dict[str, object], key: str) -> None:
    rows = [ROW] + [ROW | {"question_id": n} for n in range(1000, 2000)]
    write_rows(tmp_path / "a.jsonl", [*rows, row])
    with pytest.raises(DataError) as caught:
        pope.read(tmp_path / "a.jsonl")
    assert (caught.value.line, caught.value.key) == (1002, key)
    assert len(pope.read(tmp_path / "a.jsonl", strict=False)) == 1001


def test_questions_become_prompts_whose_label_is_answer_and_fact(tmp_path: Path) -> None:
    rows = [ROW, ROW | {"question_id": 7, "image": "val/b.jpg", "label": "no", "text": "Is there a dog?"}]
    write_rows(tmp_path / "coco_pope_popular.json", rows)
    shown = {"source": "pope", "split": "popular"}
    assert pope.read_prompts(tmp_path / "coco_pope_popular.json") == [
        Prompt(
            id="1",
            image=Image(id="a.jpg", path="a.jpg"),
            question="Is there a cat in the image?",
            facts=Facts(answer="yes"),
            answer_type="yes",
            **shown,
        ),
        Prompt(
            id="7",
            image=Image(id="val/b.jpg", path="val/b.jpg"),
            question="Is there a dog?",
            facts=Facts(answer="no"),
            answer_type="no",
            **shown,
        ),
    ]


def test_bad_prompts_stand_at_their_line_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    bad = [ROW, ROW | {"question_id": 2, "label": "maybe"}, ROW | {"question_id": 3, "image": "/a.jpg"}]
    write_rows(path, [ROW, *bad, ROW | {"question_id": 4}])
    got = [found for _, found in pope.PROMPTS.pairs(path)]
    assert [(e.line, e.key) for e in got if isinstance(e, DataError)] == [
        (2, "question_id"),
        (3, "label"),
        (4, "image"),
    ]
    assert [p.id for p in got if isinstance(p, Prompt)] == ["1", "4"]


def test_the_official_file_as_prompts(shared: Path) -> None:
    got = pope.read_prompts(shared / "data" / "pope" / "coco_pope_random.json", strict=True)
    assert [p.id for p in got] == [str(n) for n in range(1, 3001)]
    assert Counter(p.answer_type for p in got) == {"yes": 1500, "no": 1500}
    assert got[0].question == "Is there a snowboard in the image?" and got[0].answer_type == "yes"
    assert got[0].image == Image(id="COCO_val2014_000000310196.jpg", path="COCO_val2014_000000310196.jpg")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)


@settings(max_examples=50, deadline=None)
@given(key=st.sampled_from(sorted(ROW)), value=JSON, at=st.integers(0, 300), byte=st.binary(max_size=2))
def test_nothing_but_data_errors_comes_out(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: object, at: int, byte: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated_pope.jsonl"
    rows = [ROW, ROW | {"question_id": 2, key: value}, ROW | {"question_id": 3}]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    got = [found for _, found in pope.PROMPTS.pairs(path)]
    assert len(got) == 3 and all(isinstance(found, Prompt | DataError) for found in got)
    assert isinstance(got[0], Prompt)
    data = path.read_bytes()
    path.write_bytes(data[:at] + byte + data[at + 1 :])
    try:
        assert all(isinstance(found, Prompt | DataError) for _, found in pope.PROMPTS.pairs(path))
    except DataError as error:
        assert error.file == str(path)
