from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from data.formats import llava
from data.formats.llava_rlhf import read_captions
from data.jsonl import (
    DataError,
    Rejects,
    dump,
    iter_records,
    no_duplicates,
    read_json,
    read_records,
    read_rows,
    record_pairs,
    write_json,
    write_records,
    write_text,
)
from data.schema import Example, Facts, Image, Message, Preference, Prompt, Response, Verdict

TURNS = [Message(role="user", content="Q?\u2028\n"), Message(role="assistant", content=" A\u00e9\U0001f600 ")]
RECORDS = [
    Example(
        id="e", image=Image(id="i", data=b"\x00\xff\x89PNG"), messages=TURNS, facts=Facts(captions=["c"])
    ),
    Prompt(
        id="p", image=Image(id="i", path="a/b.png"), question="Q?", answer_type="no", length_class="detail"
    ),
    Preference(
        id="x",
        messages=TURNS[:1],
        responses=[Response(text="a", complete=False), Response(text="")],
        choices={"hallucination": None, "helpfulness": 1},
        meta={"n": None, "m": [1, {"k": "v"}]},
    ),
    Verdict(id="p", question="Q?", response="r", judge="oracle", score=0.0),
]


def prompts(path: Path, *lines: str | bytes) -> Path:
    path.write_bytes(b"".join((x.encode() if isinstance(x, str) else x) + b"\n" for x in lines))
    return path


def prompt(name: str) -> str:
    return json.dumps({"kind": "prompt", "id": name, "question": "Q?"})


def test_every_kind_survives_a_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    assert write_records(path, RECORDS) == 4
    assert read_records(path) == RECORDS
    assert read_records(path, "prompt") == [RECORDS[1]]
    assert len(path.read_bytes().split(b"\n")) == 5  # a line separator inside a text does not end a line


def test_dump_puts_kind_first_and_leaves_defaults_out_but_keeps_ties() -> None:
    assert list(dump(RECORDS[1])) == ["kind", "id", "image", "question", "answer_type", "length_class"]
    row = dump(RECORDS[2])
    assert row["choices"] == {"hallucination": None, "helpfulness": 1}
    assert "facts" not in row and "annotator" not in row
    assert row["responses"] == [{"text": "a", "complete": False}, {"text": ""}]
    assert dump(RECORDS[0])["facts"] == {"captions": ["c"]}


@pytest.mark.parametrize(
    ("line", "key", "rule"),
    [
        ('{"kind": "prompt", "id": "b"}', "question", "missing"),
        ('{"kind": "prompt", "id": 3, "question": "Q?"}', "id", "valid string, not 3"),
        ('{"kind": "prompt", "id": "b", "question": "Q?", "anser_type": "no"}', "anser_type", "unknown key"),
        ('{"kind": "promt", "id": "b", "question": "Q?"}', "kind", "'promt'"),
        ('{"id": "b", "question": "Q?"}', "kind", "missing"),
        ('{"kind": "prompt", "id": "b", "question": "Q?"', None, "not valid JSON"),
        ("[1]", None, "not a JSON object"),
        (b'{"kind": "prompt", "id": "\xff"}', None, "not UTF-8"),
        ('{"kind": "prompt", "id": "a", "question": "Q?"}', "id", "duplicate id 'a' (first in"),
        ('{"kind": "prompt", "id": "b", "question": "Q?", "image": {"id": "i"}}', "image", "exactly one of"),
    ],
)
def test_a_bad_line_is_named_with_its_key_rule_and_mend(
    tmp_path: Path, line: str | bytes, key: str | None, rule: str
) -> None:
    path = prompts(tmp_path / "bad.jsonl", prompt("a"), "", line)
    with pytest.raises(DataError) as caught:
        read_records(path, strict=True)
    error = caught.value
    assert (error.file, error.line, error.key) == (str(path), 3, key)
    assert rule in error.rule and error.mend
    assert str(error).startswith(f"{path}:3: ") and str(error).endswith(error.mend)


def test_an_unknown_key_is_answered_with_the_nearest_known_one(tmp_path: Path) -> None:
    line = '{"kind": "prompt", "id": "b", "question": "Q?", "anser_type": "no"}'
    with pytest.raises(DataError, match="did you mean 'answer_type'"):
        read_records(prompts(tmp_path / "f", line), strict=True)


def test_one_percent_bad_is_tolerated_and_more_is_not(tmp_path: Path) -> None:
    good = [prompt(str(i)) for i in range(99)]
    path = prompts(tmp_path / "a.jsonl", *good, "{")
    rejects = tmp_path / "rejects.jsonl"
    assert len(read_records(path, rejects=rejects)) == 99  # 1 of 100 is not more than 1 %
    assert json.loads(rejects.read_text())["line"] == 100
    path = prompts(tmp_path / "b.jsonl", *good[:98], "{", "[]")
    with pytest.raises(DataError, match=r"2 of 100 records are bad(.|\n)*b.jsonl:99: not valid JSON"):
        read_records(path)
    assert len(read_records(path, max_bad=0.02)) == 98


def test_rejects_hold_the_original_and_the_reason(tmp_path: Path) -> None:
    row = {"kind": "prompt", "id": "b", "nested": {"é": [1]}}
    path = prompts(tmp_path / "a.jsonl", prompt("a"), json.dumps(row), "no json")
    rejects = tmp_path / "rejects.jsonl"
    with pytest.raises(DataError, match="2 of 3"):
        read_records(path, rejects=rejects)
    first, second = (json.loads(line) for line in rejects.read_text().splitlines())
    assert first["record"] == row
    assert (first["file"], first["line"]) == (str(path), 2)
    assert "question" in first["key"] or "nested" in first["key"]
    assert first["rule"] and first["mend"]
    assert second["record"] == "no json"
    prompts(path, prompt("a"))
    read_records(path, rejects=rejects)
    assert rejects.read_text() == ""  # an old run's rejects do not stay behind


def test_tolerated_records_are_told_and_can_be_written_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = [prompt(str(i)) for i in range(99)]
    first, second = (prompts(tmp_path / name, *good, "{") for name in ("a.jsonl", "b.jsonl"))
    rejects = Rejects()
    for path in (first, second):
        assert len(read_records(path, rejects=rejects)) == 99
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        f"1 of 100 records are bad and left out; the first: {path}:100: not valid JSON (Expecting property "
        "name enclosed in double quotes, column 2); put one whole JSON object on each line"
        for path in (first, second)
    ]
    assert not (tmp_path / "later.jsonl").exists()
    rejects.write(tmp_path / "later.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "later.jsonl").read_text().splitlines()]
    assert [(line["file"], line["line"]) for line in lines] == [(str(first), 100), (str(second), 100)]
    with pytest.raises(DataError):
        read_records(first, strict=True, rejects=rejects)
    assert len(rejects.found) == 3
    caplog.clear()
    read_records(prompts(tmp_path / "c.jsonl", *good))
    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"kind": "prompt", "id": "b", "question": "\\ud83d"}', "question"),
        ('{"kind": "prompt", "id": "b", "question": "Q", "facts": {"captions": ["c", "\\uDE00 c"]}}',
         "facts.captions.1"),
        ('{"kind": "prompt", "id": "b", "question": "Q", "\\udc00": 1}', None),
    ],
)  # fmt: skip
def test_half_a_character_is_a_bad_record(tmp_path: Path, text: str, key: str | None) -> None:
    """JSON can escape a lone surrogate; no tokenizer and no file takes it. A whole pair is a character."""
    path = prompts(tmp_path / "a.jsonl", prompt("a").replace("Q?", "\\ud83d\\ude00"), text)
    rejects = tmp_path / "rejects.jsonl"
    (good,) = read_records(path, max_bad=0.5, rejects=rejects)
    assert isinstance(good, Prompt) and good.question == "\U0001f600"
    reject = json.loads(rejects.read_text(encoding="ascii"))
    assert (reject["line"], reject.get("key"), reject["record"]) == (2, key, json.loads(text))
    assert "lone surrogate" in reject["rule"]
    with pytest.raises(DataError, match=r"a\.jsonl:2: .*lone surrogate"):
        read_records(path, strict=True)


@pytest.mark.parametrize("array", [True, False])
def test_half_a_character_in_a_foreign_file(tmp_path: Path, array: bool) -> None:
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "\ud83d"}]
    rows = [json.dumps({"id": "a", "conversations": [turns[0], {"from": "gpt", "value": "A"}]}),
            json.dumps({"id": "b", "conversations": turns})]  # fmt: skip
    path = tmp_path / "in.json"
    path.write_text(f"[{', '.join(rows)}]" if array else "\n".join(rows))
    place = r"in\.json\[1\]" if array else r"in\.json:2"
    with pytest.raises(DataError, match=place + r": conversations\.1\.value: half a character"):
        llava.read(path, strict=True)
    rejects = tmp_path / "rejects.jsonl"
    assert [r.id for r in llava.read(path, max_bad=0.5, rejects=rejects)] == ["a"]
    assert json.loads(rejects.read_text())["record"]["id"] == "b"


def test_half_a_character_in_a_json_file(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"a.png": ["whole", "\\ud83d"]}')
    with pytest.raises(DataError, match=r"c\.json: a\.png\.1: half a character"):
        read_captions(tmp_path / "c.json")


def test_limit_counts_good_records_and_reads_no_further(tmp_path: Path) -> None:
    path = prompts(tmp_path / "a.jsonl", prompt("a"), prompt("b"), "{", "{")
    assert [r.id for r in read_records(path, limit=2)] == ["a", "b"]
    stream = iter_records(path, strict=True)
    assert next(stream).id == "a"


def test_ids_may_repeat_across_annotators_and_for_verdicts_only(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    two = [RECORDS[2].model_copy(update={"annotator": name}) for name in ("ann", "bob")]
    assert write_records(path, [*two, RECORDS[3], RECORDS[3]]) == 4
    assert len(read_records(path)) == 4
    with pytest.raises(DataError, match="duplicate id 'x'"):
        write_records(path, [two[0], two[0]])
    assert len(read_records(path)) == 4  # the failed write left the file alone
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_writing_is_deterministic_and_respects_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_records(tmp_path / "a", RECORDS)
        write_records(tmp_path / "b", RECORDS)
    finally:
        os.umask(old)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_number_that_json_lacks_is_refused(tmp_path: Path) -> None:
    bad = RECORDS[3].model_copy(update={"score": float("nan")})
    with pytest.raises(DataError, match="cannot be JSON"):
        write_records(tmp_path / "a", [bad])


def test_json_errors_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_text(path, '{\n "a": 1,\n oops}')
    with pytest.raises(DataError) as caught:
        read_json(path)
    assert caught.value.line == 3
    write_json(path, {"b": "é"})
    assert read_json(path) == {"b": "é"}
    with pytest.raises(DataError, match="no such file; check the path"):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize("text", ['[{"a": 1}, 2]', '{"a": 1}\n2\n', '\ufeff [{"a": 1},\n2]'])
def test_rows_come_from_arrays_and_from_lines(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a"
    path.write_text(text, encoding="utf-8")
    (row, value), (second, error) = read_rows(path)
    assert value == {"a": 1} == row.raw
    assert isinstance(error, DataError) and "int" in error.rule
    assert second.number == 1


def test_nothing_in_data_imports_torch() -> None:
    code = (
        "import sys, data.load, data.images, data.formats, apps.data_commands;"
        "bad = {'torch', 'transformers', 'datasets', 'pandas'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_many_duplicates_are_told_in_time(tmp_path: Path) -> None:
    """The first place is looked for for the first of them alone."""
    path = tmp_path / "a.jsonl"
    line = '{"kind": "prompt", "id": "%d", "question": "Q"}\n'
    path.write_text("".join(line % k for k in range(300)) * 2)
    errors = [got for _, got in no_duplicates(record_pairs(path)) if isinstance(got, DataError)]
    assert len(errors) == 300
    assert errors[0].rule == f"duplicate id '0' (first in {path}:1)"
    assert errors[99].rule.endswith(":100)") and errors[299].rule == "duplicate id '299'"


def test_lines_that_are_no_text_stay_bad_when_they_are_read_back(tmp_path: Path) -> None:
    path, rejects = tmp_path / "a.jsonl", tmp_path / "r.jsonl"
    path.write_bytes(b'{"kind": "prompt", "id": "1", "question": "caf\xe9"}\n' + b"[" * 100_000 + b"\n")
    assert read_records(path, max_bad=1, rejects=rejects) == []
    assert len(rejects.read_text().splitlines()) == 2
    assert read_records(rejects, max_bad=1) == []
