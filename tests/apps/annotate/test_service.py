"""What labelers can do, and what the store says afterwards."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError, OperationalError

from apps.annotate.assign import Rules, right_to_pass
from apps.annotate.errors import Refused
from apps.annotate.results import Answers, NoTask, Task
from apps.annotate.service import Service
from apps.annotate.store import open_store
from apps.annotate.tables import assignments, events, pairs, users
from data.schema import Message, Preference
from tests.apps.annotate.conftest import MakeProject, Project, pair


def rows(project: Project, table: Any) -> list[Any]:
    with project.service.store.read() as connection:
        return list(connection.execute(select(table).order_by(*table.primary_key.columns)))


def refusal(code: str, call: Any, *args: Any, **kwargs: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        call(*args, **kwargs)
    assert caught.value.code == code, caught.value
    return caught.value


def test_a_vote_is_kept_by_response_not_by_side(make_project: MakeProject) -> None:
    project = make_project(40)
    shown: dict[bool, int] = {True: 0, False: 0}
    while isinstance(task := project.service.next_task(project.user("ann")), Task):
        first = task.responses[0].text == "A red cat."
        shown[first] += 1
        project.service.vote(project.user("ann"), task.pair, Answers("A"), project.token())
        kept = rows(project, events)[-1]
        assert (kept.hallucination, kept.helpfulness) == (0 if first else 1, None)
        assert kept.flipped == (not first)
    # drawn, and so both
    assert min(shown.values()) > 8 and sum(shown.values()) == 40


def test_the_second_question_follows_a_tie_alone(project: Project) -> None:
    ann, task = project.user("ann"), project.task("ann")
    for answers in (Answers("A", "B"), Answers("tie"), Answers("both"), Answers("tie", "tie")):  # type: ignore[arg-type]
        refusal("invalid", project.service.vote, ann, task.pair, answers, project.token())
    assert rows(project, events) == []
    project.service.vote(ann, task.pair, Answers("tie", "B"), project.token())
    (kept,) = rows(project, events)
    flipped = task.responses[0].text != "A red cat."
    assert (kept.hallucination, kept.helpfulness) == (None, 0 if flipped else 1)


def test_a_repeated_request_is_one_vote(project: Project) -> None:
    ann, task = project.user("ann"), project.task("ann")
    one = project.service.vote(ann, task.pair, Answers("A"), "token-one-1")
    again = project.service.vote(ann, task.pair, Answers("A"), "token-one-1")
    assert (again.event, again.repeated, one.repeated) == (one.event, True, False)
    refusal("token_reused", project.service.vote, ann, task.pair, Answers("B"), "token-one-1")
    refusal("token_reused", project.service.skip, ann, task.pair, "unclear", "token-one-1")
    refusal("already_voted", project.service.vote, ann, task.pair, Answers("B"), "token-two-2")
    assert len(rows(project, events)) == 1
    assert [p.votes for p in rows(project, pairs)] == [1, 0, 0]
    # another's token is another's
    other = project.task("bob")
    project.service.vote(project.user("bob"), other.pair, Answers("A"), "token-one-1")
    assert len(rows(project, events)) == 2


def test_the_same_pair_until_it_is_settled(project: Project) -> None:
    first = project.task("ann")
    project.clock.now += 100
    again = project.task("ann")
    assert (again.pair, again.responses) == (first.pair, first.responses)
    assert (first.seconds_left, again.seconds_left) == (600, 500)
    assert project.task("bob").pair != first.pair


def test_times_are_measured_here_and_there(project: Project) -> None:
    ann, task = project.user("ann"), project.task("ann")
    project.clock.now += 42
    project.service.vote(ann, task.pair, Answers("A"), project.token(), seconds=17.5)
    (kept,) = rows(project, events)
    assert (kept.seconds_browser, kept.seconds_server, kept.at) == (17.5, 42.0, project.clock.now)
    task = project.task("ann")
    refusal("invalid", project.service.vote, ann, task.pair, Answers("A"), project.token(), seconds=-1.0)
    refusal(
        "invalid", project.service.vote, ann, task.pair, Answers("A"), project.token(), seconds=float("nan")
    )


def test_rules_hold_in_every_process_of_a_store(make_project: MakeProject) -> None:
    project = make_project(6)
    store = open_store(project.url)
    other, ann = Service(store, clock=project.clock), project.user("ann")
    first = other.next_task(ann)
    assert isinstance(first, Task) and first.seconds_left == 600
    project.service.set_rules({"lease": 60.0, "limit": 2})
    assert other.rules == project.service.rules and other.rules.lease == 60
    assert other.renew(ann, first.pair) == 60 and other.progress(ann).limit == 2
    assert [row.limit for row in other.labelers()] == [2]
    _, second = other.vote_and_next(ann, first.pair, Answers("A"), project.token())
    assert isinstance(second, Task) and second.seconds_left == 60
    assert other.vote_and_next(ann, second.pair, Answers("A"), project.token())[1] == NoTask("limit")
    # and a change of one rule takes back none of another process
    assert other.set_rules({"limit": 3}).lease == 60
    assert (project.service.rules.lease, project.service.rules.limit) == (60, 3)
    assert isinstance(project.service.next_task(ann), Task)
    refusal("invalid", other.set_rules, {"lease": 1.0})
    assert project.service.rules.lease == 60
    store.close()


def test_a_closed_tab_blocks_no_pair(make_project: MakeProject) -> None:
    project = make_project(1)
    held = project.task("ann")
    waiting = project.service.next_task(project.user("bob"))
    assert waiting == NoTask("wait", 600.0)
    project.clock.now += 600
    assert project.task("bob").pair == held.pair
    refusal("lease_lost", project.service.vote, project.user("ann"), held.pair, Answers("A"), project.token())
    project.vote("bob")
    assert [p.votes for p in rows(project, pairs)] == [1]
    assert project.service.next_task(project.user("ann")) == NoTask("done")


def test_a_late_vote_counts_while_its_place_is_free(make_project: MakeProject) -> None:
    project = make_project(1)
    held = project.task("ann")
    project.clock.now += 10_000
    project.service.vote(project.user("ann"), held.pair, Answers("A"), project.token())
    assert [(p.votes, p.open) for p in rows(project, pairs)] == [(1, 0)]


def test_a_tab_that_says_goodbye_gives_its_pair_back(make_project: MakeProject) -> None:
    project = make_project(1)
    held = project.task("ann")
    project.service.release(project.user("ann"))
    assert project.task("bob").pair == held.pair


def test_a_lease_is_renewed(make_project: MakeProject) -> None:
    project = make_project(1)
    held = project.task("ann")
    project.clock.now += 500
    assert project.service.renew(project.user("ann"), held.pair) == 600
    project.clock.now += 500
    assert isinstance(project.service.next_task(project.user("bob")), NoTask)
    project.clock.now += 100
    project.task("bob")
    refusal("lease_lost", project.service.renew, project.user("ann"), held.pair)


def test_a_stale_tab_does_not_hold_a_second_pair(project: Project) -> None:
    stale = project.task("ann")
    project.clock.now += 600
    project.vote("bob")
    held = project.task("ann")
    assert held.pair != stale.pair
    refusal("lease_lost", project.service.renew, project.user("ann"), stale.pair)
    # its place is free again, and yet one pair at a time
    project.service.undo(project.user("bob"), project.token())
    project.service.release(project.user("bob"))
    refusal("lease_lost", project.service.renew, project.user("ann"), stale.pair)
    assert project.task("ann").pair == held.pair


def test_no_more_votes_than_wanted(make_project: MakeProject) -> None:
    project = make_project(2, labels=2, overlap_labels=2)
    for name in ("ann", "bob", "cid", "dan"):
        project.vote(name)
    assert [(p.votes, p.open) for p in rows(project, pairs)] == [(2, 0), (2, 0)]
    for name in ("ann", "bob", "cid", "dan", "eve"):
        assert project.service.next_task(project.user(name)) == NoTask("done")


def test_the_overlap_gets_its_votes(make_project: MakeProject) -> None:
    project = make_project(60, labels=1, overlap=0.3, overlap_labels=3, seed=2)
    wanted = [p.wanted for p in rows(project, pairs)]
    assert set(wanted) == {1, 3} and 8 <= wanted.count(3) <= 30
    for name in ("ann", "bob", "cid", "dan"):
        while isinstance(task := project.service.next_task(project.user(name)), Task):
            project.service.vote(project.user(name), task.pair, Answers("A"), project.token())
    assert [p.votes for p in rows(project, pairs)] == wanted


def test_skipping_leaves_a_pair_to_others(make_project: MakeProject) -> None:
    project = make_project(1)
    ann, task = project.user("ann"), project.task("ann")
    refusal("invalid", project.service.skip, ann, task.pair, "boring", project.token())
    refusal("invalid", project.service.skip, ann, task.pair, "other", project.token())
    project.service.skip(ann, task.pair, "other", project.token(), "upside down")
    assert rows(project, events)[0].reason == "other: upside down"
    assert project.service.next_task(ann) == NoTask("done")
    assert project.task("bob").pair == task.pair
    assert project.service.progress(ann).skips == 1


def test_undo_brings_the_pair_back_with_what_was_said(project: Project) -> None:
    ann = project.user("ann")
    voted = project.vote("ann", "tie", "B", marks={"A": [(2, 5)]})
    held = project.task("ann")
    task = project.service.undo(ann, "undo-token-1")
    assert (task.pair, task.responses) == (voted.pair, voted.responses)
    assert task.before == Answers("tie", "B", {"A": [(2, 5)]})
    assert [p.votes for p in rows(project, pairs)] == [0, 0, 0]
    # asked again after a lost answer
    assert project.service.undo(ann, "undo-token-1").pair == voted.pair
    # the pair that was held goes to whoever asks
    assert project.task("bob").pair == held.pair
    project.service.vote(ann, task.pair, Answers("A"), project.token())
    assert [(e.kind, e.of_event) for e in rows(project, events)] == [
        ("vote", None),
        ("undo", 1),
        ("vote", None),
    ]
    assert [p.votes for p in rows(project, pairs)] == [1, 0, 0]
    assert project.service.progress(ann).votes == 1


def test_undo_twice_goes_two_back(project: Project) -> None:
    first, second = project.vote("ann"), project.vote("ann")
    assert project.service.undo(project.user("ann"), project.token()).pair == second.pair
    assert project.service.undo(project.user("ann"), project.token()).pair == first.pair
    refusal("nothing_to_undo", project.service.undo, project.user("ann"), project.token())


def test_what_cannot_be_undone(make_project: MakeProject) -> None:
    project = make_project(2)
    ann, admin = project.user("ann"), project.user("root", "admin")
    refusal("nothing_to_undo", project.service.undo, ann, project.token())
    skipped = project.task("ann")
    project.service.skip(ann, skipped.pair, "unclear", project.token())
    project.vote("bob")
    # its place is taken
    refusal("nothing_to_undo", project.service.undo, ann, project.token())
    voted = project.vote("ann")
    project.service.adjudicate(admin, voted.pair, 1, None, project.token())
    refusal("nothing_to_undo", project.service.undo, ann, project.token())


def test_a_decided_pair_is_given_to_nobody(make_project: MakeProject) -> None:
    project = make_project(1, labels=2, overlap_labels=2)
    task = project.task("ann")
    project.service.skip(project.user("ann"), task.pair, "unclear", project.token())
    held = project.task("bob")
    project.service.adjudicate(project.user("root", "admin"), task.pair, 1, None, project.token())
    assert project.service.next_task(project.user("cid")) == NoTask("done")
    # who had it before may still say something, which opens it for nobody
    project.service.vote(project.user("bob"), held.pair, Answers("A"), project.token())
    assert project.service.next_task(project.user("cid")) == NoTask("done")
    found = project.service.overview()
    assert (found["pairs_done"], found["votes"], found["forecast"]["votes_left"]) == (1, 1, 0)


def test_the_log_is_append_only(project: Project) -> None:
    project.vote("ann")
    for change in (update(events).values(hallucination=1), delete(events)):
        with pytest.raises((IntegrityError, OperationalError), match="append-only"):
            project.service.store.write(lambda connection, change=change: connection.execute(change).rowcount)
    assert len(rows(project, events)) == 1


def test_marks_are_kept_by_response(project: Project) -> None:
    ann, task = project.user("ann"), project.task("ann")
    longer = max(task.responses, key=lambda shown: len(shown.text))
    spans = [(10, 15), (0, 1), (14, 20)]
    project.service.vote(ann, task.pair, Answers("A", marks={longer.side: spans}), project.token())
    # sorted, joined where they overlap; the longer text is response 1
    assert json.loads(rows(project, events)[0].marks) == [[1, 0, 1], [1, 10, 20]]
    task = project.task("ann")
    for marks in ({"A": [(5, 5)]}, {"A": [(0, 999)]}, {"A": [(-1, 2)]}, {"C": [(0, 1)]}):
        answers = Answers("A", marks=marks)  # type: ignore[arg-type]
        refusal("invalid", project.service.vote, ann, task.pair, answers, project.token())


def test_labelers_learn_nothing_of_models_files_and_others(make_project: MakeProject) -> None:
    project = make_project(0)
    messages = [
        Message(role="system", content="You are model-0."),
        Message(role="user", content="What is it?"),
    ]
    more: dict[str, Any] = {"messages": messages, "meta": {"scores": [0.1, 0.7]}, "source": "origin"}
    project.add([pair("x", **more)], labels=2)
    project.vote("bob")
    text = json.dumps(asdict(project.task("ann"))) + json.dumps(
        asdict(project.service.progress(project.user("ann")))
    )
    for told in ("model-", "secret", "cat.png", "img-x", "origin", "0.7", "bob"):
        assert told not in text, told
    assert "What is it?" in text and "A red cat." in text


def test_only_who_was_given_a_pair_sees_and_settles_it(project: Project) -> None:
    task, bob = project.task("ann"), project.user("bob")
    for call in (
        lambda: project.service.vote(bob, task.pair, Answers("A"), project.token()),
        lambda: project.service.skip(bob, task.pair, "unclear", project.token()),
        lambda: project.service.renew(bob, task.pair),
        lambda: project.service.picture(bob, task.pair),
        lambda: project.service.vote(bob, "no such pair", Answers("A"), project.token()),
    ):
        refusal("not_found", call)
    assert project.service.picture(project.user("ann"), task.pair) is not None
    assert project.service.picture(project.user("root", "admin"), task.pair) is not None


def test_a_limit_of_votes(make_project: MakeProject) -> None:
    project = make_project(5)
    project.service.set_rules({"limit": 2})
    project.vote("ann")
    project.vote("ann")
    assert project.service.next_task(project.user("ann")) == NoTask("limit")
    project.service.set_labeler("ann", limit=3)
    project.vote("ann")
    assert project.service.next_task(project.user("ann")) == NoTask("limit")
    project.service.undo(project.user("ann"), project.token())
    project.vote("ann")
    project.service.set_labeler("ann", limit=-1)
    assert project.service.progress(project.user("ann")).limit == 2
    project.vote("bob")


def qualifying(make_project: MakeProject) -> Project:
    project = make_project(4)
    right = {"hallucination": 0, "helpfulness": None}
    project.add([pair(f"q{k}", choices=right) for k in range(7)], "qualification")
    project.service.set_rules({"qualification": 5, "pass_mark": 4})
    return project


def answer(project: Project, name: str, right: bool) -> Any:
    task = project.task(name)
    better = next(shown.side for shown in task.responses if (shown.text == "A red cat.") == right)
    return task, project.service.vote(project.user(name), task.pair, Answers(better), project.token())


def test_the_test_comes_first_and_lets_in(make_project: MakeProject) -> None:
    project = qualifying(make_project)
    for k in range(5):
        task, kept = answer(project, "ann", right=k != 2)
        assert (task.stage, task.number, task.of) == ("qualification", k + 1, 5)
        assert kept.qualification == ("passed" if k == 4 else None)
    task = project.task("ann")
    assert (task.stage, task.number, task.of) == ("work", None, None)
    assert project.service.progress(project.user("ann")).votes == 0
    refusal("nothing_to_undo", project.service.undo, project.user("ann"), project.token())
    assert {(u.qualification, u.qualification_right) for u in rows(project, users)} == {("passed", 4)}


def test_the_test_shuts_out_and_can_be_taken_again(make_project: MakeProject) -> None:
    project = qualifying(make_project)
    task = project.task("bob")
    refusal("test", project.service.skip, project.user("bob"), task.pair, "unclear", project.token())
    for k in range(5):
        _, kept = answer(project, "bob", right=k > 1)
    assert kept.qualification == "failed"
    assert project.service.next_task(project.user("bob")) == NoTask("failed")
    project.service.set_labeler("bob", retake=True)
    assert project.service.progress(project.user("bob")).test_answered == 0
    for _ in range(5):
        answer(project, "bob", right=True)
    assert project.task("bob").stage == "work"


@pytest.mark.parametrize("right", [True, False])
def test_a_test_made_shorter_is_over_for_who_has_answered_enough(
    make_project: MakeProject, right: bool
) -> None:
    project = qualifying(make_project)
    for _ in range(3):
        answer(project, "ann", right)
    project.service.release(project.user("ann"))
    project.service.set_rules({"qualification": 2, "pass_mark": 2})
    if right:
        assert project.task("ann").stage == "work"
    else:
        assert project.service.next_task(project.user("ann")) == NoTask("failed")
    assert project.service.progress(project.user("ann")).qualification == ("passed" if right else "failed")


def test_a_slip_in_the_test_can_be_undone_before_its_end(make_project: MakeProject) -> None:
    project = qualifying(make_project)
    answer(project, "ann", right=False)
    task = project.service.undo(project.user("ann"), project.token())
    assert (task.stage, task.number) == ("qualification", 1)


def test_labelers_get_the_test_in_orders_of_their_own(make_project: MakeProject) -> None:
    project = qualifying(make_project)
    orders = set()
    for name in ("ann", "bob", "cid"):
        orders.add(tuple(answer(project, name, right=True)[0].messages[0].content for _ in range(5)))
    assert len(orders) == 3


def test_gold_items_look_like_any_other_and_stay_open(make_project: MakeProject) -> None:
    project = make_project(60)
    project.add([pair(f"g{k}", choices={"hallucination": 0}) for k in range(6)], "gold")
    project.service.set_rules({"gold_every": 5})
    with project.service.store.read() as connection:
        gold = set(connection.scalars(select(pairs.c.key).where(pairs.c.role == "gold")))
    seen: list[int] = []
    for name in ("ann", "bob"):
        given = []
        while isinstance(task := project.service.next_task(project.user(name)), Task) and len(given) < 40:
            assert task.stage == "work"
            # the same pair when asked again, gold or not
            assert project.task(name).pair == task.pair
            project.service.vote(project.user(name), task.pair, Answers("A"), project.token())
            given.append(task.pair)
        seen.append(len(gold & set(given)))
        assert len(set(given)) == len(given)
    # about one of five, at most all six, and both labelers get the same items
    assert all(2 <= n <= 6 for n in seen)
    assert all(p.votes == 0 for p in rows(project, pairs) if p.role == "gold")


def test_uncertain_pairs_come_first(make_project: MakeProject) -> None:
    project = make_project(0)
    scores = {"far": [3.0, -3.0], "near": [0.2, 0.1], "middle": [1.0, 0.0], "none": None}
    records = [pair(k, meta={"scores": v} if v else {}) for k, v in scores.items()]
    project.add(records, order="uncertain")
    asked = [project.vote("ann").messages[0].content for _ in range(4)]
    assert asked == [f"What is in picture {k}?" for k in ("near", "middle", "far", "none")]


def test_progress(make_project: MakeProject) -> None:
    project = make_project(3)
    project.vote("bob")
    project.vote("ann")
    found = project.service.progress(project.user("ann"))
    assert (found.votes, found.pairs_done, found.pairs, found.test_items) == (1, 2, 3, 0)
    assert [right_to_pass(Rules(qualification=5, pass_mark=4), items) for items in (5, 3, 0)] == [4, 2, 0]


def test_progress_does_not_tell_gold_items(make_project: MakeProject) -> None:
    project = make_project(100)
    project.add([pair("g", choices={"hallucination": 0})], "gold")
    told = []
    for _ in range(101):
        told.append(project.service.progress(project.user("ann")).pairs_done)
        if not isinstance(project.service.next_task(project.user("ann")), Task):
            break
        project.vote("ann")
    # twentieths, and the end
    assert told == [k - k % 5 for k in range(101)]


def test_a_store_reads_as_it_was_written(project: Project) -> None:
    """The records in the store are the records of the file, without what belongs to labels."""
    found = [Preference.model_validate_json(p.record) for p in rows(project, pairs)]
    assert found == [pair(f"{k:03d}") for k in range(3)]
    assert len(rows(project, assignments)) == 0
