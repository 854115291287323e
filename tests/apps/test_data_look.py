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
    assert "--images DIR" not in page and "--images DIR" not in capsys.readouterr().out
    first = page
    assert align("show", folder / "llava.json", "--images", folder, "--samples", 3, "--seed", 5) == 0
    assert (folder / "llava.json.html").read_text() != first


def test_show_says_how_to_see_the_pictures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert align("show", folder / "llava.json") == 0
    assert "(--images DIR)" in capsys.readouterr().out
    assert "(--images DIR)" in (folder / "llava.json.html").read_text()


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


def test_no_output_replaces_an_input(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, text = folder / "llava.json", (folder / "llava.json").read_bytes()
    spelled = folder / "." / ".." / folder.name / "llava.json"
    for words in (
        ("validate", source, "--rejects", spelled),
        ("convert", source, folder / "o.jsonl", "--rejects", spelled),
        ("convert", source, spelled, "--force"),
        ("stats", source, "--json", spelled),
        ("show", source, "--output", spelled),
    ):
        assert align(*words) == 2, words
        assert "it is another of the command's files" in capsys.readouterr().err
    assert source.read_bytes() == text
    (folder / "mended.jsonl").write_text("by hand")
    assert align("convert", source, folder / "o.jsonl", "--rejects", folder / "mended.jsonl") == 2
    assert (folder / "mended.jsonl").read_text() == "by hand"


def test_a_kind_that_the_format_has_not_is_an_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert align("convert", folder / "llava.json", folder / "o.jsonl", "--kind", "preference") == 2
    assert "gives 'example' records, not 'preference'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        align("convert", folder / "llava.json", folder / "o.jsonl", "--kind", "exmaple")


def test_prompts_are_made_of_conversations_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pope = folder / "coco_pope_random.json"
    assert align("convert", pope, folder / "p.jsonl", "--prompts") == 0
    assert [record.answer_type for record in read_records(folder / "p.jsonl", "prompt")] == ["no", "yes"]
    row = {"id": "1", "prompt": "Q", "chosen": "A", "rejected": "B"}
    (folder / "pairs.jsonl").write_text(json.dumps(row))
    assert align("convert", folder / "pairs.jsonl", folder / "q.jsonl", "--prompts") == 2
    assert "prompts" in capsys.readouterr().err and not (folder / "q.jsonl").exists()


def test_captions_that_match_no_picture_are_an_error(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = folder / "captions.json"
    captions.write_text(json.dumps({"other.png": ["c"]}))
    words = (folder / "llava.json", folder / "o.jsonl", "--max-bad", 0.5, "--captions", captions)
    assert align("convert", *words) == 2
    assert "no caption for any of the 4 images" in capsys.readouterr().err
    assert not (folder / "o.jsonl").exists()
    captions.write_text(json.dumps({"0.png": ["c"]}))
    assert align("convert", *words) == 0
    assert "captions found for 1 records, none for 3" in capsys.readouterr().out


def test_columns_that_come_late_are_in_the_layout(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Facts, and even pictures, in the last of more rows than settle Parquet's columns."""
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    rows = [{"kind": "example", "id": str(k), "messages": turns} for k in range(1005)]
    rows[-1] |= {"image": {"id": "0.png", "path": "0.png"}, "facts": {"captions": ["c"], "answer": "a"}}
    (folder / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = (folder / "own.jsonl", folder / "o.parquet", "--to", "trl_messages", "--images", folder)
    assert align("convert", *words) == 0, capsys.readouterr().err
    assert align("convert", folder / "o.parquet", folder / "back.jsonl") == 0
    back = read_records(folder / "back.jsonl", "example")
    assert len(back) == 1005 and back[0].image is None and not back[0].facts
    assert back[-1].facts.captions == ["c"] and back[-1].facts.answer == "a"
    assert back[-1].image.data == (folder / "0.png").read_bytes()
    capsys.readouterr()
    pope = ("convert", folder / "coco_pope_random.json", folder / "p.parquet", "--to", "pope")
    assert align(*pope, "--images", folder) == 2
    assert "names pictures, and holds none" in capsys.readouterr().err


def test_mix_leaves_out_what_another_file_has(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = f"sources.a.path={folder}/llava.json"
    assert (
        align("mix", f"output={folder}/sft.jsonl", source, "sources.a.max_bad=0.5", "sources.a.count=3") == 0
    )
    words = [f"output={folder}/rl.jsonl", "kind=prompt", source, "sources.a.given=example"]
    words += ["sources.a.max_bad=0.5", f"sources.a.exclude={folder}/sft.jsonl"]
    assert align("mix", *words) == 0
    (left,) = read_records(folder / "rl.jsonl", "prompt")
    assert left.id not in {record.id for record in read_records(folder / "sft.jsonl")}
    source = read_json(folder / "rl.jsonl.manifest.json")["sources"]["a"]
    assert (source["excluded"], source["bad"], source["given"]) == (3, 2, "example")
    assert source["exclude"]["sha256"]
    assert align("mix", f"output={folder}/x.jsonl", f"sources.a.path={folder}/llava.json", "kind=pope") == 2
    assert "kind" in capsys.readouterr().err
