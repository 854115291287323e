"""Figures of a data set, on one small enough to count by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image as Pil

from data.schema import Example, Facts, Image, Message, Preference, Prompt, Response
from data.stats import file_name, overlap, pictures, quantiles, stats


def image(path: str) -> Image:
    return Image(id=path, path=path)


def example(name: str, path: str | None, *turns: str, split: str | None = None) -> Example:
    messages = [Message(role=("user", "assistant")[k % 2], content=text) for k, text in enumerate(turns)]
    return Example(id=name, image=image(path) if path else None, messages=messages, split=split)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    Pil.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    Pil.new("RGB", (80, 60), "blue").save(tmp_path / "b.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "c.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    return tmp_path


def test_counts_lengths_and_answers() -> None:
    records = [
        example("1", "a.png", "Is it red?", "Yes.", "Why is it so?", "Paint made it red"),
        example("2", "a.png", "Is it blue?", "No"),
        example("3", None, "Which?", "B."),
    ]
    found = stats(records)
    assert found["records"] == 3 and found["kind"] == {"example": 3}
    assert found["answers"] == {"short": {"yes": 1, "other": 1, "no": 1, "B": 1}}
    assert found["lengths"]["turns"]["100%"] == 4 and found["lengths"]["turns"]["mean"] == 2.67
    assert found["lengths"]["answer words"] == {
        "0%": 1, "25%": 1, "50%": 1, "75%": 1, "95%": 4, "100%": 4, "mean": 1.75,
    }  # fmt: skip
    assert found["images"] == {"records without": 1, "different": 1, "records a picture": 2.0}
    assert "splits_overlap" not in found


def test_embedded_pictures_of_one_name_are_told_apart(root: Path) -> None:
    turns = [Message(role="user", content="Q"), Message(role="assistant", content="A")]
    records = [
        Example(
            id=name, image=Image(id="image.png", data=(root / f"{name}.png").read_bytes()), messages=turns
        )
        for name in "abc"
    ]
    found = stats(records)
    # a.png and c.png are equal
    assert found["images"]["different"] == 2 and found["images"]["records a picture"] == 1.5
    assert found["duplicates"]["records"] == {"groups": 1, "in them": 2, "first": [["a", "c"]]}


def test_prompts_and_preferences() -> None:
    ask = [Message(role="user", content="Q")]
    said = [Response(text="a long answer"), Response(text="short")]
    records = [
        Prompt(id="p", question="Q", answer_type="yes", length_class="detail", facts=Facts(captions=["c"])),
        Preference(id="a", messages=ask, responses=said, choices={"overall": 0}),
        Preference(id="b", messages=ask, responses=said, choices={"overall": 1}),
        Preference(id="c", messages=ask, responses=said, choices={"overall": None}),
    ]
    found = stats(records)
    assert found["answers"]["answer_type"] == {"yes": 1}
    assert found["answers"]["length_class"] == {"detail": 1}
    assert found["answers"]["better"] == {"response 1": 1, "response 2": 1, "tie": 1}
    assert found["answers"]["better is"] == {"longer": 1, "shorter": 1}
    assert found["facts"] == {"captions": 1}


def test_files_of_pictures(root: Path) -> None:
    records = [example(str(k), f"{name}.png", "Q", "A") for k, name in enumerate("abca")]
    records.append(example("bad", "bad.png", "Q", "A"))
    found = stats(records, root)
    sizes = found["images"]
    assert sizes["width"]["0%"] == 40 and sizes["width"]["100%"] == 80 and sizes["height"]["mean"] == 40
    assert sizes["formats"] == {"PNG": 3}
    assert sizes["unreadable"]["pictures"] == 1 and "bad.png" in sizes["unreadable"]["first"][0]
    doubles = found["duplicates"]
    assert doubles["records"] == {"groups": 1, "in them": 2, "first": [["0", "3"]]}
    assert doubles["texts"]["in them"] == 5
    # a.png and c.png are one picture; that a.png is shown twice is no second file
    assert doubles["picture files"]["groups"] == 1
    assert doubles["picture files"]["in them"] == 2


def test_a_picture_in_training_and_in_a_benchmark_is_named(root: Path) -> None:
    train = [
        example("t1", "train2017/000000000042.jpg", "Q", "A"),
        example("t2", "c.png", "Q", "A"),
        example("t3", "b.png", "Q", "A"),
    ]
    bench = [Prompt(id="q1", image=image("COCO_val2014_000000000042.jpg"), question="Q")]
    bench.append(Prompt(id="q2", image=image("a.png"), question="Q"))
    by_name = overlap(pictures(train, None), pictures(bench, None))["by_name"]
    assert by_name == {
        "pictures": 1, "first": [{"picture": "000000000042", "here": ["t1"], "there": ["q1"]}],
    }  # fmt: skip
    by_content = overlap(pictures(train, root), pictures(bench, root))["by_content"]
    assert by_content["pictures"] == 1
    assert (by_content["first"][0]["here"], by_content["first"][0]["there"]) == (["t2"], ["q2"])


def test_splits_that_share_a_picture() -> None:
    records = [
        example("1", "a.png", "Q", "A", split="train"),
        example("2", "b.png", "Q", "A", split="train"),
        example("3", "a.png", "R", "A", split="test"),
        example("4", "c.png", "Q", "A", split="val"),
    ]
    found = stats(records)["splits_overlap"]
    assert list(found) == ["test, train"]
    assert found["test, train"]["by_name"]["first"] == [{"picture": "a", "here": ["3"], "there": ["1"]}]


def test_names_of_one_picture() -> None:
    assert file_name(image("x/COCO_val2014_000000000042.jpg")) == file_name(image("000000000042.jpg"))
    assert file_name(Image(id="i", url="http://h/p/q.png")) == "q"


def test_quantiles_are_values_that_occur() -> None:
    assert quantiles([3, 1, 2]) == {"0%": 1, "25%": 1, "50%": 2, "75%": 3, "95%": 3, "100%": 3, "mean": 2.0}
