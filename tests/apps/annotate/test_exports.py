"""Votes out of the store: majority, adjudicated, per labeler; our schema and others' formats; back again."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from apps.annotate.exports import TARGETS, export
from apps.annotate.imports import Wish, import_pairs
from apps.annotate.results import Answers
from data.convert import Source
from data.errors import DataError
from data.jsonl import read_records, write_records
from data.load import load
from data.schema import Preference
from tests.apps.annotate.conftest import MakeProject, Project, pair

#: by response: "0" and "1" fewer hallucinations, "t0" and "t1" a tie and then more helpful
VOTES = {
    "all": ("0", "0", "0"),
    "two": ("1", "t0", "1"),
    "helpful": ("t1", "t1", "0"),
    "mixed": ("0", "t0", "1"),
    "draw": ("0", "t1"),
    "one": ("t1",),
}


@pytest.fixture
def voted(make_project: MakeProject) -> Project:
    """A project of the pairs and votes of ``VOTES``, by labelers l0, l1 and l2 in order; and one without."""
    project = make_project(0)
    project.add([pair(name) for name in [*VOTES, "none"]], labels=3)
    said = {f"What is in picture {name}?": votes for name, votes in VOTES.items()}
    for k in range(3):
        while project.service.progress(project.user(f"l{k}")).votes < 7:
            task = project.service.next_task(project.user(f"l{k}"))
            if task.kind == "none":
                break
            votes = said.get(task.messages[0].content, ())
            if k >= len(votes):
                project.service.skip(project.user(f"l{k}"), task.pair, "unclear", project.token())
                continue
            first = task.responses[0].text == "A red cat."
            side = {"0": "AB"[not first], "1": "AB"[first]}[votes[k][-1]]
            answers = Answers("tie", side) if votes[k][0] == "t" else Answers(side)  # type: ignore[arg-type]
            project.service.vote(project.user(f"l{k}"), task.pair, answers, project.token(), seconds=2.0)
    return project


def exported(project: Project, labels: str, **more: Any) -> dict[str, Preference]:
    file = project.folder / "out.jsonl"
    export(project.service.store, file, labels, **more)
    found = read_records(file, "preference", strict=True)
    return {
        f"{r.id.removeprefix('secret-model-')}/{r.annotator}": r for r in found if isinstance(r, Preference)
    }


def test_majority(voted: Project) -> None:
    found = exported(voted, "majority")
    assert list(found) == [f"{name}/majority" for name in VOTES]
    choices = {name.split("/")[0]: record.choices for name, record in found.items()}
    assert choices == {
        "all": {"hallucination": 0, "helpfulness": None},
        "two": {"hallucination": 1, "helpfulness": None},
        # both votes for 1 were decided by the second question
        "helpful": {"hallucination": None, "helpfulness": 1},
        # 0 has two votes, one of each kind
        "mixed": {"hallucination": 0, "helpfulness": None},
        "draw": {"hallucination": None, "helpfulness": None},
        "one": {"hallucination": None, "helpfulness": 1},
    }
    assert {n.split("/")[0]: r.preferred for n, r in found.items()} == {
        "all": 0, "two": 1, "helpful": 1, "mixed": 0, "draw": None, "one": 1,
    }  # fmt: skip


def test_soft_labels_and_margins(voted: Project) -> None:
    found = {name.split("/")[0]: record.meta for name, record in exported(voted, "majority").items()}
    assert found["all"]["soft"] == [1, 0] and found["all"]["margin"] == 1
    assert found["two"]["soft"] == pytest.approx([1 / 3, 2 / 3])
    assert found["two"]["margin"] == pytest.approx(1 / 3)
    assert found["draw"]["soft"] == [0.5, 0.5] and found["draw"]["margin"] == 0
    assert found["mixed"]["votes"] == {"hallucination": [1, 1, 1], "helpfulness": [1, 0, 0]}
    assert found["one"]["votes"] == {"hallucination": [0, 0, 1], "helpfulness": [0, 1, 0]}


def test_records_come_back_whole(voted: Project) -> None:
    """Image, messages, responses with their models: all but the labels is as it was given."""
    for record in exported(voted, "majority").values():
        original = pair(record.id.removeprefix("secret-model-"))
        kept = {"choices": {}, "annotator": None, "meta": {}}
        assert record.model_copy(update=kept) == original


def test_one_record_a_vote(voted: Project) -> None:
    found = exported(voted, "labelers")
    want = {f"{name}/l{k}": vote for name, votes in VOTES.items() for k, vote in enumerate(votes)}
    assert found.keys() == want.keys()
    for name, vote in want.items():
        question = "helpfulness" if vote[0] == "t" else "hallucination"
        assert found[name].choices[question] == int(vote[-1]) == found[name].preferred
        assert found[name].meta["seconds"] == 2.0 and found[name].meta["shown_first"] in (0, 1)


def test_decisions_in_the_place_of_votes(voted: Project) -> None:
    admin = voted.user("root", "admin")
    count, waiting = voted.service.disputed()
    # those with all their votes, not of one mind; "draw" and "one" wait for votes, "none" was skipped by all
    assert [d.id.removeprefix("secret-model-") for d in waiting] == ["two", "helpful", "mixed", "none"]
    assert count == 4 and voted.service.disputed(after=waiting[1].n, limit=1)[1][0].n == waiting[2].n
    assert [reason for _, reason in waiting[3].skips] == ["unclear"] * 3
    for place, said in ((0, (0, None)), (1, (None, None)), (3, (None, 1))):
        voted.service.adjudicate(admin, waiting[place].pair, *said, voted.token())
    voted.service.adjudicate(admin, waiting[0].pair, None, 0, voted.token(), "looked again")
    found = exported(voted, "adjudicated")
    told = {
        name: (record.choices["hallucination"], record.choices["helpfulness"])
        for name, record in found.items()
    }
    assert told == {
        "all/majority": (0, None),
        "two/adjudicated": (None, 0),
        "helpful/adjudicated": (None, None),
        "mixed/majority": (0, None),
        "draw/majority": (None, None),
        "one/majority": (None, 1),
        "none/adjudicated": (None, 1),
    }
    assert found["two/adjudicated"].meta["soft"] == pytest.approx([1 / 3, 2 / 3])
    assert "soft" not in found["none/adjudicated"].meta
    assert voted.service.disputed()[0] == 1


@pytest.mark.parametrize("to", [name for name in TARGETS if name != "schema"])
def test_other_formats(voted: Project, to: str) -> None:
    file = voted.folder / "theirs.json"
    outcome = export(voted.service.store, file, "majority", to)
    assert (outcome.written, outcome.ties) == (5, 1)
    found = load(file, "preference", format=to, images=voted.folder / "images")
    ours = [r for r in exported(voted, "majority").values() if r.preferred is not None]
    for theirs, record in zip(found, ours, strict=True):
        assert (
            isinstance(theirs, Preference) and theirs.preferred is not None and record.preferred is not None
        )
        assert theirs.responses[theirs.preferred].text == record.responses[record.preferred].text
        assert theirs.messages == record.messages
        assert theirs.image is not None and theirs.image.path == "cat.png"


def test_trl_keeps_what_the_votes_say(voted: Project) -> None:
    file = voted.folder / "trl.jsonl"
    export(voted.service.store, file, "majority", "trl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert json.loads(rows[1]["meta"])["margin"] == pytest.approx(1 / 3)
    assert rows[1]["chosen"] == [{"role": "assistant", "content": "A red cat and a dog."}]


def test_labelers_can_be_left_out(voted: Project) -> None:
    found = exported(voted, "majority", without=["l1", "l2"])
    assert found["two/majority"].preferred == 1 and found["two/majority"].meta["margin"] == 1
    with pytest.raises(DataError, match="no labeler 'l9'"):
        exported(voted, "majority", without=["l9"])


def test_nothing_is_written_where_there_is_nothing(make_project: MakeProject) -> None:
    project = make_project(1)
    file = project.folder / "out.jsonl"
    file.write_text("before\n")
    for to in ("schema", "trl"):
        with pytest.raises(DataError, match="no decided vote"):
            export(project.service.store, file, to=to)
    for wrong in ({"labels": "mean"}, {"to": "llava"}):
        with pytest.raises(DataError):
            export(project.service.store, file, **wrong)
    assert file.read_text() == "before\n"


def test_gold_is_no_label(make_project: MakeProject) -> None:
    project = make_project(1)
    project.add([pair("g", choices={"hallucination": 0})], "gold")
    project.service.set_rules({"gold_every": 1})
    assert project.vote("ann").messages[0].content == "What is in picture g?"
    project.vote("ann")
    assert list(exported(project, "majority")) == ["000/majority"]


def test_thousands_in_seconds(make_project: MakeProject, tmp_path: Path) -> None:
    """A fiftieth of tests/bench/bench_annotate.py: 2,000 pairs in and out, in CPU seconds."""
    from sqlalchemy import insert, select

    from apps.annotate.tables import assignments, events, pairs, users

    project = make_project(0)
    write_records(tmp_path / "many.jsonl", (pair(f"{k}") for k in range(2000)))
    start = time.process_time()
    source = Source(tmp_path / "many.jsonl", None, "preference", images=project.folder / "images")
    import_pairs(project.service.store, source, wish=Wish(overlap=0))
    assert time.process_time() - start < 3
    ann = project.user("ann")

    def vote_on_all(connection: Any) -> None:
        made: dict[str, Any] = {
            "at": 0.0,
            "user_id": ann.id,
            "kind": "vote",
            "hallucination": 0,
            "flipped": 0,
        }
        given = {"user_id": ann.id, "flipped": 0, "state": "voted", "served": 0.0, "expires": 0.0}
        numbers = connection.scalars(select(pairs.c.n)).all()
        log = [made | {"id": n, "pair_n": n, "token": f"token-{n}"} for n in numbers]
        connection.execute(insert(events), log)
        connection.execute(insert(assignments), [given | {"pair_n": n, "event_id": n} for n in numbers])
        connection.execute(pairs.update().values(votes=1, open=0))
        connection.execute(users.update().values(votes=len(numbers)))

    project.service.store.write(vote_on_all)
    start = time.process_time()
    assert export(project.service.store, tmp_path / "out.jsonl").written == 2000
    assert time.process_time() - start < 3


def test_sizes_tell_what_an_export_will_hold(voted: Project) -> None:
    admin = voted.user("root", "admin")
    _, waiting = voted.service.disputed()
    for place, said in ((1, (None, None)), (3, (None, 1))):
        voted.service.adjudicate(admin, waiting[place].pair, *said, voted.token())
    found = voted.service.export_sizes()
    assert found["majority"] == {"records": 6, "ties": 1}
    assert found["adjudicated"] == {"records": 7, "ties": 2}
    assert found["labelers"] == {"records": 15, "ties": 0}
    for labels, size in found.items():
        all_of_them = export(voted.service.store, voted.folder / "all.jsonl", labels)
        decided = export(voted.service.store, voted.folder / "trl.jsonl", labels, "trl")
        assert (all_of_them.written, decided.ties) == (size["records"], size["ties"]), labels
        assert decided.written == size["records"] - size["ties"]
