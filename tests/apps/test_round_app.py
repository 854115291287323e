"""The labels of a round from the annotation app's store, as its people vote."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PilImage

from align.checkpoint import RunDir
from align.config import ConfigError, RoundsSettings, resolve
from apps.annotate.accounts import User
from apps.annotate.errors import StoreError
from apps.annotate.passwords import Cost
from apps.annotate.results import Answers, NoTask
from apps.annotate.service import Service
from apps.annotate.store import open_store
from apps.rounds import run as rounds
from apps.rounds.app_labels import Votes, check_store, collect
from apps.rounds.checks import RoundsError, check_labels
from apps.rounds.labels import write_labels
from apps.rounds.run import Awaited
from apps.rounds.words import waiting
from data.jsonl import DataError, read_json, read_records, write_json, write_records
from data.schema import HALLUCINATION, Facts, Image, Message, Preference, Prompt, Response


def sample(name: str) -> Preference:
    return Preference(
        id=name,
        image=Image(id="a", path="a.png"),
        messages=[Message(role="user", content=f"What is there, {name}?")],
        responses=[Response(text="A cat.", model="policy"), Response(text="A dog.", model="policy")],
        choices={},
        facts=Facts(captions=[f"caption of {name}"]),
    )


@pytest.fixture
def output(tmp_path: Path) -> Path:
    PilImage.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for number in (1, 2):
        # prompts may come again in the next round
        samples = [sample("one"), sample("two"), sample("three")]
        write_records(tmp_path / f"round-{number}/sample/samples.jsonl", samples)
    return tmp_path


def settings(output: Path, **labels: Any) -> RoundsSettings:
    store = f"sqlite:///{output / 'votes.db'}"
    return RoundsSettings.model_validate({
        "output": str(output), "model": {"path": "m"},
        "prompts": {"path": "p", "images": str(output)},
        "labels": {"by": "app", "store": store, "overlap": 0} | labels,
    })  # fmt: skip


class People:
    """Labelers of the store, who prefer the cat."""

    def __init__(self, output: Path, *names: str) -> None:
        self.store = open_store(f"sqlite:///{output / 'votes.db'}")
        self.service = Service(self.store, images=output, cost=Cost(n=2, r=1, p=1))
        self.service.set_rules({"gold_every": 0, "qualification": 0, "pass_mark": 0})
        for name in names:
            self.service.accounts.add(name, "a long enough one")
        self.users: dict[str, User] = {
            name: self.service.accounts.sign_in(name, "a long enough one", "here").session.user
            for name in names
        }

    def vote(self, name: str, times: int, prefer: str = "A cat.") -> None:
        for k in range(times):
            task = self.service.next_task(self.users[name])
            assert not isinstance(task, NoTask)
            (side,) = (one.side for one in task.responses if one.text == prefer)
            self.service.vote(self.users[name], task.pair, Answers(side), f"{name}-{k}-{task.pair}")


def test_a_round_goes_on_when_all_pairs_have_their_votes(output: Path) -> None:
    given, first = settings(output), output / "round-1"
    assert collect(given, 1, first) == Votes(3, 0)
    people = People(output, "ann")
    people.vote("ann", 2)
    assert collect(given, 1, first) == Votes(3, 2)
    assert not (first / "choices.jsonl").exists()
    people.vote("ann", 1)
    assert collect(given, 1, first) == Votes(3, 3)
    assert write_labels(given, 1, first)["decided"] == 3
    labels = read_records(first / "labels/labels.jsonl", "preference")
    assert sorted(one.id for one in labels) == ["round-1/one", "round-1/three", "round-1/two"]
    for one in labels:
        assert isinstance(one, Preference)
        assert one.responses[one.choices[HALLUCINATION] or 0].text == "A cat."
        assert one.facts.captions == [f"caption of {one.id.removeprefix('round-1/')}"]

    # the second round has the same prompts, the same store, and votes of its own
    second = output / "round-2"
    assert collect(given, 2, second) == Votes(3, 0)
    people.vote("ann", 3, "A dog.")
    assert collect(given, 2, second) == Votes(3, 3)
    assert write_labels(given, 2, second)["decided"] == 3
    for one in read_records(second / "labels/labels.jsonl", "preference"):
        assert isinstance(one, Preference)
        assert one.responses[one.choices[HALLUCINATION] or 0].text == "A dog."
    people.store.close()


def test_several_votes_a_pair_and_a_share_of_the_pairs(output: Path) -> None:
    given, folder = settings(output, votes=2, overlap_votes=2, share=0.6), output / "round-1"
    collect(given, 1, folder)
    people = People(output, "ann", "bob", "eve")
    people.vote("ann", 3)
    assert collect(given, 1, folder) == Votes(3, 0)
    people.vote("bob", 1)
    assert collect(given, 1, folder) == Votes(3, 1)
    people.vote("eve", 1, "A dog.")
    # two of three pairs, and 60 % are asked for; the third has one vote, which counts
    assert collect(given, 1, folder) == Votes(3, 2)
    found = read_records(folder / "choices.jsonl", "preference")
    assert sorted(sum(record.meta["votes"][HALLUCINATION]) for record in found) == [1, 2, 2]
    assert write_labels(given, 1, folder)["labelled"] == 3
    people.store.close()


def test_pairs_of_another_run_in_the_same_store_are_not_this_rounds(output: Path, tmp_path: Path) -> None:
    given, folder, other = settings(output), output / "round-1", tmp_path / "other"
    collect(given, 1, folder)
    people = People(output, "ann")
    people.vote("ann", 2)
    write_records(other / "sample/samples.jsonl", [sample("four"), sample("five")])
    assert collect(given, 1, other) == Votes(2, 0)
    people.vote("ann", 3)
    assert (collect(given, 1, folder), collect(given, 1, other)) == (Votes(3, 3), Votes(2, 2))
    assert write_labels(given, 1, other)["decided"] == 2
    assert write_labels(given, 1, folder)["decided"] == 3
    people.store.close()


def test_the_share_may_be_lowered_for_pairs_that_nobody_is_left_for(output: Path) -> None:
    """A labeler alone cannot give the three votes that some pairs want."""
    given, folder = settings(output, overlap=0.5, overlap_votes=3), output / "round-1"
    assert collect(given, 1, folder).pairs == 3
    people = People(output, "ann")
    people.vote("ann", 3)
    votes = collect(given, 1, folder)
    assert 0 < votes.done < 3 and isinstance(people.service.next_task(people.users["ann"]), NoTask)
    people.store.close()
    run = output / "run"
    with RunDir.create(run, given.model_copy(update={"output": str(run)}), "rounds"):
        pass
    lower = settings(output, overlap=0.5, overlap_votes=3, share=0.3)
    lower = lower.model_copy(update={"output": str(run), "resume": True})
    with RunDir.create(run, lower, "rounds"):
        pass
    collect(lower, 1, folder)
    assert write_labels(lower, 1, folder)["labelled"] == 3


def test_what_is_waited_for(output: Path) -> None:
    store = f"sqlite:///{output / 'votes.db'}"
    awaited = Awaited(2, output / "s.jsonl", 3, output / "c.jsonl", None, store, "my images", 1)
    text = list(waiting(awaited, "align rounds r.yaml --resume"))
    assert text == [
        "round 2 waits for votes: 1 of 3 pairs have theirs",
        f"  serve them:         align annotate serve --store {store} --images 'my images'",
        "  or ask for fewer:   labels.share=0.33, in the recipe or behind the command",
        "  then continue with: align rounds r.yaml --resume",
    ]
    secret = Awaited(1, output, 3, output, None, "postgresql://me:secret@host/votes", None, 0)
    assert "secret" not in "".join(waiting(secret, "x"))


@pytest.mark.parametrize("labels", ["by=file", "by=app labels.file=x/{round}.jsonl"])
def test_a_store_is_the_apps_alone(labels: str, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("output: o\nmodel: {path: m}\nprompts: {path: p}\nrounds: 1\n")
    words = [f"labels.{labels.split()[0]}", *labels.split()[1:], "labels.store=sqlite:///v.db"]
    with pytest.raises(ConfigError, match="store is the app's"):
        resolve(RoundsSettings, recipe, words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["labels.store=postgresql://me:secret@host/votes"], "store holds a password; leave it out"),
        (["labels.store=postgresql://me@host/votes?password=secret"], "PGPASSWORD or ~/.pgpass"),
        (["labels.store=sqlite:///v.db", "labels.format=llava_rlhf"], "leave out format and options"),
        (["labels.store=sqlite:///v.db", "labels.options={a: b}"], "leave out format and options"),
    ],
)
def test_what_a_store_does_not_go_with(words: list[str], told: str) -> None:
    base = ["output=o", "model.path=m", "prompts.path=p", "labels.by=app"]
    with pytest.raises(ConfigError) as error:
        resolve(RoundsSettings, None, [*base, *words])
    assert told in str(error.value)
    # nor is it shown in what refuses it
    assert "secret" not in str(error.value).replace(words[0], "")
    assert resolve(RoundsSettings, None, [*base, "labels.store=postgresql://me@host/votes"]).labels.store


def test_a_store_that_cannot_be_had_is_told_ahead_of_sampling(output: Path, tmp_path: Path) -> None:
    prompts = [Prompt(id=f"q{i}", question="What?") for i in range(8)]
    away = settings(output, store="postgresql://me@127.0.0.1:1/votes")
    given = away.model_copy(update={"reward": away.reward.model_copy(update={"holdout": 0})})
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:1/votes: cannot be used .*check labels.store"):
        check_labels(given, prompts)
    (tmp_path / "text.db").write_text("no database at all, but a text that is long enough" * 20)
    with pytest.raises(StoreError, match=r"text\.db"):
        check_store(f"sqlite:///{tmp_path}/text.db", None)
    # one that is not there yet is made when it is needed, and not before
    check_store(f"sqlite:///{tmp_path}/new/v.db", None)
    assert not (tmp_path / "new").exists()
    (tmp_path / "empty.db").touch()
    check_store(f"sqlite:///{tmp_path}/empty.db", None)


def test_a_store_of_other_pictures_is_told_ahead_of_sampling(output: Path) -> None:
    given = settings(output)
    collect(given, 1, output / "round-1")
    store = given.labels.store
    assert store is not None
    check_store(store, str(output))
    check_store(store, None)
    with pytest.raises(DataError, match=r"labels\.store: the image root of .* prompts\.images is .*/other"):
        check_store(store, str(output / "other"))


def test_a_relative_store_is_the_one_that_the_rounds_began_with(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_records(output / "p.jsonl", [Prompt(id=f"q{i}", question="What?") for i in range(4)])
    (output / "elsewhere").mkdir()
    words = {"output": str(output / "run"), "prompts": {"path": str(output / "p.jsonl")}, "resume": True}
    given = settings(output, store="sqlite:///votes.db").model_dump() | words
    began: list[str] = []

    def go(*_: Any) -> None:
        began.append(os.getcwd())
        raise KeyboardInterrupt

    monkeypatch.setattr(rounds, "check", lambda *_: None)
    monkeypatch.setattr(rounds, "go", go)

    def start(folder: Path) -> None:
        monkeypatch.chdir(folder)
        rounds.run(RoundsSettings.model_validate(given))

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            start(output)
    manifest = output / "run/rounds.json"
    assert read_json(manifest)["store"] == f"sqlite:///{output}/votes.db"
    with pytest.raises(
        RoundsError, match=r"elsewhere/votes\.db from here, and the rounds began with sqlite:///"
    ):
        start(output / "elsewhere")
    assert began == [str(output)] * 2 and not (output / "elsewhere/votes.db").exists()
    # of an older version
    write_json(manifest, {key: value for key, value in read_json(manifest).items() if key != "store"})
    with pytest.raises(KeyboardInterrupt):
        start(output / "elsewhere")


@pytest.mark.parametrize(
    ("share", "pairs", "needed"), [(1.0, 3, 3), (0.55, 20, 11), (0.6, 3, 2), (0.01, 3, 1), (1.0, 0, 0)]
)
def test_how_many_are_enough(share: float, pairs: int, needed: int) -> None:
    assert next(done for done in range(pairs + 1) if Votes(pairs, done).enough(share)) == needed
