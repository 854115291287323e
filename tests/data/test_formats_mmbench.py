from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.formats import mmbench
from data.jsonl import DataError
from data.schema import Facts, Image, Prompt

COLUMNS = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image")
PICTURE = b"\x89PNG and so on"
ROW = {
    "index": "5", "question": "What is it?", "hint": "", "A": "cat", "B": "dog", "C": "", "D": "",
    "answer": "B", "category": "animals", "image": base64.b64encode(PICTURE).decode(),
}  # fmt: skip


def table(path: Path, *rows: dict[str, str], columns: tuple[str, ...] = COLUMNS) -> Path:
    lines = ["\t".join(columns), *("\t".join(row[name] for name in columns) for row in rows)]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def pairs(path: Path) -> list[Prompt | DataError]:
    return [found for _, found in mmbench.MMBENCH.pairs(path)]


def test_rows_become_prompts_with_options_as_lines(tmp_path: Path) -> None:
    more = {"index": "6", "hint": "Look up.", "C": "bird", "D": "None of them", "answer": "D"}
    path = table(tmp_path / "mm.tsv", ROW, ROW | more | {"image": "5"})
    picture = Image(id="5", data=PICTURE)
    assert mmbench.read_prompts(path) == [
        Prompt(
            id="5",
            image=picture,
            question="What is it?\nA. cat\nB. dog\nAnswer with the letter of the right option.",
            facts=Facts(answer="dog"),
            answer_type="B",
            source="mmbench",
        ),
        Prompt(
            id="6",
            image=picture,
            question="Look up.\nWhat is it?\nA. cat\nB. dog\nC. bird\nD. None of them\n"
            "Answer with the letter of the right option.",
            facts=Facts(answer="None of them"),
            answer_type="D",
            source="mmbench",
        ),
    ]


def test_a_prompt_asks_what_the_evaluation_asks_first(tmp_path: Path) -> None:
    path = table(tmp_path / "mm.tsv", ROW | {"hint": "Look.", "C": "bird"}, ROW | {"index": "6"})
    asked = [choice.prompt(0) for choice in mmbench.read_questions(path)]
    assert [p.question for p in mmbench.read_prompts(path)] == asked


@pytest.mark.parametrize("answer", ["", "nan", None])
def test_without_answers_the_type_is_general(tmp_path: Path, answer: str | None) -> None:
    columns = tuple(name for name in COLUMNS if name != "answer" or answer is not None)
    path = table(tmp_path / "mm.tsv", ROW | {"answer": answer or "", "hint": "nan"}, columns=columns)
    (got,) = mmbench.read_prompts(path)
    assert got.answer_type == "general" and got.facts == Facts() and got.question.startswith("What is it?")


def test_a_fifth_option_has_no_answer_type_and_is_a_fact_all_the_same(tmp_path: Path) -> None:
    row = ROW | {"C": "c", "D": "d", "E": "elk", "answer": "E"}
    (got,) = mmbench.read_prompts(table(tmp_path / "mm.tsv", row, columns=(*COLUMNS, "E")))
    assert got.answer_type == "general" and got.facts == Facts(answer="elk")
    assert "\nE. elk\n" in got.question


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"index": ""}, "index"),
        ({"index": "5"}, "index"),
        ({"question": " "}, "question"),
        ({"A": ""}, "A"),
        ({"B": "nan"}, "A"),
        ({"D": "bird"}, "D"),
        ({"answer": "C"}, "answer"),
        ({"answer": "AB"}, "answer"),
        ({"answer": "b"}, "answer"),
        ({"image": "no base64!"}, "image"),
        ({"image": "1234"}, "image"),
        ({"image": "6"}, "image"),
    ],
)
def test_a_bad_row_stands_at_its_index(tmp_path: Path, change: dict[str, str], key: str) -> None:
    path = table(tmp_path / "mm.tsv", ROW, ROW | {"index": "6"} | change, ROW | {"index": "7", "image": "5"})
    good, bad, after = pairs(path)
    assert isinstance(bad, DataError) and (bad.file, bad.index, bad.key) == (str(path), 1, key) and bad.mend
    assert [p.id for p in (good, after) if isinstance(p, Prompt)] == ["5", "7"]


def test_a_picture_may_be_absent_but_not_pointed_to_then(tmp_path: Path) -> None:
    bare, pointing = pairs(
        table(tmp_path / "mm.tsv", ROW | {"image": ""}, ROW | {"index": "6", "image": "5"})
    )
    assert isinstance(bare, Prompt) and bare.image is None
    assert isinstance(pointing, DataError) and (pointing.index, pointing.key) == (1, "image")


def test_a_row_of_too_few_cells_is_no_question(tmp_path: Path) -> None:
    path = table(tmp_path / "mm.tsv", ROW)
    path.write_text(path.read_text() + "6\tWhat?\n")
    good, bad = pairs(path)
    assert isinstance(good, Prompt) and isinstance(bad, DataError) and "2 cells" in bad.rule


def test_parquet_holds_numbers_and_bytes(tmp_path: Path) -> None:
    row: dict[str, Any] = {k: v or None for k, v in ROW.items()} | {"index": 5, "hint": "nan"}
    expected = mmbench.read_prompts(table(tmp_path / "mm.tsv", ROW))
    for picture in (PICTURE, {"bytes": PICTURE, "path": None}):
        pq.write_table(pa.Table.from_pylist([row | {"image": picture}]), tmp_path / "mm.parquet")
        assert mmbench.read_prompts(tmp_path / "mm.parquet") == expected
    pq.write_table(pa.Table.from_pylist([row | {"question": b"?"}]), tmp_path / "mm.parquet")
    (bad,) = pairs(tmp_path / "mm.parquet")
    assert isinstance(bad, DataError) and (bad.index, bad.key) == (0, "question")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)


@settings(max_examples=50, deadline=None)
@given(key=st.sampled_from(COLUMNS), value=JSON, at=st.integers(0, 200), byte=st.binary(max_size=2))
def test_nothing_but_data_errors_comes_out(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: object, at: int, byte: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp()
    lines = folder / "mutated_mmbench.jsonl"
    rows: list[dict[str, Any]] = [ROW, ROW | {"index": "6", key: value}, ROW | {"index": "7", "image": "5"}]
    lines.write_text("\n".join(json.dumps(row) for row in rows))
    got = pairs(lines)
    assert len(got) == 3 and all(isinstance(found, Prompt | DataError) for found in got)
    assert isinstance(got[0], Prompt)
    path = table(folder / "mutated_mmbench.tsv", ROW, ROW | {"index": "6"})
    data = path.read_bytes()
    path.write_bytes(data[:at] + byte + data[at + 1 :])
    try:
        assert all(isinstance(found, Prompt | DataError) for found in pairs(path))
    except DataError as error:
        assert error.file == str(path)
