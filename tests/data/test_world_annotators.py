"""Labelers and the oracle: what they choose, how often they agree, and what they rate."""

from __future__ import annotations

import random

import pytest

from data.schema import HALLUCINATION, HELPFULNESS
from data.world import language as lang
from data.world.annotators import CLEAN, Labeler, false_objects, rate, short_answer
from data.world.scene import COLOURS, OBJECTS, Group, Scene, sample_scene

SCENE = Scene(
    "s", "rest", "bedroom",
    (Group("cat", "black", (0,)), Group("book", "red", (4, 5)), Group("tv", "blue", (8,))), 0, (2, "ZOO"),
)  # fmt: skip
BARE = Scene("b", "rest", "bedroom", SCENE.groups, 0)
FULL = "There is a black cat at the top left, two red books and a blue tv at the bottom right."


def clean(a: str, b: str, scene: Scene = SCENE) -> dict[str, int | None]:
    return CLEAN.choose(scene, [a, b], random.Random(0))


def verdict(choices: dict[str, int | None]) -> int | None:
    return choices[HELPFULNESS] if choices[HALLUCINATION] is None else choices[HALLUCINATION]


def test_false_objects_in_order_with_repeats() -> None:
    assert false_objects(SCENE, "A cup, a cat, a fork and a cup. There is no vase.") == ["cup", "fork", "cup"]


@pytest.mark.parametrize(
    ("a", "b", "choices"),
    [
        # fewer false objects decide, however much more the other tells
        (FULL + " A clock.", "A cat and a book.", (1, None)),
        ("A cat and a book, a cup and a vase.", "A cat and a tv, a cup.", (1, None)),
        # the same number of false objects: what is true counts
        ("A cat and a book.", FULL, (None, 1)),
        ("A cat, a book, a tv and a cup.", "A cat, a tv and a fork.", (None, 0)),
        # repeats cost half of a true object each
        ("A cat, a book and a book.", "A cat and a book.", (None, 1)),
        # silence is not honesty: the second question decides, and telling wins
        ("", "A cat and a book, and a cup.", (None, 1)),
        ("I see nothing.", "A cat.", (None, 1)),
        # nor is half of what the other tells
        ("A cat.", FULL + " A clock.", (None, 1)),
    ],
)
def test_clean_choices(a: str, b: str, choices: tuple[int | None, int | None]) -> None:
    assert clean(a, b) == {HALLUCINATION: choices[0], HELPFULNESS: choices[1]}
    flipped = tuple(None if c is None else 1 - c for c in choices)
    assert clean(b, a) == {HALLUCINATION: flipped[0], HELPFULNESS: flipped[1]}


def test_a_tie_is_broken_by_a_coin() -> None:
    picks = {CLEAN.choose(SCENE, [FULL, FULL], random.Random(i))[HELPFULNESS] for i in range(20)}
    assert picks == {0, 1}


def test_silence_loses_against_every_true_description() -> None:
    rng = random.Random(0)
    for i in range(200):
        scene = sample_scene(31, i)
        assert verdict(CLEAN.choose(scene, ["", lang.describe(scene, rng)], rng)) == 1


def test_the_same_random_numbers_give_the_same_choices() -> None:
    labeler = Labeler()
    for i in range(20):
        texts = [FULL + " A clock.", "A cat and a cup."]
        assert labeler.choose(SCENE, texts, random.Random(i)) == labeler.choose(
            SCENE, texts, random.Random(i)
        )


def test_noticing_and_slipping_follow_their_rates() -> None:
    """One false object against none. Noticed (0.75) it decides, but for a slip (0.12).

    Unnoticed, both tell two true objects, and the third counts neither way: a coin.
    """
    labeler, n = Labeler(notice=0.75, flip=0.12), 4000
    rng = random.Random(1)
    texts = ["A cat, a book and a cup.", "A cat and a book."]
    right = sum(verdict(labeler.choose(SCENE, texts, rng)) == 1 for _ in range(n)) / n
    assert right == pytest.approx(0.75 * 0.88 + 0.25 * 0.5, abs=4 * (0.16 / n) ** 0.5)


def sampled_pairs(n: int) -> list[tuple[Scene, list[str]]]:
    """Two descriptions a scene: 40 % drop something, 45 % add something false or put it in a place."""
    rng = random.Random(1)
    pairs = []
    for i in range(n):
        scene, texts = sample_scene(2, i), []
        for _ in range(2):
            groups = list(scene.groups)
            if len(groups) > 1 and rng.random() < 0.4:
                groups.pop(rng.randrange(len(groups)))
            if rng.random() < 0.45:
                name = lang.absent(scene, rng, "tempting")
                at = rng.choice((len(groups), rng.randrange(len(groups))))
                groups[at : at + 1] = [Group(name, rng.choice(COLOURS), (rng.randrange(9),))]
            texts.append(lang.describe(scene, rng, groups))
        pairs.append((scene, texts))
    return pairs


def test_two_labelers_agree_about_as_often_as_the_thesis_measured() -> None:
    """Thesis, appendix H: 69 %. The set of pairs is ours, hence the margin."""
    labeler, pairs = Labeler(), sampled_pairs(4000)
    first, second, best = (
        [verdict(who.choose(s, texts, random.Random(f"{name}/{i}"))) for i, (s, texts) in enumerate(pairs)]
        for name, who in (("a", labeler), ("b", labeler), ("c", CLEAN))
    )
    agreement = sum(a == b for a, b in zip(first, second)) / len(pairs)
    assert agreement == pytest.approx(0.69, abs=0.04)
    assert sum(a == b for a, b in zip(first, best)) / len(pairs) > agreement


@pytest.mark.parametrize(
    ("kind", "about", "truth", "ratings"),
    [
        (
            "attribute", "cat", "The cat is black.",
            {"The cat is black.": 6, "Black!": 6, "The cat is red.": 1, "The cat is black or red.": 1,
             "I am not sure.": 3, "": 3, "The cat is red and there is a cup.": 0,
             "The black cat and a cup.": 2},
        ),
        (
            "adversarial", "kite", "There is no kite in the image.",
            {"There is no kite in the image.": 6, "I don't see a kite.": 6, "There are no kites.": 6,
             "It is red.": 1, "I am not sure.": 3, "I have no idea.": 3, "The kite is red.": 0,
             "There is no kite but look. There is a cup.": 2},
        ),
        (
            "comparison", "cat", "There are more books than cats.",
            {"There are more books than cats.": 6, "There are more cats than books.": 1,
             "There are as many of both.": 1, "Hard to say.": 3, "There are more cups than cats.": 0},
        ),
        (
            "counting", "book", "There are two books.",
            {"There are two books.": 6, "Two.": 6, "There are three books.": 1, "There are no books.": 1,
             "Some.": 3, "There are three books and a cup.": 0, "There are two books and cups.": 2},
        ),
        (
            "relation", "cat", "The cat is at the top left.",
            {"The cat is at the top left.": 6, "The cat is at the top.": 1, "The cat is at the top right.": 1,
             "Somewhere.": 3, "The cat is on the left of the cup.": 0, "At the top left, by a cup.": 2},
        ),
        (
            "environment", None, "It was taken in a bedroom.",
            {"It was taken in a bedroom.": 6, "It was taken in a park.": 1, "No idea.": 3,
             "In a park with a kite.": 0, "In a bedroom with a bed.": 2},
        ),
        (
            "holistic", None, FULL,
            {FULL: 6, "A cat and a tv.": 6, "A cat.": 3, "I see nothing.": 3, "A cup.": 0,
             FULL + " A cup.": 2},
        ),
        (
            "other", None, "The board says ZOO.",
            {"The board says ZOO.": 6, "zoo": 6, "The board says BUS.": 1, "I cannot read it.": 3,
             "There is no board in the image.": 1, "The board says BUS and there is a cup.": 0,
             "It says ZOO by the cup.": 2},
        ),
    ],
)  # fmt: skip
def test_ratings(kind: str, about: str | None, truth: str, ratings: dict[str, int]) -> None:
    assert {text: rate(SCENE, kind, about, truth, text)[0] for text in ratings} == ratings


def test_a_board_that_is_not_there() -> None:
    truth = "There is no board in the image."
    told = {truth: 6, "The board says ZOO.": 1, "I have no idea.": 3, "There is none.": 6}
    assert {t: rate(BARE, "other", None, truth, t)[0] for t in told} == told


@pytest.mark.parametrize("kind", ["attribute", "counting", "relation"])
def test_a_question_about_something_absent_is_adversarial(kind: str) -> None:
    truth = "There is no kite in the image."
    assert rate(SCENE, kind, "kite", truth, truth)[0] == 6
    assert rate(SCENE, kind, "kite", truth, "The kite is red.") == (0, "wrong, and not there: kite")


def test_every_true_answer_is_rated_six() -> None:
    rng = random.Random(6)
    for i in range(200):
        scene = sample_scene(41, i)
        for make in lang.MMHAL:
            turn = make(scene, rng)
            kind, about = lang.question_kind(turn.question)
            assert rate(scene, kind, about, turn.answer, turn.answer)[0] == 6, turn


@pytest.mark.parametrize("text", ["Yes", "No"])
def test_yes_no_and_letters_are_judged_by_the_scene(text: str) -> None:
    scene = sample_scene(1, 1)
    here, absent = scene.objects[0], next(n for n in OBJECTS if n not in scene.objects)
    other = {"Yes": "No", "No": "Yes"}[text]
    rng = random.Random(0)
    for name, right in ((here, "Yes"), (absent, "No")):
        question = lang.yes_no(name, True).question
        assert short_answer(scene, question, text) == (text == right)
        choices = CLEAN.choose(scene, [text, other], rng, question)
        assert choices[HELPFULNESS] == (0 if text == right else 1)
    options = f"A. {absent} B. {here} C. {absent} D. {absent}"
    letters = f"Which of these is in the image? {options} Answer with the letter."
    assert short_answer(scene, letters, "B") is True
    assert short_answer(scene, letters, "A") is False
    assert short_answer(scene, "Describe this image in detail.", "Yes") is None
