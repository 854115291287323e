"""Lessons in reading: their labels follow from the texts, which look as the reward model's will."""

from __future__ import annotations

import random
import re

import pytest

from data.schema import Example, Facts
from data.world import language as lang
from data.world import reading
from data.world.annotators import rate
from data.world.scene import OBJECTS, PARTNERS, THEMES, Scene, jumble, sample_scene

SCENES = [sample_scene(61, i) for i in range(400)]


def lessons(make: object) -> list[tuple[Scene, Example]]:
    rng = random.Random(0)
    return [(s, make(s, rng)) for s in SCENES]  # type: ignore[operator]


def facts_of(text: str) -> list[str]:
    """The captions of a user turn that starts with the header; none of one without it."""
    head, *lines = text.split("\n")
    if head != reading.HEADER:
        assert reading.HEADER not in text
        return []
    return [s for s in lines if not s.endswith(("?", "letter.")) and not s.startswith("Answer: ")]


def test_facts_stand_as_the_reward_model_will_show_them() -> None:
    pytest.importorskip("torch")
    from align.render import FACTS_HEADER, facts_text

    texts = ["A picture of a cat.", "There is a red cup.", "This park has a kite."]
    shown = facts_text(Facts(captions=texts), ["captions"], {}, random.Random(3))
    assert shown is not None
    lines = shown.split("\n")
    assert sorted(lines[1:]) == sorted(texts)
    assert reading.facts_lines(lines[1:]) == shown
    assert reading.HEADER == FACTS_HEADER


def test_answers_follow_from_the_captions_alone() -> None:
    answers = []
    for scene, lesson in lessons(reading.questions):
        texts = [m.content for m in lesson.messages]
        captions = facts_of(texts[0])
        assert 1 <= len(captions) <= 5 and len(texts) >= 2 and lesson.image is None
        told = set(lang.mentioned(" ".join(captions)))
        assert told <= set(scene.objects)
        for question, answer in zip(texts[::2], texts[1::2], strict=True):
            asked = question.split("\n")[-1]
            if found := re.fullmatch(r"Is there an? (\w+) in the image\?", asked):
                assert answer == ("Yes" if found[1] in told else "No")
                answers.append(answer)
            else:
                options = dict(re.findall(r"([A-D])\. (\w+)", asked))
                assert [k for k, name in options.items() if name in told] == [answer]
    assert 0.4 < answers.count("Yes") / len(answers) < 0.6


def test_verified_descriptions() -> None:
    """ "No" always names something that no caption tells; "Yes" nothing that is not there."""
    right = 0
    for scene, lesson in lessons(reading.verify):
        question, description, evaluation, answer = (m.content for m in lesson.messages)
        assert question in lang.DESCRIBE
        captions = facts_of(evaluation)
        assert 3 <= len(captions) <= 5
        told, named = set(lang.mentioned(" ".join(captions))), set(lang.mentioned(description))
        false = named - set(scene.objects)
        assert told <= set(scene.objects) and named
        assert answer == ("No" if false else "Yes")
        assert not false & told
        right += answer == "Yes"
    assert 0.4 < right / len(SCENES) < 0.6


def test_the_evaluation_turn_is_filled_as_a_reward_model_would() -> None:
    pytest.importorskip("torch")
    from align.render import fill

    for make in (reading.verify, reading.checking):
        for _, lesson in lessons(make):
            said, turn = lesson.messages[1].content, lesson.messages[2].content
            captions = facts_of(turn)
            facts = reading.facts_lines(captions) if captions else ""
            assert turn == fill(reading.TEMPLATE, facts=facts, response=said)


def test_checking_shows_captions_in_about_half_of_its_lessons() -> None:
    told = [bool(facts_of(lesson.messages[2].content)) for _, lesson in lessons(reading.checking)]
    assert 0.4 < sum(told) / len(told) < 0.6


def test_corrupting_replaces_one_or_two_objects() -> None:
    rng = random.Random(1)
    numbers = set()
    for scene in SCENES:
        groups = reading.corrupt(scene, list(scene.groups), rng)
        false = [g for g in groups if g.name not in scene.objects]
        numbers.add(len(false))
        assert len(groups) == len(scene.groups) and len({g.name for g in groups}) == len(groups)
        assert {g for g in groups if g.name in scene.objects} <= set(scene.groups)
        assert [g.cells for g in groups] == [g.cells for g in scene.groups]
    assert numbers == {1, 2}


def test_right_and_wrong_descriptions_are_equally_long() -> None:
    named: dict[str, list[int]] = {"Yes": [], "No": []}
    for i in range(3000):
        lesson = reading.verify(sample_scene(8, i), random.Random(i))
        named[lesson.messages[3].content].append(len(lang.mentioned(lesson.messages[1].content)))
    means = {answer: sum(n) / len(n) for answer, n in named.items()}
    assert abs(means["Yes"] - means["No"]) < 0.1


def test_captioning_tells_the_truth_in_both_orders() -> None:
    first = set()
    for scene, lesson in lessons(reading.captioning):
        texts = [m.content for m in lesson.messages]
        first.add(texts[0])
        assert set(texts[::2]) == {"Give a short caption.", "Name what you see and where it is."}
        for text in texts[1::2]:
            assert set(lang.mentioned(text)) <= set(scene.objects)
    assert len(first) == 2


def test_lessons_are_fixed_by_their_random_numbers() -> None:
    for make in (
        reading.lookup,
        reading.judge,
        reading.questions,
        reading.verify,
        reading.captioning,
        reading.finding,
        reading.matching,
        reading.looking,
    ):
        assert make(SCENES[0], random.Random(5)) == make(SCENES[0], random.Random(5))


def test_lookup_tells_its_answers_in_the_text_and_nowhere_else() -> None:
    yes: dict[str, int] = {}
    asked = []
    for _, lesson in lessons(reading.lookup):
        facts, first = lesson.messages[0].content.rsplit("\n", 1)
        told = lang.mentioned(facts)
        turns = zip([first, *(m.content for m in lesson.messages[2::2])], lesson.messages[1::2], strict=True)
        names = []
        for question, answer in turns:
            name = lang.mentioned(question)[0]
            names.append(name)
            assert answer.content == ("Yes" if name in told else "No")
            yes[name] = yes.get(name, 0) + (answer.content == "Yes")
        assert len(set(names)) == len(names) == 2 * len(told)
        asked += names
    # every thing of the world is asked for, and as often told as not
    assert set(asked) == set(OBJECTS)
    assert all(0.2 < yes[name] / asked.count(name) < 0.8 for name in OBJECTS)


def test_judge_s_verdict_follows_from_its_one_sentence() -> None:
    right = []
    for _, lesson in lessons(reading.judge):
        asked, verdict = (m.content for m in lesson.messages)
        fact, answer = asked.removeprefix(reading.HEADER).split("\nAnswer: ")
        supported = set(lang.mentioned(answer)) <= set(lang.mentioned(fact))
        assert verdict == ("Yes" if supported else "No")
        assert asked == reading.question_about(answer.split("\n")[0], [fact.strip()])
        right.append(supported)
    assert 0.4 < sum(right) / len(right) < 0.6


def test_finding_asks_about_a_jumbled_scene_without_regard_to_what_goes_together() -> None:
    rng = random.Random(0)
    tempting = total = 0
    for scene in map(jumble, SCENES):
        lesson = reading.finding(scene, rng)
        for question, answer in zip(lesson.messages[::2], lesson.messages[1::2], strict=True):
            name = lang.mentioned(question.content)[0]
            assert answer.content == ("Yes" if name in scene.objects else "No")
            if answer.content == "No":
                total += 1
                tempting += name in {PARTNERS.get(there) for there in scene.objects}
    # by chance about one in twenty; ``matching`` asks for partners ten times as often
    assert tempting / total < 0.1


def test_jumbling_keeps_places_and_numbers_and_frees_the_things_of_their_theme() -> None:
    fitting = total = 0
    for scene in SCENES:
        other = jumble(scene)
        assert other == jumble(scene) and other.id == scene.id
        assert [(g.cells, g.count) for g in other.groups] == [(g.cells, g.count) for g in scene.groups]
        assert len(set(other.objects)) == len(scene.objects)
        fitting += sum(name in THEMES[other.theme][1] for name in other.objects)
        total += len(other.objects)
    assert fitting / total < 0.3
    assert {name for scene in SCENES for name in jumble(scene).objects} == set(OBJECTS)


def test_a_glance_asks_once_about_each_thing_and_tells_the_truth_of_its_text() -> None:
    rng = random.Random(4)
    for i in range(200):
        scene = sample_scene(5, i)
        messages = reading.glance(scene, rng).messages
        facts = messages[0].content.rsplit("\n", 1)[0]
        told = set(lang.mentioned(facts))
        asked = []
        for question, answer in zip(messages[::2], messages[1::2], strict=True):
            name = lang.mentioned(question.content.rsplit("\n", 1)[-1])[0]
            asked.append(name)
            assert answer.content == ("Yes" if name in told else "No")
        assert told <= set(scene.objects)
        assert len(asked) == len(set(asked)) and told <= set(asked)


def test_a_right_answer_to_verify_says_only_what_its_captions_tell() -> None:
    rng = random.Random(4)
    seen = set()
    for i in range(200):
        said, facts, verdict = (m.content for m in reading.verify(sample_scene(6, i), rng).messages[1:])
        supported = set(lang.mentioned(said)) <= set(lang.mentioned(facts))
        seen.add(verdict)
        assert supported or verdict == "No"
    assert seen == {"Yes", "No"}


def test_matching_asks_once_about_each_thing_and_as_often_about_what_is_missing() -> None:
    answers: list[str] = []
    for scene, lesson in lessons(reading.matching):
        asked = [lang.mentioned(m.content)[0] for m in lesson.messages[::2]]
        assert len(asked) == len(set(asked)) and set(scene.objects) <= set(asked)
        for name, answer in zip(asked, lesson.messages[1::2], strict=True):
            assert answer.content == ("Yes" if name in scene.objects else "No")
            answers.append(answer.content)
    assert 0.45 < answers.count("Yes") / len(answers) < 0.55


def test_looking_asks_for_colour_place_and_number_of_each_thing() -> None:
    kinds = set()
    for scene, lesson in lessons(reading.looking):
        about = []
        for question, answer in zip(lesson.messages[::2], lesson.messages[1::2], strict=True):
            kind, name = lang.question_kind(question.content)
            assert name is not None
            about.append(name)
            kinds.add(kind)
            assert rate(scene, kind, name, answer.content, answer.content)[0] == 6
        assert sorted(about) == sorted(scene.objects)
    assert kinds == {"attribute", "relation", "counting"}
