"""What is written about a scene is true of it, and what a text claims is read right."""

from __future__ import annotations

import random
import re

import pytest

from data.world import language as lang
from data.world.scene import CELLS, OBJECTS, Group, Scene, sample_scene

SCENES = [sample_scene(21, i) for i in range(400)]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("There is a red cat.", ["cat"]),
        ("Two cats, three benches and two children.", ["cat", "bench", "child"]),
        ("Men and women, tvs and watches.", ["man", "woman", "tv"]),
        ("A cat. The cat is red. A CAT!", ["cat", "cat", "cat"]),
        ("There is no cat in the image.", []),
        ("There is no cat. There is a cup.", ["cup"]),
        ("The cat is not a cup.", ["cat"]),
        ("There isn't a cat; a cup is here.", ["cup"]),
        ("I can't see a cat. I doesn’t matter, a cup.", []),
        ("A table without cups.", ["table"]),
        ("I cannot see a kite.", []),
        ("Neither a boat nor a car.", []),
        ("None of the bottles.", []),
        ("There is no cat, but there is a cup.", ["cup"]),
        ("No cat but a cup.", ["cup"]),
        ("There is no cat, there are two cups.", ["cup"]),
        ("There is no cat, cup or kite.", []),
        ("carpet, catalog, scar, tieback", []),
        ("", []),
    ],
)
def test_mentioned(text: str, names: list[str]) -> None:
    assert lang.mentioned(text) == names


def test_every_name_is_read_back_in_both_numbers() -> None:
    for name in OBJECTS:
        assert lang.mentioned(lang.phrase(name, "red")) == [name]
        assert lang.mentioned(lang.phrase(name, None, 3)) == [name]


def test_phrases() -> None:
    assert lang.phrase("apple", None) == "an apple"
    assert lang.phrase("apple", "red") == "a red apple"
    assert lang.phrase("cat", "orange") == "an orange cat"
    assert lang.phrase("bench", "blue", 2) == "two blue benches"
    assert lang.listing(["a", "b", "c"]) == "a, b and c"
    assert lang.listing(["a"]) == "a" and lang.listing([]) == ""


def claims(text: str) -> list[tuple[str, str, str]]:
    """(number, colour, singular name) of each coloured phrase in the text."""
    singular = {p: n for n, p in lang.PLURALS.items()} | {n: n for n in OBJECTS}
    found = re.findall(r"\b(an?|two|three) (\w+) (\w+)", text.lower())
    return [(k, c, singular[n]) for k, c, n in found if n in singular]


def check_claims(scene: Scene, text: str) -> None:
    for number, colour, name in claims(text):
        group = scene.group(name)
        assert group is not None and group.colour == colour
        assert {"a": 1, "an": 1, "two": 2, "three": 3}[number] == group.count


def test_captions_name_true_objects_only_and_at_least_one() -> None:
    for scene in SCENES:
        texts = lang.captions(scene)
        assert len(texts) == 5
        for text in texts:
            named = lang.mentioned(text)
            assert named and set(named) <= set(scene.objects)
            check_claims(scene, text)


def test_captions_are_fixed_by_scene_and_seed() -> None:
    assert lang.captions(SCENES[0]) == lang.captions(SCENES[0])
    assert any(lang.captions(s) != lang.captions(s, seed=1) for s in SCENES[:10])


def test_captions_leave_away_what_stands_out_less() -> None:
    """The share of captions that name a group follows its salience."""
    told: dict[float, list[bool]] = {}
    for scene in SCENES:
        for text in lang.captions(scene):
            for g in scene.groups:
                told.setdefault(g.salience, []).append(g.name in lang.mentioned(text))
    share = {k: sum(v) / len(v) for k, v in told.items()}
    assert share[0.15] < 0.3 < share[0.5] < 0.7 < share[0.85]


def test_a_description_names_everything_once() -> None:
    rng = random.Random(0)
    for scene in SCENES:
        text = lang.describe(scene, rng)
        assert lang.mentioned(text) == scene.objects
        assert scene.environment in text.lower()
        assert (scene.text is None) == ("board" not in text)
        assert len(claims(text)) == len(scene.groups)
        check_claims(scene, text)


def test_spotting_names_everything_with_every_place() -> None:
    rng = random.Random(0)
    for scene in SCENES:
        sentences = lang.spotting(scene, rng).answer.removesuffix(".").split(". ")
        for sentence, group in zip(sentences, scene.groups, strict=True):
            assert lang.mentioned(sentence) == [group.name]
            assert all(CELLS[c] in sentence for c in group.cells)


def test_planting_adds_exactly_one_absent_object() -> None:
    rng = random.Random(1)
    for scene in SCENES:
        groups = lang.plant(scene, rng)
        added = [g for g in groups if g not in scene.groups]
        assert len(groups) == len(scene.groups) + 1 and len(added) == 1
        assert added[0].name not in scene.objects and added[0].count == 1
        assert set(lang.mentioned(lang.describe(scene, rng, groups))) - set(scene.objects) == {added[0].name}


def test_a_full_grid_can_still_be_planted_in() -> None:
    groups = tuple(
        Group(n, "red", cells) for n, cells in (("cat", (0, 1, 2)), ("cup", (3, 4, 5)), ("tv", (6, 7, 8)))
    )
    assert len(lang.plant(Scene("s", "rest", "bedroom", groups, 0), random.Random(0))) == 4


@pytest.mark.parametrize("how", ["random", "tempting"])
def test_absent_objects_are_absent(how: str) -> None:
    rng = random.Random(2)
    assert all(lang.absent(s, rng, how) not in s.objects for s in SCENES for _ in range(5))


def test_tempting_objects_tempt() -> None:
    """Of a scene with a pizza but no fork, the fork is asked for most."""
    scene = Scene("s", "dinner", "kitchen", (Group("pizza", "red", (0,)), Group("tie", "red", (1,))), 0)
    rng = random.Random(3)
    asked = [lang.absent(scene, rng, "tempting") for _ in range(500)]
    assert asked.count("fork") > 350
    assert {"pizza", "tie"}.isdisjoint(asked)


def test_turns_by_hand() -> None:
    scene = Scene(
        "s", "rest", "office",
        (Group("cat", "black", (0,)), Group("book", "red", (4, 5)), Group("tv", "blue", (8,))), 0, (2, "ZOO"),
    )  # fmt: skip
    rng = random.Random(0)
    turns = {make.__name__: {make(scene, rng) for _ in range(60)} for make in lang.MMHAL}
    told = {kind: {t.question: t.answer for t in found} for kind, found in turns.items()}
    assert told["attribute"] == {
        "What color is the cat?": "The cat is black.",
        "What color are the books?": "The books are red.",
        "What color is the tv?": "The tv is blue.",
    }
    assert told["counting"] == {
        "How many cats are there?": "There is one cat.",
        "How many books are there?": "There are two books.",
        "How many tvs are there?": "There is one tv.",
    }
    assert told["relation"] == {
        "Where is the cat?": "The cat is at the top left.",
        "Where is the tv?": "The tv is at the bottom right.",
    }
    assert told["comparison"]["Are there more cats or more books?"] == "There are more books than cats."
    assert told["comparison"]["Are there more tvs or more cats?"] == "There are as many of both."
    assert told["environment"] == {"Where was this picture taken?": "It was taken in an office."}
    assert told["other"] == {"What does the board say?": "The board says ZOO."}
    assert all(a == f"There is no {q.split()[-1][:-1]} in the image." for q, a in told["adversarial"].items())


def test_choice_has_one_right_option_and_true_rationales() -> None:
    rng = random.Random(4)
    letters = set()
    for scene in SCENES:
        turn, rationales = lang.choice(scene, rng)
        options = dict(re.findall(r"([A-D])\. (\w+)", turn.question))
        assert list(options) == list(lang.LETTERS) and len(set(options.values())) == 4
        assert [k for k, name in options.items() if name in scene.objects] == [turn.answer]
        assert len(rationales) == 3
        assert all(lang.mentioned(text) == [options[turn.answer]] for text in rationales)
        letters.add(turn.answer)
    assert letters == set(lang.LETTERS)


def test_question_kind_of_every_generated_question() -> None:
    rng = random.Random(5)
    for scene in SCENES:
        for make in lang.MMHAL:
            turn = make(scene, rng)
            kind, about = lang.question_kind(turn.question)
            assert kind == ("attribute" if turn.kind == "adversarial" else turn.kind)
            assert about == turn.about


def test_the_corpus_holds_every_word() -> None:
    words = set(" ".join(lang.corpus(SCENES[:50])).replace(".", " ").replace(",", " ").split())
    assert {*OBJECTS, *lang.PLURALS.values(), *lang.COLOURS, *lang.ENVIRONMENTS} <= words
