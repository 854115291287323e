"""Pairs into the store: any format, all of a file or nothing, the same file twice."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pil
from sqlalchemy import select

from apps.annotate.errors import StoreError
from apps.annotate.imports import Imported, Wish, import_pairs, read_scores
from apps.annotate.results import Task
from apps.annotate.tables import pairs
from data.convert import Source
from data.errors import DataError
from data.formats import choose
from data.jsonl import write_records, write_rows
from data.schema import Image, Preference, Prompt
from tests.apps.annotate.conftest import MakeProject, Project, pair


@pytest.fixture
def empty(make_project: MakeProject) -> Project:
    return make_project(0)


def records_of(project: Project) -> list[Preference]:
    with project.service.store.read() as connection:
        found = connection.scalars(select(pairs.c.record).order_by(pairs.c.n))
        return [Preference.model_validate_json(record) for record in found]


def add(project: Project, records: list[Any], role: str = "work", **policy: Any) -> Imported:
    file = project.folder / "given.jsonl"
    write_records(file, records)
    source = Source(file, None, "preference", images=project.folder / "images")
    return import_pairs(project.service.store, source, role, **policy)


def decided(count: int) -> list[Preference]:
    return [pair(f"{k}", choices={"overall": k % 2}, annotator="somebody") for k in range(count)]


@pytest.mark.parametrize("name", ["trl", "llava_rlhf"])
def test_pairs_of_other_formats(empty: Project, name: str) -> None:
    file = empty.folder / "theirs.json"
    choose(name).write(file, decided(5))
    source = Source(file, choose(name), "preference", images=empty.folder / "images")
    assert import_pairs(empty.service.store, source).added == 5
    found = records_of(empty)
    assert [r.messages for r in found] == [r.messages for r in decided(5)]
    assert all({s.text for s in r.responses} == {"A red cat.", "A red cat and a dog."} for r in found)
    # labels are made here
    assert all(r.choices == {} and r.annotator is None for r in found)


def test_the_same_file_twice_adds_nothing(empty: Project) -> None:
    assert add(empty, decided(3)) == Imported(added=3)
    assert add(empty, decided(4)) == Imported(added=1, known=3)
    # other labels of the same pairs are the same pairs
    assert add(empty, [record.model_copy(update={"choices": {}}) for record in decided(4)]).known == 4


def test_other_contents_under_a_known_id(empty: Project) -> None:
    add(empty, decided(3))
    with pytest.raises(DataError, match="other contents"):
        add(empty, [pair("new"), pair("1", texts=("Another.", "One more."))])
    with pytest.raises(DataError, match="another role"):
        add(empty, [pair("q", choices={"overall": 0})], "gold")
        add(empty, [pair("q", choices={"overall": 0})], "qualification")
    # nothing of the files that failed
    assert len(records_of(empty)) == 4


def test_all_or_nothing_and_nobody_is_given_a_part(empty: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apps.annotate.imports.BATCH", 10)
    seen: list[Any] = []

    def watch(records: Any) -> Any:
        for k, record in enumerate(records):
            if k == 35:
                seen.append(empty.service.next_task(empty.user("ann")))
                seen.append(len(records_of(empty)))
            yield record

    # the last records are bad: no images
    bad = [pair(f"b{k}", image=Image(id="x", path="none.png")) for k in range(4)]
    with pytest.raises(DataError, match="4 of 44 records are bad"):
        add(empty, [*decided(40), *bad], track=watch)
    assert not isinstance(seen[0], Task) and seen[1] == 30
    assert records_of(empty) == []
    assert add(empty, [*decided(40), *bad], max_bad=0.1, track=watch).added == 40
    assert isinstance(empty.service.next_task(empty.user("ann")), Task)


def test_two_imports_at_once_lose_nothing_in_silence(empty: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apps.annotate.imports.BATCH", 2)

    def another(records: Any) -> Any:
        for k, record in enumerate(records):
            if k == 5:
                assert add(empty, [pair("other")]) == Imported(added=1)
            yield record

    with pytest.raises(StoreError, match="another import"):
        add(empty, decided(8), track=another)
    # the other's are there, and of this one's none
    assert [record.id for record in records_of(empty)] == [pair("other").id]
    assert add(empty, decided(8)).added == 8


def test_what_an_import_that_was_killed_left_is_cleared(empty: Project) -> None:
    row = {
        "role": "new-0000",
        "key": "k",
        "id": "x",
        "record": "{}",
        "rank": 0,
        "wanted": 1,
        "votes": 0,
        "open": 0,
    }
    empty.service.store.write(lambda connection: connection.execute(pairs.insert(), row).rowcount)
    add(empty, decided(2))
    assert len(records_of(empty)) == 2


def test_records_that_cannot_be_shown(empty: Project) -> None:
    buffer = io.BytesIO()
    Pil.new("RGB", (2, 2)).save(buffer, format="PNG")
    good = [
        pair("text", image=None),
        pair("bytes", image=Image(id="b", data=buffer.getvalue())),
        pair("equal", texts=("Same.", "Same.")),
    ]
    three = pair("three")
    three = three.model_copy(update={"responses": [*three.responses, three.responses[0]]})
    bad = {
        "3 responses": three,
        "is a URL": pair("url", image=Image(id="u", url="http://example.org/x.png")),
        "no file": pair("gone", image=Image(id="g", path="gone.png")),
    }
    rejects = empty.folder / "rejects.jsonl"
    found = add(empty, [*good, *bad.values()], max_bad=0.6, rejects=rejects)
    assert found == Imported(added=2, identical=1)
    told = [json.loads(line)["rule"] for line in rejects.read_text().splitlines()]
    assert all(words in rule for words, rule in zip(bad, told, strict=True)), told
    # bytes come back as they went in
    task = empty.task("ann")
    while not task.has_image:
        task = empty.vote("ann") and empty.task("ann")
    picture = empty.service.picture(empty.user("ann"), task.pair)
    assert picture is not None and picture.data == buffer.getvalue()
    assert base64.b64encode(buffer.getvalue()).decode() in records_of(empty)[1].model_dump_json()


def test_gold_needs_an_answer(empty: Project) -> None:
    with pytest.raises(DataError, match="without choices"):
        add(empty, [pair("g")], "gold")
    with pytest.raises(DataError, match="unknown role"):
        add(empty, [pair("g")], "silver")
    with pytest.raises(DataError, match="no preferences"):
        add(empty, [Prompt(id="p", question="What?")])


def test_one_image_root_for_all(empty: Project, tmp_path: Path) -> None:
    add(empty, decided(1))
    other = tmp_path / "other"
    other.mkdir()
    (other / "cat.png").write_bytes((empty.folder / "images" / "cat.png").read_bytes())
    write_records(empty.folder / "more.jsonl", [pair("z")])
    with pytest.raises(DataError, match="image root is"):
        import_pairs(empty.service.store, Source(empty.folder / "more.jsonl", None, images=other))
    with pytest.raises(DataError, match="no image root"):
        import_pairs(empty.service.store, Source(empty.folder / "more.jsonl", None), max_bad=0.0)


def test_orders(empty: Project, make_project: MakeProject) -> None:
    add(empty, decided(12), wish=Wish(order="file", overlap=0))
    add(empty, [pair(f"later{k}") for k in range(3)], wish=Wish(order="file", overlap=0))
    in_file = [empty.vote("ann").messages[0].content for _ in range(15)]
    assert in_file == [f"What is in picture {k}?" for k in [*range(12), "later0", "later1", "later2"]]
    orders = []
    for seed in (0, 0, 1):
        project = make_project(0)
        add(project, decided(12), wish=Wish(order="random", overlap=0, seed=seed))
        orders.append([project.vote("ann").messages[0].content for _ in range(12)])
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted(in_file[:12])
    assert orders[0] != in_file[:12]


def test_a_file_of_scores(empty: Project) -> None:
    file = empty.folder / "scores.jsonl"
    write_rows(
        file, [{"id": f"secret-model-{k}", "scores": [0.0, float(s)]} for k, s in enumerate((5, 1, -3))]
    )
    found = add(empty, decided(4), scores=read_scores(file), wish=Wish(order="uncertain", overlap=0))
    assert found == Imported(added=4, unscored=1)
    asked = [empty.vote("ann").messages[0].content for _ in range(4)]
    assert asked == [f"What is in picture {k}?" for k in (1, 2, 0, 3)]
    for scores in ([1], [1, "x"], [1, True], None):
        write_rows(file, [{"id": "a", "scores": scores}])
        with pytest.raises(DataError, match=r"scores\.jsonl:1: not the scores"):
            read_scores(file)


def test_odd_wishes() -> None:
    for wrong in ({"labels": 0}, {"labels": 4, "overlap_labels": 3}, {"overlap": 1.5}):
        with pytest.raises(DataError):
            Wish(**wrong)
