from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pil

from apps import cli
from data.formats import FORMATS
from data.jsonl import DataError, read_json, read_records, write_json, write_records
from data.schema import Facts, Image, Message, Preference, Prompt, Response


def align(*words: object) -> int:
    return cli.main(["data", *map(str, words)])


def row(name: str, **more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>\nQ?"}, {"from": "gpt", "value": "A"}]
    return {"id": name, "image": f"{name}.png", "conversations": turns} | more


def pair(name: str, choice: int | None, **more: Any) -> Preference:
    return Preference(
        id=name,
        image=Image(id=name, path=f"{name}.png"),
        messages=[Message(role="user", content="Q?")],
        responses=[Response(text="a"), Response(text="b")],
        choices={"overall": choice},
        **more,
    )


def test_convert_to_records_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("a", model="v1"), row("b"), row("a")]
    write_json(tmp_path / "in.json", rows)
    own, back = tmp_path / "own.jsonl", tmp_path / "back.json"
    assert align("convert", tmp_path / "in.json", own, "--from", "llava") == 0
    said = capsys.readouterr().out
    assert "3 records written" in said and "not carried over: model (1)" in said
    assert [r.id for r in read_records(own)] == ["a", "b", "a#2"]
    assert align("convert", own, back, "--to", "llava") == 0
    assert read_json(back) == [{k: v for k, v in r.items() if k != "model"} for r in rows]
    assert "does not hold" not in capsys.readouterr().out
    assert align("convert", own, back, "--to", "llava") == 2
    said = capsys.readouterr().err
    assert said.startswith("align: error: ") and "--force" in said
    assert align("convert", own, back, "--to", "llava", "--force") == 0


def test_convert_says_what_is_lost_and_what_is_bad(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [pair("a", 1, facts=Facts(captions=["c"])), pair("b", None), Prompt(id="p", question="Q")]
    write_records(tmp_path / "own.jsonl", records)
    words = ("convert", tmp_path / "own.jsonl", tmp_path / "t.jsonl", "--to", "trl")
    assert align(*words) == 2
    assert "own.jsonl:2: choices: a tie" in capsys.readouterr().err
    assert not (tmp_path / "t.jsonl").exists()
    rejects = tmp_path / "rejects.jsonl"
    assert align(*words, "--max-bad", 0.5, "--rejects", rejects) == 0
    said = capsys.readouterr().out
    assert "1 records written" in said and "1 bad ones left out" in said
    assert "kinds passed over: prompt (1)" in said
    assert "does not hold in full: choices (1), image (1), responses (1)" in said
    assert json.loads(rejects.read_text())["record"]["id"] == "b"


def test_convert_chooses_the_kind_of_the_family(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "in.json", [row("a", caption_type=6, length_bonus=4.0)])
    words = (
        "convert",
        tmp_path / "in.json",
        tmp_path / "o.jsonl",
        "--from",
        "llava_rlhf",
        "--kind",
        "prompt",
    )
    assert align(*words) == 0
    (got,) = read_records(tmp_path / "o.jsonl")
    assert (got.answer_type, got.length_class) == ("no", "detail")
    assert align("convert", tmp_path / "in.json", tmp_path / "t.jsonl", "--from", "llava", "--to", "trl") == 0
    assert json.loads((tmp_path / "t.jsonl").read_text())["messages"][0]["content"] == "Q?"
    capsys.readouterr()
    assert align("convert", tmp_path / "in.json", tmp_path / "x", "--to", "amber") == 2
    assert "can only be read" in capsys.readouterr().err


def test_validate_counts_and_decodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Pil.new("RGB", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    write_json(tmp_path / "in.json", [row("a"), row("b"), row("c"), {"id": "d"}])
    rejects = tmp_path / "r.jsonl"
    words = ("validate", tmp_path / "in.json", "--format", "llava", "--images", tmp_path)
    assert align(*words, "--decode", "--rejects", rejects) == 1
    out = capsys.readouterr()
    assert "1 good, 3 bad" in out.out
    assert "in.json[1]: image: 'b.png' cannot be decoded" in out.err and "in.json[2]" in out.err
    assert [json.loads(line)["index"] for line in rejects.read_text().splitlines()] == [1, 2, 3]
    write_json(tmp_path / "in.json", [row("a"), row("a")])
    assert align("validate", tmp_path / "in.json", "--images", tmp_path) == 0  # the format is detected
    assert "as llava: 2 good, 0 bad" in capsys.readouterr().out


def test_what_is_no_finding_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status 1 says that bad records were found; whatever keeps a command from looking is status 2."""
    write_json(tmp_path / "in.json", [row("a"), {"id": "b"}, {"id": "c"}])
    words = ("validate", tmp_path / "in.json", "--format", "llava")
    for more, found in ((), "1 good, 2 bad"), (("--strict",), "1 good, 1 bad"):
        assert align(*words, *more) == 1
        said = capsys.readouterr()
        assert found in said.out and "align: error" not in said.err
        assert said.err.count("in.json[1]") == 1
    none = tmp_path / "none.json"
    below_a_file = tmp_path / "in.json" / "out"
    wrong = [
        ("validate", none),
        ("inspect", none),
        ("convert", none, tmp_path / "out"),
        ("validate", tmp_path / "in.json", "--format", "yaml"),
        ("validate", tmp_path / "in.json", "--decode"),
        ("convert", tmp_path / "in.json", below_a_file, "--from", "llava", "--max-bad", 1),
    ]
    for command in wrong:
        assert align(*command) == 2, command
        said = capsys.readouterr().err
        assert said.startswith("align: error: ") and said.count("\n") == 1
    monkeypatch.setenv("ALIGN_DEBUG", "1")
    with pytest.raises(DataError, match="no such file"):
        align("inspect", none)


@pytest.mark.parametrize(
    "words",
    [
        ("inspect", "f", "--limit", "-1"),
        ("inspect", "f", "--limit", "0"),
        ("convert", "f", "g", "--limit", "0"),
        ("convert", "f", "g", "--limit", "-3"),
        ("convert", "f", "g", "--limit", "²"),
        ("convert", "f", "g", "--max-bad", "nan"),
        ("convert", "f", "g", "--max-bad", "1.5"),
    ],
)
def test_numbers_out_of_range_are_refused(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        align(*words)
    assert caught.value.code == 2
    assert f"argument {words[-2]}: '{words[-1]}' is not a" in capsys.readouterr().err


def test_validate_documents_its_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        align("validate", "--help")
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "1 when validate found bad records, or none at all; 2 when the command could not be carried out"
        in said
    )


def test_inspect_and_formats_describe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_records(tmp_path / "own.jsonl", [pair("a", 1, source="world"), pair("b", 0)])
    assert align("inspect", tmp_path / "own.jsonl") == 0
    said = capsys.readouterr().out
    assert "format: schema" in said and "kind: preference (2)" in said and "source: world (1)" in said
    assert "different images: 2" in said and '"text": "a"' in said
    assert align("formats") == 0
    said = capsys.readouterr().out
    assert all(name in said for name in FORMATS)
