"""``align data inspect | stats | show | mix`` as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image as Pil

from apps import cli
from data.jsonl import read_json, read_records


def align(*words: object) -> int:
    return cli.main(["data", *map(str, words)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = []
    for k in range(6):
        Pil.new("RGB", (30 + k, 20), (40 * k, 0, 0)).save(tmp_path / f"{k}.png")
        rows.append({
            "id": f"r{k}", "image": f"{k}.png",
            "conversations": [
                {"from": "human", "value": f"<image>\nWhat is <b>{k}</b>?"},
                {"from": "gpt", "value": f"Number {k} & co"},
            ],
        })  # fmt: skip
    rows[4]["conversations"][0]["from"] = "robot"
    rows[5]["conversations"][0]["from"] = "robot"
    (tmp_path / "llava.json").write_text(json.dumps(rows))
    lines = [{"question_id": 1, "image": "3.png", "text": "Is there a dog?", "label": "no"}]
    lines.append({"question_id": 2, "image": "9.png", "text": "Is there a cat?", "label": "yes"})
    (tmp_path / "coco_pope_random.json").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def test_inspect_says_what_it_is_what_is_wrong_and_how_to_mend_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert align("inspect", folder / "llava.json") == 0
    said = capsys.readouterr().out
    assert "format: llava (a JSON array whose rows all have conversations)" in said
    assert "read as llava: 4 example good, 2 bad" in said
    assert "[4]: conversations.0.from: unknown speaker 'robot'; use human, gpt or system (and 1 more" in said
    assert align("inspect", folder / "coco_pope_random.json") == 0
    assert "format: pope (JSON lines whose rows all have" in capsys.readouterr().out


def test_inspect_of_what_cannot_be_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "x.json").write_text('[{"conversations": []}, {"conv')
    assert align("inspect", folder / "x.json") == 0
    said = capsys.readouterr().out
    assert "after 1 rows" in said and "not valid JSON" in said
    assert align("inspect", folder / "nothing.json") == 2
    assert "no such file" in capsys.readouterr().err


def test_stats_names_pictures_that_a_benchmark_has_too(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pope, out = folder / "coco_pope_random.json", folder / "figures.json"
    assert align("stats", folder / "llava.json", "--images", folder, "--against", pope, "--json", out) == 0
    said = capsys.readouterr().out
    assert "records: 4" in said and "width: 0% 30" in said
    assert "picture: 3; here: r3; there: 1" in said
    found = read_json(out)
    assert found["against"][str(pope)]["by_name"]["pictures"] == 1


def test_show_writes_a_page_of_samples(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert align("show", folder / "llava.json", "--images", folder, "--samples", 3) == 0
    page = (folder / "llava.json.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 3
    # texts are texts
    assert "&lt;b&gt;" in page and "<b>1</b>" not in page
    first = page
    assert align("show", folder / "llava.json", "--images", folder, "--samples", 3, "--seed", 5) == 0
    assert (folder / "llava.json.html").read_text() != first


def test_mix_from_a_recipe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = folder / "mix.yaml"
    recipe.write_text(
        f"output: {folder}/out.jsonl\nsources:\n  a: {{path: {folder}/llava.json, count: 2, max_bad: 0.5}}\n"
    )
    assert align("mix", recipe, "sources.a.count=3") == 0
    assert "3 records written" in capsys.readouterr().out
    assert len(read_records(folder / "out.jsonl", "example")) == 3
    assert align("mix", recipe) == 2
    assert "exists already" in capsys.readouterr().err
    assert align("mix", recipe, "--force", "sources.a.cuont=3") == 2
    assert "count" in capsys.readouterr().err


def test_convert_tells_the_format_and_why(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = folder / "own.jsonl"
    assert align("convert", folder / "llava.json", own, "--max-bad", 0.5) == 0
    assert "llava (a JSON array whose rows all have conversations)" in capsys.readouterr().out
    (folder / "odd.json").write_text('[{"a": 1}]')
    assert align("convert", folder / "odd.json", folder / "o.jsonl") == 2
    assert "--format" in capsys.readouterr().err
    assert align("convert", folder / "llava.json", folder / "p.jsonl", "--set", "x=1", "--from", "llava") == 2
    assert "llava takes no 'x'" in capsys.readouterr().err


def test_parquet_and_a_data_set_s_folder(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (folder / "llava.json", "--max-bad", 0.5, "--images", folder, "--to", "trl_messages")
    assert align("convert", words[0], folder / "d.parquet", *words[1:]) == 0
    assert align("convert", words[0], folder / "set", *words[1:], "--dataset") == 0
    assert align("convert", folder / "d.parquet", folder / "back.jsonl") == 0
    back = read_records(folder / "back.jsonl", "example")
    assert [r.messages[1].content for r in back] == [f"Number {k} & co" for k in range(4)]
    assert [r.image.data for r in back] == [(folder / f"{k}.png").read_bytes() for k in range(4)]
    assert (folder / "set/README.md").read_text().startswith("---\n")
    assert align("convert", folder / "own.jsonl", folder / "x.parquet") == 2
    capsys.readouterr()
    assert align("convert", words[0], folder / "y.parquet", "--max-bad", 0.5) == 2
    assert "add --to trl" in capsys.readouterr().err
