"""Figures of a project against ones made by hand, and votes of simulated labelers whose ways are known."""

from __future__ import annotations

import random

import pytest

from apps.annotate import words
from apps.annotate.results import Answers, Task
from evals.agreement import counts_of, fleiss_kappa
from tests.apps.annotate.conftest import MakeProject, Project, pair


def say(project: Project, name: str, choice: int | None, helpful: int | None = None) -> None:
    """The labeler's next pair, by response index."""
    task = project.task(name)
    sides = "AB" if task.responses[0].text == "A red cat." else "BA"
    said = "tie" if choice is None else sides[choice]
    answers = Answers(said, None if helpful is None else sides[helpful])  # type: ignore[arg-type]
    project.service.vote(
        project.user(name), task.pair, answers, project.token(), seconds=float(10 + len(name))
    )


@pytest.fixture
def voted(make_project: MakeProject) -> Project:
    """Four pairs, two labelers: they agree on two, one tie against a choice, one disagreement."""
    project = make_project(4, labels=2, overlap_labels=2)
    for one, two in ((0, 0), (1, 1), ((None, 1), 1), (0, 1)):
        for name, said in (("ann", one), ("bobby", two)):
            say(project, name, *(said if isinstance(said, tuple) else (said,)))
    return project


def test_agreement_by_hand(voted: Project) -> None:
    found = voted.service.agreement(200)
    assert (found["pairs"], found["votes"]) == (4, 8)
    better, first = found["preferred"], found["hallucination"]
    # 0-0, 1-1, 1-1, 0-1
    assert better["raw"]["value"] == 0.75
    # p_o = 3/4; ann has two of each, bobby one and three: p_e = 1/2
    assert better["cohen_kappa_mean"]["value"] == pytest.approx(0.5)
    counts = counts_of([[0, 0], [1, 1], [1, 1], [0, 1]], 2)
    assert better["fleiss_kappa"]["value"] == pytest.approx(fleiss_kappa(counts).interval.value)
    # 0-0, 1-1, tie-1, 0-1
    assert first["raw"]["value"] == 0.5
    # p_o = 1/2; 0: 2/4 · 1/4, tie: 1/4 · 0, 1: 1/4 · 3/4
    assert first["cohen_kappa_mean"]["value"] == pytest.approx((1 / 2 - 5 / 16) / (1 - 5 / 16))
    assert first["krippendorff_alpha_ordinal"]["value"] != first["krippendorff_alpha"]["value"]
    (both,) = found["labelers"]
    assert (both["first"], both["second"], both["pairs"]) == ("ann", "bobby", 4)
    assert both["cohen_kappa"]["value"] == pytest.approx(0.5)


def test_undone_votes_do_not_count(voted: Project) -> None:
    voted.service.undo(voted.user("bobby"), voted.token())
    found = voted.service.agreement(50)
    assert (found["pairs"], found["preferred"]["raw"]["value"]) == (3, 1.0)
    # every rating but one of two categories: defined; of one alone it is not, and says so
    assert found["preferred"]["fleiss_kappa"]["undefined"] is None
    assert voted.service.overview()["undone"] == 1


def test_nothing_yet(make_project: MakeProject) -> None:
    project = make_project(2)
    project.user("ann")
    found = project.service.agreement(50)
    assert found["preferred"]["raw"] == {
        "value": None, "low": None, "high": None, "n": 0, "undefined": "no item has two ratings",
    }  # fmt: skip
    overview = project.service.overview()
    assert (overview["votes"], overview["votes_wanted"], overview["labels_per_labeler"]) == (0, 2, None)
    (row,) = project.service.labelers()
    assert row.agreement["value"] is None and row.seconds_browser is None
    lines = words.stats(overview, found, project.service.bias(), [row])
    assert any("undefined (no item has two ratings)" in line for line in lines)


def test_overview(voted: Project) -> None:
    voted.clock.now += 7200
    found = voted.service.overview()
    assert (found["pairs"], found["pairs_done"], found["votes"], found["votes_wanted"]) == (4, 4, 8, 8)
    assert (found["votes_last_hour"], found["votes_last_day"], found["labelers_last_day"]) == (0, 8, 2)
    assert found["labels_per_labeler"] == {
        "labelers": 2, "least": 4, "quarter": 4.0, "median": 4.0, "three_quarters": 4.0, "mean": 4.0,
        "most": 4,
    }  # fmt: skip
    # four of 13 seconds, four of 15
    assert found["seconds"]["browser"]["median"] == 14.0
    assert [day["votes"] for day in found["by_day"]] == [8]


def test_the_end_at_the_present_rate(make_project: MakeProject) -> None:
    project = make_project(10, labels=2, overlap_labels=2)
    project.clock.now = 1_800_000_000.0 - 1_800_000_000.0 % 3600
    assert project.service.overview()["forecast"] == {"votes_left": 20, "votes_an_hour": 0.0, "seconds": None}
    for name, count in (("ann", 3), ("bob", 5)):
        for _ in range(count):
            say(project, name, 0)
        project.clock.now += 3600
    found = project.service.overview()
    # eight votes in the two hours there are, twelve to come
    assert found["forecast"] == {"votes_left": 12, "votes_an_hour": 4.0, "seconds": 3 * 3600.0}
    assert [hour["votes"] for hour in found["by_hour"]][-4:] == [0, 3, 5, 0] and len(found["by_hour"]) == 48
    assert found["by_hour"][-1]["hour"] == project.clock.now
    assert found["labels_per_labeler"]["quarter"] == 3.5
    # a day on, what came before says nothing of the present
    project.clock.now += 22.5 * 3600
    assert project.service.overview()["forecast"]["votes_an_hour"] == pytest.approx(5 / 24)
    project.clock.now += 86400
    assert project.service.overview()["forecast"]["seconds"] is None


def test_skips_and_the_test(make_project: MakeProject) -> None:
    project = make_project(4)
    for name, reason, note in (
        ("ann", "unclear", ""),
        ("bob", "other", "too: small"),
        ("cid", "unclear", "x"),
    ):
        task = project.task(name)
        project.service.skip(project.user(name), task.pair, reason, project.token(), note)
    task = project.task("ann")
    project.service.skip(project.user("ann"), task.pair, "image", project.token())
    project.service.undo(project.user("ann"), project.token())
    found = project.service.overview()
    assert found["skips_by_reason"] == {"unclear": 2, "other": 1}
    assert found["qualification"] == {"passed": 0, "failed": 0}
    project.add([pair(f"q{k}", choices={"hallucination": 0}) for k in range(2)], "qualification")
    project.service.set_rules({"qualification": 2, "pass_mark": 2})
    for name, choice in (("dan", 0), ("eve", 1)):
        for _ in range(2):
            say(project, name, choice)
    found = project.service.overview()
    assert found["qualification"] == {"passed": 1, "failed": 1}
    # answers of the test are no votes, at whatever time
    assert (found["votes"], found["votes_last_day"], found["votes_last_hour"], found["by_day"]) == (
        0,
        0,
        0,
        [],
    )
    assert sum(hour["votes"] for hour in found["by_hour"]) == 0 and found["labelers_last_day"] == 2


def test_ties(voted: Project) -> None:
    found = voted.service.bias()["ties"]
    assert (found["value"], found["n"]) == (1 / 8, 8)
    assert {row.name: row.ties["value"] for row in voted.service.labelers()} == {"ann": 0.25, "bobby": 0.0}


def test_labelers_against_gold_and_each_other(make_project: MakeProject) -> None:
    project = make_project(2, labels=3)
    project.add([pair(f"g{k}", choices={"hallucination": 0}) for k in range(3)], "gold")
    project.service.set_rules({"gold_every": 1})
    for name, choices in (("ann", (0, 0, 0)), ("bob", (0, 1, 1)), ("cid", (1, 1, 1))):
        for choice in choices:
            say(project, name, choice)
    for name, choice in (("ann", 0), ("bob", 0), ("cid", 1)):
        say(project, name, choice)
    rows = {row.name: row for row in project.service.labelers()}
    assert {name: row.gold_right["value"] for name, row in rows.items()} == {
        "ann": 1.0, "bob": pytest.approx(1 / 3), "cid": 0.0,
    }  # fmt: skip
    assert [row.gold_right["n"] for row in rows.values()] == [3, 3, 3]
    # on one pair, 0 0 1: with ann half of the others agree, with cid none
    assert {name: row.agreement["value"] for name, row in rows.items()} == {
        "ann": 0.5,
        "bob": 0.5,
        "cid": 0.0,
    }
    assert (rows["ann"].votes, rows["ann"].gold) == (1, 3)


def test_a_liking_for_the_left_is_seen_and_no_other(make_project: MakeProject) -> None:
    project = make_project(60, labels=2, overlap_labels=2)
    rng = random.Random(1)
    for _ in range(60):
        task = project.task("left")
        side = "A" if rng.random() < 0.9 else "B"
        project.service.vote(project.user("left"), task.pair, Answers(side), project.token())  # type: ignore[arg-type]
        say(project, "short", 0)
    rows = {row.name: row for row in project.service.labelers()}
    left, short = rows["left"], rows["short"]
    assert left.chose_a["low"] is not None and left.chose_a["low"] > 0.7
    assert left.chose_longer["low"] < 0.5 < left.chose_longer["high"]  # type: ignore[operator]
    assert short.chose_a["low"] < 0.5 < short.chose_a["high"]  # type: ignore[operator]
    assert short.chose_longer["value"] == 0.0
    both = project.service.bias()["preferred"]
    assert both["chose_a"]["n"] == 120 and 0.6 < both["chose_a"]["value"] < 0.85
    # every vote was decided by the first question
    assert project.service.bias()["helpfulness"]["chose_a"]["value"] is None


def test_shares_of_all_have_the_intervals_of_one_where_pairs_are_not_shared(
    make_project: MakeProject, voted: Project
) -> None:
    project = make_project(4)
    for _ in range(4):
        project.vote("ann", "A")
    found, (row,) = project.service.bias(), project.service.labelers()
    # Wilson's of 4 of 4: 4 / (4 + 1.96²)
    told = {"value": 1.0, "low": pytest.approx(0.5101, abs=1e-4), "high": pytest.approx(1.0), "n": 4}
    assert found["preferred"]["chose_a"] == told | {"interval": "wilson"} and row.chose_a == told
    assert found["ties"]["interval"] == "wilson" and found["helpfulness"]["chose_a"]["interval"] == "wilson"
    assert voted.service.bias()["preferred"]["chose_a"]["interval"] == "bootstrap"


def test_words(voted: Project) -> None:
    service = voted.service
    lines = words.stats(service.overview(), service.agreement(50), service.bias(), service.labelers())
    text = "\n".join(lines)
    assert "pairs: 4 of 4 have all their votes, or a decision" in text and "agreement on 4 pairs" in text
    assert any(line.startswith("bobby  labeler") for line in lines)
    assert isinstance(service.next_task(voted.user("cid")), Task) is False
