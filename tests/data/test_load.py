from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pil

from align.config import DataSettings
from data.jsonl import DataError, Rejects, write_json, write_records, write_rows
from data.load import load
from data.schema import Example, Facts, Image, Message, Preference, Prompt


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Pil.new("RGB", (2, 2)).save(folder / name)
    return folder


def ask(name: str, image: str | None = "a.png") -> Prompt:
    return Prompt(id=name, image=Image(id=image, path=image) if image else None, question="Q?")


def llava_row(name: str, image: str = "a.png") -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>\nQ?"}, {"from": "gpt", "value": "A"}]
    return {"id": name, "image": image, "conversations": turns}


def test_own_files_are_concatenated_and_other_kinds_passed_over(tmp_path: Path, root: Path) -> None:
    turns = [Message(role="user", content="Q"), Message(role="assistant", content="A")]
    write_records(tmp_path / "1.jsonl", [ask("a"), Example(id="a", messages=turns)])
    write_records(tmp_path / "2.jsonl", [ask("b", "b.png"), ask("c", None)])
    paths = [str(tmp_path / "1.jsonl"), str(tmp_path / "2.jsonl")]
    got = load(paths, "prompt", images=root)
    assert [r.id for r in got] == ["a", "b", "c"]
    assert [r.id for r in load(paths, "prompt", images=root, limit=2)] == ["a", "b"]
    assert [r.kind for r in load(paths[0], "example")] == ["example"]
    with pytest.raises(DataError, match=r"no 'preference' records \(found: 3 prompt, 1 example\)"):
        load(paths, "preference")
    with pytest.raises(DataError, match=r"2.jsonl:1: id: duplicate id 'b'"):
        load([paths[1], paths[1]], "prompt", images=root, strict=True)
    with pytest.raises(DataError, match="unknown kind 'prompts'"):
        load(paths, "prompts")


def test_settings_name_the_same_options(tmp_path: Path, root: Path) -> None:
    write_records(tmp_path / "1.jsonl", [ask("a")])
    settings = DataSettings(path=str(tmp_path / "1.jsonl"), images=str(root))
    assert load(**settings.model_dump(), want="prompt") == [ask("a")]


def test_foreign_files_become_the_wanted_kind(tmp_path: Path, root: Path) -> None:
    write_json(tmp_path / "l.json", [llava_row("x"), llava_row("x", "b.png")])
    examples = load(str(tmp_path / "l.json"), "example", format="llava", images=root)
    assert [(r.kind, r.id) for r in examples] == [("example", "x"), ("example", "x#2")]
    twice = [str(tmp_path / "l.json")] * 2
    prompts = load(twice, "prompt", format="llava_rlhf", images=root)
    assert [(r.kind, r.id) for r in prompts] == [("prompt", i) for i in ("x", "x#2", "x#3", "x#4")]
    write_rows(tmp_path / "t.jsonl", [{"prompt": "Q", "chosen": "a", "rejected": "b"}])
    (pair,) = load(str(tmp_path / "t.jsonl"), "preference", format="trl")
    assert isinstance(pair, Preference) and pair.image is None


def test_a_missing_image_is_a_bad_record_at_its_place(tmp_path: Path, root: Path) -> None:
    write_records(tmp_path / "1.jsonl", [ask("a"), ask("b", "none.png"), ask("c", "../a.png")])
    path, rejects = str(tmp_path / "1.jsonl"), tmp_path / "rejects.jsonl"
    with pytest.raises(DataError, match=r"1.jsonl:2: image.path: no file 'none.png'"):
        load(path, "prompt", images=root, strict=True)
    with pytest.raises(DataError, match="2 of 3 records are bad"):
        load(path, "prompt", images=root)
    assert [r.id for r in load(path, "prompt", images=root, max_bad=0.7, rejects=rejects)] == ["a"]
    lines = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert [(line["line"], line["record"]["id"]) for line in lines] == [(2, "b"), (3, "c")]
    assert "leaves the image root" in lines[1]["rule"]


def test_images_that_no_stage_could_open_are_bad_records(tmp_path: Path, root: Path) -> None:
    """A page saved as a picture, an empty file, other bytes, and a URL: found before anything is trained."""
    (root / "page.jpg").write_text("<html>not found</html>")
    (root / "empty.png").write_bytes(b"")
    url = "https://example.org/a.png"
    images = [
        Image(id="good", data=(root / "a.png").read_bytes()),
        Image(id="page", path="page.jpg"),
        Image(id="empty", path="empty.png"),
        Image(id="bytes", data=b"no image"),
        Image(id="url", url=url),
    ]
    write_records(tmp_path / "1.jsonl", [ask(i.id).model_copy(update={"image": i}) for i in images])
    rejects = Rejects()
    path = str(tmp_path / "1.jsonl")
    assert [r.id for r in load(path, "prompt", images=root, max_bad=0.8, rejects=rejects)] == ["good"]
    told = [str(error) for _, error in rejects.found]
    assert told[0] == (
        f"{path}:2: image: 'page.jpg' cannot be decoded (no known image format); "
        "replace the file; it is damaged or no image"
    )
    assert ":3: image: image 'empty' is empty (0 bytes)" in told[1]
    assert ":4: image: 'bytes' cannot be decoded" in told[2]
    assert told[3] == (
        f"{path}:5: image.url: {url!r} is a URL, and URLs are not fetched here; "
        "download it into the image root and give its path"
    )


def test_every_record_of_one_missing_image_is_placed(tmp_path: Path, root: Path) -> None:
    write_records(tmp_path / "1.jsonl", [ask(i, "none.png") for i in "ab"])
    rejects = tmp_path / "rejects.jsonl"
    with pytest.raises(DataError, match="2 of 2"):
        load(str(tmp_path / "1.jsonl"), "prompt", images=root, rejects=rejects)
    assert [json.loads(line)["line"] for line in rejects.read_text().splitlines()] == [1, 2]


def test_paths_without_a_root_are_an_error_at_once(tmp_path: Path) -> None:
    write_records(tmp_path / "1.jsonl", [ask("a")])
    with pytest.raises(DataError, match="no image root is given; set images"):
        load(str(tmp_path / "1.jsonl"), "prompt", max_bad=1.0)


def test_captions_become_facts(tmp_path: Path, root: Path) -> None:
    write_records(tmp_path / "1.jsonl", [ask("a"), ask("b", "b.png")])
    write_json(tmp_path / "c.json", {"a.png": ["one", "two"]})
    got = load(str(tmp_path / "1.jsonl"), "prompt", images=root, captions=str(tmp_path / "c.json"))
    assert [r.facts for r in got] == [Facts(captions=["one", "two"]), Facts()]
