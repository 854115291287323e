"""The labels of a round: joined with the samples by id or by content, in our layout or another's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PilImage

from align.config import RoundsSettings
from align.pairs import label_agreement, pairs_of
from apps.rounds.labels import awaited_file, write_labels
from data.jsonl import DataError, read_json, read_records, write_records
from data.schema import HALLUCINATION, HELPFULNESS, Facts, Image, Message, Preference, Response


def pair(name: str, *texts: str, image: str | None = "a", question: str = "What is there?") -> Preference:
    return Preference(
        id=name,
        image=Image(id=image, path=f"{image}.png") if image else None,
        messages=[Message(role="user", content=question)],
        responses=[Response(text=text, model="policy") for text in texts],
        choices={},
        facts=Facts(captions=[f"caption of {name}"]),
    )


SAMPLES = [
    pair("one", "A cat.", "A dog."),
    pair("two", "A cat.", "A dog.", image="b"),
    pair("three", "Yes", " No", question="Is it?"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        PilImage.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    write_records(tmp_path / "round-2/sample/samples.jsonl", SAMPLES)
    return tmp_path / "round-2"


def settings(folder: Path, **labels: Any) -> RoundsSettings:
    return RoundsSettings.model_validate({
        "output": str(folder.parent), "model": {"path": "m"},
        "prompts": {"path": "p", "images": str(folder.parent)}, "labels": {"by": "file"} | labels,
    })  # fmt: skip


def labels_of(folder: Path, **labels: Any) -> list[Preference]:
    write_labels(settings(folder, **labels), 2, folder)
    return read_records(folder / "labels/labels.jsonl", "preference", strict=True)  # type: ignore[return-value]


def test_where_labels_are_awaited(folder: Path) -> None:
    assert awaited_file(settings(folder), 2, folder) == folder / "choices.jsonl"
    assert awaited_file(settings(folder, by="app"), 2, folder) == folder / "choices.jsonl"
    assert awaited_file(settings(folder, file="x/r{round}.json"), 2, folder) == Path("x/r2.json")
    assert awaited_file(settings(folder, by="simulated", world="w"), 2, folder) is None


def test_by_id(folder: Path) -> None:
    first = SAMPLES[0].model_copy(
        update={"choices": {HALLUCINATION: None, HELPFULNESS: 1}, "annotator": "me"}
    )
    # written by people: in another order, without facts, and with a space less
    third = pair("three", "No", "Yes", image=None, question="?").model_copy(
        update={"choices": {"overall": 0}, "facts": Facts()}
    )
    write_records(folder / "choices.jsonl", [third, first])
    found = labels_of(folder)
    assert [record.id for record in found] == ["round-2/three", "round-2/one"]
    three, one = found
    assert [r.text for r in three.responses] == [" No", "Yes"] and three.preferred == 0
    assert three.messages == SAMPLES[2].messages and three.image == SAMPLES[2].image
    assert [f.facts.captions for f in found] == [["caption of three"], ["caption of one"]]
    assert (one.preferred, one.annotator, one.responses) == (1, "me", SAMPLES[0].responses)
    summary = read_json(folder / "labels/labels.json")
    assert (summary["sampled"], summary["labelled"], summary["decided"]) == (3, 2, 2)
    assert summary["by"] == "file" and len(summary["sha256"]) == 64


def test_llava_rlhf_keeps_ids(folder: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat is there?"}]
    said = {"output_1": {"from": "gpt", "value": "A cat."}, "output_2": {"from": "gpt", "value": "A dog."}}
    rows = [{"id": "two", "image": "b.png", "conversations": turns, "preference": 2} | said]
    (folder / "choices.jsonl").write_text(json.dumps(rows))
    (found,) = labels_of(folder, format="llava_rlhf")
    assert (found.id, found.preferred, found.facts.captions) == ("round-2/two", 1, ["caption of two"])


def test_trl_has_no_ids_so_picture_question_and_texts_tell(folder: Path) -> None:
    rows = [
        {"images": ["b.png"], "prompt": "What is there?", "chosen": "A dog.", "rejected": "A cat."},
        {"images": ["a.png"], "prompt": "What is there?", "chosen": "A cat.", "rejected": "A dog."},
    ]
    file = folder.parent / "labels-2.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = labels_of(folder, format="trl", file=str(folder.parent / "labels-{round}.jsonl"))
    assert [(r.id, r.responses[r.preferred or 0].text) for r in found] == [
        ("round-2/two", "A dog."),
        ("round-2/one", "A cat."),
    ]


def test_pairs_of_four_responses(folder: Path) -> None:
    four = pair("four", "a", "b", "c", "d")
    write_records(folder / "sample/samples.jsonl", [four])
    rows = [
        {"images": ["a.png"], "prompt": "What is there?", "chosen": "d", "rejected": x} for x in ("a", "b")
    ]
    (folder / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = labels_of(folder, format="trl")
    assert [record.id for record in found] == ["round-2/four/1-4", "round-2/four/2-4"]
    assert [[r.text for r in record.responses] for record in found] == [["d", "a"], ["d", "b"]]


def test_the_order_of_labelling_hides_no_agreement(folder: Path) -> None:
    """Two annotators of three pairs of four responses, each in an order of their own; they differ on one."""
    four = pair("four", "a", "b", "c", "d")
    write_records(folder / "sample/samples.jsonl", [four])
    compared = [("a", "b"), ("a", "c"), ("c", "d")]
    ways = {"one": compared, "two": [("d", "c"), ("b", "a"), ("c", "a")]}
    records = [
        pair("four" if k == 0 else f"four-{k}", *texts).model_copy(
            update={
                "annotator": name,
                "choices": {"overall": texts.index(min(texts)) if texts != ("d", "c") else 0},
            }
        )
        for name, pairs in ways.items()
        for k, texts in enumerate(pairs)
    ]
    write_records(folder / "choices.jsonl", records)
    found = labels_of(folder)
    assert [(r.id.removeprefix("round-2/four/"), r.annotator) for r in found] == [
        ("1-2", "one"), ("1-3", "one"), ("3-4", "one"), ("3-4", "two"), ("1-2", "two"), ("1-3", "two")
    ]  # fmt: skip
    agreed = label_agreement(pairs_of(found, "preferred")[0])
    assert agreed is not None and (agreed.value, agreed.n) == (pytest.approx(2 / 3), 3)


def test_unnamed_annotators_of_one_pair_agree_or_not(folder: Path) -> None:
    rows = [
        {"images": ["a.png"], "prompt": "What is there?", "chosen": x, "rejected": y}
        for x, y in (("A cat.", "A dog."), ("A dog.", "A cat."), ("A cat.", "A dog."))
    ]
    (folder / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # read back as the reward model does: none is taken for the repeat of another
    found = labels_of(folder, format="trl")
    assert [(r.id, r.annotator) for r in found] == [
        ("round-2/one", None), ("round-2/one", "unnamed 2"), ("round-2/one", "unnamed 3")
    ]  # fmt: skip
    agreed = label_agreement(pairs_of(found, "preferred")[0])
    assert agreed is not None and (agreed.value, agreed.n) == (pytest.approx(1 / 3), 1)


def test_one_who_chose_twice_is_not_two(folder: Path) -> None:
    again = [SAMPLES[0].model_copy(update={"id": name, "choices": {"overall": 0}, "annotator": "me"})
             for name in ("one", "once more")]  # fmt: skip
    write_records(folder / "choices.jsonl", again)
    found = labels_of(folder)
    assert [r.id for r in found] == ["round-2/one", "round-2/one#2"]
    assert label_agreement(pairs_of(found, "preferred")[0]) is None


def test_two_annotators_of_one_pair(folder: Path) -> None:
    write_records(
        folder / "choices.jsonl",
        [SAMPLES[0].model_copy(update={"choices": {"overall": i}, "annotator": f"p{i}"}) for i in (0, 1)],
    )
    assert [(r.id, r.annotator) for r in labels_of(folder)] == [("round-2/one", "p0"), ("round-2/one", "p1")]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (pair("one", "A cat.", "A bird."), r"1 of its records compare what round 2 did not sample \('one'\)"),
        (pair("new", "A cat.", "A dog.", question="Why?"), r"did not sample \('new'\); label this round's"),
        (pair("one", "A cat.", "A dog."), "choices: none of 1 records has a choice between its responses"),
    ],
)
def test_labels_that_do_not_do(folder: Path, record: Preference, message: str) -> None:
    decided = {} if "none of" in message else {"overall": 0}
    write_records(folder / "choices.jsonl", [record.model_copy(update={"choices": decided})])
    with pytest.raises(DataError, match=rf"choices\.jsonl: .*{message}"):
        labels_of(folder)
    assert not (folder / "labels").exists()


def test_labels_that_are_left_out_are_kept_and_counted(folder: Path) -> None:
    """One in a hundred is borne with, and people's work does not vanish."""
    samples = [pair(f"s{i}", "A cat.", "A dog.") for i in range(100)]
    write_records(folder / "sample/samples.jsonl", samples)
    write_records(
        folder / "choices.jsonl", [s.model_copy(update={"choices": {"overall": 0}}) for s in samples]
    )
    assert len(labels_of(folder)) == 100
    assert read_json(folder / "labels/labels.json")["rejected"] == 0
    assert (folder / "labels/rejects.jsonl").read_text() == ""
    text = (folder / "choices.jsonl").read_text()
    (folder / "choices.jsonl").write_text(text.replace('"overall": 0', '"overall": 7', 1))
    assert [record.id for record in labels_of(folder)] == [f"round-2/s{i}" for i in range(1, 100)]
    summary = read_json(folder / "labels/labels.json")
    assert (summary["labelled"], summary["rejected"]) == (99, 1)
    (reject,) = map(json.loads, (folder / "labels/rejects.jsonl").read_text().splitlines())
    assert (reject["line"], reject["record"]["id"]) == (1, "s0")
    assert "choices['overall'] is 7" in reject["rule"]


def test_a_broken_file_is_told_by_line(folder: Path) -> None:
    (folder / "choices.jsonl").write_text("{oops\n")
    with pytest.raises(DataError, match=r"choices\.jsonl:1: "):
        labels_of(folder)
