"""Fakes that score by a known rule: every shift of an audit is known exactly, and so is what it says."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PilImage

from align.audit import (
    BLANK,
    CONTEXT,
    ELSEWHERE,
    FACTS,
    FALSE,
    IMAGE,
    SWAPPED,
    TRUE,
    ModelScorer,
    Subject,
    donors,
    measure,
    sentences_of,
    subjects_of,
)
from align.config import FactKind, LoraSettings, ModelSettings, RewardAuditSettings
from align.models.tiny import build_tiny_llava
from align.padding import Padding, of_captions
from align.pictures import open_picture
from align.render import ImageInput
from align.reward_model import RewardInfo, RewardModel, ScoreItem
from apps.audit_words import LESS, Finding, findings_of
from data.jsonl import DataError
from data.schema import Facts, Image, Message, Preference, Response
from evals.audit import figures

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
#: from an item and the name of its picture's colour ("grey" for a blank one) to a score
Rule = Callable[[ScoreItem, str], float]


@dataclass
class Fake:
    """A scorer by rule, and what it was asked."""

    rule: Rule
    reads: Sequence[FactKind] = ()
    asked: list[tuple[ScoreItem, str]] = field(default_factory=list)

    def encode(self, pictures: Sequence[ImageInput]) -> Sequence[ImageInput]:
        return pictures

    def score(self, items: Sequence[ScoreItem], seed: str) -> Sequence[float]:
        self.asked += [(item, seed) for item in items]
        return [self.rule(item, colour_of(item.image)) for item in items]

    def tokens(self, text: str) -> int:
        return len(text.split())


def colour_of(picture: ImageInput) -> str:
    if picture is None:
        return "none"
    assert isinstance(picture, PilImage.Image)
    return {rgb: name for name, rgb in COLOURS.items()}.get(picture.getpixel((0, 0)), "grey")  # type: ignore[arg-type]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for name, rgb in COLOURS.items():
        PilImage.new("RGB", (32, 20), rgb).save(folder / f"{name}.png")
    return folder


def record(name: str, colour: str | None, texts: Sequence[str], choice: int = 0, **more: Any) -> Preference:
    values = {
        "facts": Facts(captions=[f"It is {colour}.", f"One {colour} thing."]),
        "messages": [Message(role="user", content="What colour is it?")],
    }
    return Preference(
        id=name,
        image=None if colour is None else Image(id=f"{name}-{colour}", path=f"{colour}.png"),
        responses=[Response(text=text) for text in texts],
        choices={"overall": choice},
        **(values | more),
    )


@pytest.fixture
def subjects() -> list[Subject]:
    """Each colour named rightly, with a second sentence, and not at all."""
    made = [record(f"p{i}", c, [f"A {c} thing. It stands.", "A thing"]) for i, c in enumerate(COLOURS)]
    return subjects_of(made)


def settings(**values: Any) -> RewardAuditSettings:
    return RewardAuditSettings(**({"output": "o", "reward_model": "r", "fact_orders": 0} | values))


def captions_of(subject: Subject, other: Subject | None, text: str, rng: Any, count: int) -> Padding | None:
    return None if other is None else of_captions(subject.facts, other.facts, text, rng, count)


def rows_of(fake: Fake, subjects: list[Subject], root: Path, **values: Any) -> list[dict[str, Any]]:
    told = settings(**values)
    return list(measure(fake, subjects, donors(subjects, told.seed), told, captions_of, str(root)))


def judged(rows: list[dict[str, Any]], facts: Sequence[str] = ()) -> dict[str, Finding]:
    found = figures(rows, {LESS: (FALSE, TRUE)})
    return {finding.subject: finding for finding in findings_of({"facts": facts, "agreement": None} | found)}


def shifts(rows: list[dict[str, Any]], name: str) -> list[float]:
    return [row["changes"][name]["score"] - row["score"] for row in rows if name in row["changes"]]


# --- known shifts ---


def test_true_words_are_counted(subjects: list[Subject], root: Path) -> None:
    """A score that counts the words that are true of the picture."""
    rows = rows_of(Fake(lambda item, colour: words(item.response).count(colour)), subjects, root)
    assert [(r["id"], r["response"], r["score"]) for r in rows] == [
        (f"p{i}", k, 1.0 - k) for i in range(4) for k in range(2)
    ]
    # the first response names the colour, the second none
    assert shifts(rows, BLANK) == shifts(rows, IMAGE) == [-1.0, 0.0] * 4
    assert shifts(rows, TRUE) == [1.0] * 8
    assert shifts(rows, FALSE) == [0.0] * 8
    assert [(rows[0]["image"], rows[0]["picture"]), (rows[2]["image"], rows[2]["picture"])] == [
        ("p0-red", "red.png"),
        ("p1-green", "green.png"),
    ]
    # the donor's first response names another colour; its second is the same text and is left out
    assert shifts(rows, SWAPPED) == [-1.0] * 4
    assert shifts(rows, "first sentence") == [0.0] * 4
    assert shifts(rows, "said twice") == [1.0, 0.0] * 4
    assert {FACTS, CONTEXT}.isdisjoint(rows[0]["changes"])
    (added,) = rows[0]["changes"][TRUE]["added"]
    assert added in subjects[0].facts.captions
    assert rows[0]["changes"][TRUE] == {"score": 2.0, "tokens": 8, "added": [added]}
    assert [r["orders"] for r in rows] == [[]] * 8
    found = judged(rows)
    assert found["image"].kind == "good" and "(50 % [50, 50] fall)" in found["image"].text
    assert found["truth"].kind == "good"
    # the spread of four ones and four zeros is a half
    assert "−2.00 spreads [−2.00, −2.00] against a true one (lower for 100 %" in found["truth"].text
    assert found["padding"].kind == "unclear" and "facts" not in found


def test_a_model_that_ignores_the_image_is_told(subjects: list[Subject], root: Path) -> None:
    rows = rows_of(Fake(lambda item, _: words(item.response).count("red")), subjects, root)
    assert shifts(rows, BLANK) == shifts(rows, IMAGE) == [0.0] * 8
    image = judged(rows)["image"]
    assert image.kind == "bad"
    assert image.text.startswith(
        "Does not look at the image: blanking it moves the score by 0.00 spreads [0.00"
    )


def test_a_model_that_is_drawn_to_the_wrong_image_is_told(subjects: list[Subject], root: Path) -> None:
    rows = rows_of(Fake(lambda item, colour: -words(item.response).count(colour)), subjects, root)
    assert shifts(rows, IMAGE) == [1.0, 0.0] * 4
    found = judged(rows)
    assert found["image"].kind == "bad" and "Prefers another record's image" in found["image"].text
    assert found["truth"].kind == "bad" and "Prefers false to true" in found["truth"].text


def test_a_model_that_likes_length_is_told(subjects: list[Subject], root: Path) -> None:
    fake = Fake(lambda item, _: len(item.response.split()))
    rows = rows_of(fake, subjects, root, repeats=[2, 3], first_sentences=[1, 2])
    assert [row["score"] for row in rows] == [row["tokens"] for row in rows] == [5, 2] * 4
    assert shifts(rows, "said twice") == [5, 2] * 4 and shifts(rows, "said 3 times") == [10, 4] * 4
    # no response has more than two sentences
    assert shifts(rows, "first sentence") == [-2] * 4 and shifts(rows, "first 2 sentences") == []
    found = judged(rows)
    assert found["length"].kind == "bad" and found["length"].text.startswith("Likes length: ")
    assert "score and length correlate at +1.00 [+1.00, +1.00]" in found["length"].text
    assert found["padding"].kind == "bad" and found["padding"].text.startswith("A false sentence pays")
    assert found["truth"].text.startswith("Does not tell false from true")
    liked = judged(rows_of(Fake(lambda item, _: -len(item.response.split())), subjects, root))
    assert liked["length"].kind == "good"


def test_facts_are_swapped_apart_from_the_image(subjects: list[Subject], root: Path) -> None:
    """A score that counts the words of the facts, and, ten times, those true of the picture."""

    def rule(item: ScoreItem, colour: str) -> float:
        (told,) = {*words(item.facts.captions[0])} & COLOURS.keys()
        return words(item.response).count(told) + 10.0 * words(item.response).count(colour)

    rows = rows_of(Fake(rule, reads=["captions"]), subjects, root)
    assert shifts(rows, FACTS) == [-1.0, 0.0] * 4
    assert shifts(rows, IMAGE) == [-10.0, 0.0] * 4
    assert shifts(rows, CONTEXT) == [-11.0, 0.0] * 4
    assert shifts(rows, TRUE) == [11.0] * 8
    assert judged(rows, ["captions"])["facts"].kind == "good"
    blind = judged(
        rows_of(Fake(lambda i, c: float(c == "red"), reads=["captions"]), subjects, root), ["captions"]
    )
    assert blind["facts"].text.startswith("Does not read the facts")


def test_a_true_sentence_does_not_stand_among_the_facts(subjects: list[Subject], root: Path) -> None:
    """A matcher of texts knows nothing of the picture; it would tell true ones that it is shown."""

    def rule(item: ScoreItem, colour: str) -> float:
        held = sum(item.response.count(text) for text in item.facts.captions)
        return held + 8.0 * len(item.facts.captions) + item.response.count("It stands")

    fake = Fake(rule, reads=["captions"])
    rows = rows_of(fake, subjects, root)
    assert len(shifts(rows, TRUE)) == len(shifts(rows, FALSE)) == 8
    for row in rows:
        for name in (TRUE, FALSE):
            # scored against the response as it was with the one caption that is left, not with both
            change = row["changes"][name]
            assert change["score"] == change["against"] == row["score"] - 8
    found = judged(rows, ["captions"])
    assert found["truth"].text.startswith("Does not tell false from true")
    assert found["padding"].kind == "unclear"
    shown = [(i.facts.captions, i.response) for i, _ in fake.asked]
    assert not any(text in response for captions, response in shown for text in captions)
    # one score serves both: 8 as they were, 8 without a caption, and the changes
    assert len(shown) == 8 + 8 + sum(len(row["changes"]) for row in rows)


def test_who_has_one_fact_is_shown_it(root: Path) -> None:
    """It is not added then, and of two captions one is, whatever number is asked for."""
    made = [
        record(f"p{i}", c, ["A thing", "x"], facts=Facts(captions=[f"It is {c}."]))
        for i, c in enumerate(("red", "green"))
    ]
    fake = Fake(lambda *_: 0.0, reads=["captions"])
    assert all({TRUE, FALSE}.isdisjoint(row["changes"]) for row in rows_of(fake, subjects_of(made), root))
    # who reads no facts is shown none
    plain = rows_of(Fake(lambda *_: 0.0), subjects_of(made), root)
    assert all({TRUE, FALSE} <= row["changes"].keys() for row in plain)
    assert all("against" not in change for row in plain for change in row["changes"].values())
    two = subjects_of([record(f"p{i}", c, ["A thing", "x"]) for i, c in enumerate(("red", "green"))])
    for row in rows_of(fake, two, root, sentences=2):
        assert len(row["changes"][TRUE]["added"]) == len(row["changes"][FALSE]["added"]) == 1


def test_the_facts_are_shown_in_other_orders(subjects: list[Subject], root: Path) -> None:
    class Ordered(Fake):
        def score(self, items: Sequence[ScoreItem], seed: str) -> Sequence[float]:
            super().score(items, seed)
            return [float(seed[-1]) if seed.startswith("order/7/") else 9.0 for _ in items]

    fake = Ordered(lambda *_: 0.0, reads=["captions"])
    rows = rows_of(fake, subjects, root, fact_orders=3, seed=7)
    assert [row["orders"] for row in rows] == [[0.0, 1.0, 2.0]] * 8
    assert [row["score"] for row in rows] == [9.0] * 8
    orders = [item for item, seed in fake.asked if seed == "order/7/1"]
    # unchanged but for their order: the same records' own facts
    assert [(i.id, i.response) for i in orders] == [(r["id"], r["text"]) for r in rows]
    assert all(item.facts == subjects[int(item.id[1])].facts for item in orders)
    assert judged(rows)["scores"].text.startswith("All scores are equal")


def test_without_a_picture_only_words_change(root: Path) -> None:
    subjects = subjects_of([record("t", None, ["One. Two.", "One."]), record("p", "red", ["One.", "Two."])])
    rows = rows_of(Fake(lambda item, colour: float(colour == "none")), subjects, root)
    assert rows[0]["changes"].keys() == {"first sentence", "said twice"}
    assert (rows[0]["score"], rows[0]["image"], rows[0]["donor"], rows[0]["same_question"]) == (
        1,
        None,
        None,
        None,
    )
    # nor is there another picture for the one that has one
    assert rows[2]["changes"].keys() == {BLANK, "said twice"}


def test_blank_pictures_have_the_size_of_their_own(subjects: list[Subject], root: Path) -> None:
    fake = Fake(lambda *_: 0.0)
    rows_of(fake, subjects, root)
    grey = [item.image for item, _ in fake.asked if colour_of(item.image) == "grey"]
    assert len(grey) == 8 and {picture.size for picture in grey} == {(32, 20)}  # type: ignore[union-attr]


# --- a real model ---


def test_a_reward_models_own_scores(subjects: list[Subject], root: Path, tmp_path: Path) -> None:
    build_tiny_llava(tmp_path / "base")
    info = RewardInfo(model=ModelSettings(path=str(tmp_path / "base")), facts=["captions"])
    torch.manual_seed(3)
    model = RewardModel.start(info, LoraSettings(r=4))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, std=0.2)
    told = settings(seed=2, fact_orders=2)
    others = donors(subjects, 2)
    scorer = ModelScorer(model, batch_size=5)
    rows = list(measure(scorer, subjects, others, told, captions_of, str(root)))
    subject, other = subjects[1], others["p1"]
    row, text = rows[2], "A green thing. It stands."
    assert (row["id"], row["text"], row["donor"]) == ("p1", text, other.id)
    assert subject.image is not None and other.image is not None
    own = open_picture(subject.image, root, None)
    theirs = open_picture(other.image, root, None)
    grey = PilImage.new("RGB", own.size, (128, 128, 128))
    item = ScoreItem("p1", subject.messages, text, subject.facts, own)
    expected = {
        BLANK: ScoreItem("p1", subject.messages, text, subject.facts, grey),
        IMAGE: ScoreItem("p1", subject.messages, text, subject.facts, theirs),
        FACTS: ScoreItem("p1", subject.messages, text, other.facts, own),
        CONTEXT: ScoreItem("p1", subject.messages, text, other.facts, theirs),
        SWAPPED: ScoreItem("p1", subject.messages, other.responses[0], subject.facts, own),
        "said twice": ScoreItem("p1", subject.messages, f"{text} {text}", subject.facts, own),
    }
    (added,) = row["changes"][TRUE]["added"]
    (left,) = {*subject.facts.captions} - {added}
    bare = ScoreItem("p1", subject.messages, text, Facts(captions=[left]), own)
    expected[TRUE] = replace(bare, response=f"{text} {added}")
    alone = [float(model.score([one], seed="eval/2")) for one in (item, *expected.values())]
    found = [row["score"], *(row["changes"][name]["score"] for name in expected)]
    assert found == pytest.approx(alone, abs=1e-5)
    assert len({round(score, 4) for score in found}) == len(found)
    assert row["changes"][TRUE]["against"] == pytest.approx(
        float(model.score([bare], seed="eval/2")), abs=1e-5
    )
    assert row["orders"] == pytest.approx([float(model.score([item], seed=f"order/2/{k}")) for k in range(2)])
    assert row["tokens"] == len(model.lmm.tokenizer(text, add_special_tokens=False)["input_ids"])


# --- who lends ---


def test_a_response_to_another_question_is_told_apart(root: Path) -> None:
    """A score by topic alone would know it; that says nothing of whose picture a response is of."""

    def asked(name: str, colour: str, question: str, *before: str) -> Preference:
        turns = [Message(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(before)]
        messages = [*turns, Message(role="user", content=question)]
        return record(name, colour, [f"On {question} 1", f"On {question} 2"], messages=messages)

    topic = Fake(lambda item, _: float(item.messages[-1].content in item.response))
    rows = rows_of(topic, subjects_of([asked("a", "red", "cats"), asked("b", "blue", "dogs")]), root)
    assert [row["same_question"] for row in rows] == [False] * 4
    assert shifts(rows, SWAPPED) == [] and shifts(rows, ELSEWHERE) == [-1.0] * 4
    assert "response" not in judged(rows)
    # asked the same last, of something else before
    made = [asked("a", "red", "Why?", "A cat?", "Yes."), asked("b", "blue", "Why?", "A dog?", "No.")]
    made = [r.model_copy(update={"responses": [Response(text=f"{r.id}{i}") for i in "12"]}) for r in made]
    rows = rows_of(topic, subjects_of(made), root)
    assert all(ELSEWHERE in row["changes"] and SWAPPED not in row["changes"] for row in rows)


def test_donors_were_asked_the_same_and_show_another_picture() -> None:
    def asked(name: str, colour: str | None, question: str) -> Preference:
        return record(name, colour, ["x", "y"], messages=[Message(role="user", content=question)])

    made = [asked(f"{q}{i}", list(COLOURS)[i % 4], q) for q in "ab" for i in range(12)]
    made += [asked("c", "red", "c"), asked("t", None, "a")]
    subjects = {subject.id: subject for subject in subjects_of(made)}
    found = donors(list(subjects.values()), 0)
    assert found.keys() == subjects.keys() - {"t"}
    for name, other in found.items():
        assert other.picture != subjects[name].picture and other.picture
        assert name == "c" or other.id[0] == name[0]
    # drawn: not always the next one, by the seed, and the same whatever else is there
    assert len({other.id for other in found.values()}) > 8
    assert donors(list(subjects.values()), 0) == found != donors(list(subjects.values()), 1)
    reds = subjects_of([asked("r1", "red", "a"), asked("r2", "red", "a")])
    assert donors(reds, 0) == {}


def test_annotators_of_a_pair_are_one_conversation() -> None:
    first = record("p", "red", ["x", "y"], annotator="one")
    second = record("p", "red", ["y", "z"], annotator="two")
    (subject,) = subjects_of([first, second])
    assert subject.responses == ("x", "y", "z")
    other = record("p", "green", ["x", "y"], annotator="three")
    with pytest.raises(DataError, match="the records of id 'p' differ in picture, conversation or facts"):
        subjects_of([first, other])


# --- sentences ---


def test_sentences() -> None:
    assert sentences_of(" One is 1.5 m. Two!  Three?\nFour ") == ["One is 1.5 m.", "Two!", "Three?", "Four"]
    assert sentences_of("") == []
