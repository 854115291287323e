"""Simulated labelers and the oracle that knows every scene.

The labelers follow the thesis's two-question protocol (section 9.2, figure 9.2): first which
response has fewer hallucinations (A, B or tie), then, after a tie, which is more helpful. Their
weights are fixed before any study, see apps/studies/PROTOCOL.md.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from data.schema import HALLUCINATION, HELPFULNESS
from data.world.language import CELLS, NUMBERS, PLURALS, mentioned
from data.world.scene import COLOURS, ENVIRONMENTS, WORDS, Scene


@dataclass(frozen=True)
class Labeler:
    """How careful a simulated person is.

    ``notice``: chance of noticing each false object. ``flip``: chance of a slip in the final choice;
    with the default, two labelers agree on about 69 % of the pairs (thesis, appendix H).
    ``repeat_cost`` and ``false_cost``: what a repeated mention and a noticed false object weigh
    against one true object when helpfulness is compared.
    """

    notice: float = 0.75
    flip: float = 0.10
    repeat_cost: float = 0.5
    false_cost: float = 1.0

    def choose(
        self, scene: Scene, responses: list[str], rng: random.Random, question: str = ""
    ) -> dict[str, int | None]:
        """The choices for two responses to ``question``: index per question asked, None for a tie.

        A response that names no true object at all, or under half as many as the other, does not
        answer the question; being silent is not being honest, so the pair goes to the second
        question, where naming what is there counts.
        """
        a, b = (self._read(scene, question, text, rng) for text in responses)
        hallucination: int | None = None
        floor = min(a.true, b.true) >= 1 and 2 * min(a.true, b.true) >= max(a.true, b.true)
        if a.false != b.false and floor:
            hallucination = 0 if a.false < b.false else 1
        if hallucination is not None:
            return {HALLUCINATION: self._slip(hallucination, rng), HELPFULNESS: None}
        help_a, help_b = (r.true - self.repeat_cost * r.repeats - self.false_cost * r.false for r in (a, b))
        if help_a == help_b:
            return {HALLUCINATION: None, HELPFULNESS: rng.randrange(2)}
        return {HALLUCINATION: None, HELPFULNESS: self._slip(0 if help_a > help_b else 1, rng)}

    def _slip(self, choice: int, rng: random.Random) -> int:
        return 1 - choice if rng.random() < self.flip else choice

    def _read(self, scene: Scene, question: str, text: str, rng: random.Random) -> _Reading:
        right = short_answer(scene, question, text)
        if right is not None:
            return _Reading(int(right), int(not right and rng.random() < self.notice), 0)
        names = mentioned(text)
        claimed = set(names)
        false = sum(rng.random() < self.notice for n in sorted(claimed) if n not in scene.objects)
        true = sum(n in scene.objects for n in claimed)
        return _Reading(true, false, len(names) - len(claimed))


@dataclass(frozen=True)
class _Reading:
    true: int
    false: int
    repeats: int


#: a labeler who sees everything and never slips: the clean labels
CLEAN = Labeler(notice=1.0, flip=0.0)


_IS_THERE = re.compile(r"Is there an? (\w+) in the image\?")
_OPTION = re.compile(r"\b([A-D])\. (\w+)")


def short_answer(scene: Scene, question: str, text: str) -> bool | None:
    """Whether a yes/no or a letter answers the question rightly; None for other questions and answers."""
    if asked := _IS_THERE.match(question):
        said = re.match(r"\W*(yes|no)\b", text.lower())
        return None if said is None else (said.group(1) == "yes") == (asked.group(1) in scene.objects)
    options = dict(_OPTION.findall(question))
    letter = re.match(r"\W*([A-D])\b", text)
    if len(options) == 4 and letter:
        return options[letter.group(1)] in scene.objects
    return None


def false_objects(scene: Scene, text: str) -> list[str]:
    """Objects that the text claims and the scene does not hold, in order of mention, with repeats."""
    return [n for n in mentioned(text) if n not in scene.objects]


def _used(text: str, words: tuple[str, ...]) -> set[str]:
    """Those of ``words`` that the text uses."""
    found = set(re.findall(r"[a-z]+", text.lower()))
    return {w for w in words if w.lower() in found}


def _places(text: str) -> set[str]:
    """The places that the text names; "at the top left" names no "at the top"."""
    found = {c for c in CELLS if c in text.lower()}
    return {c for c in found if not any(o != c and o.startswith(c) for o in found)}


_ABSENT = re.compile(
    r"\bthere (?:is|are) none\b|\bno such\b|\bno board\b|(?:\bnot|n['’]t) (?:there|in the)\b"
)


def _denied(text: str, name: str | None) -> bool:
    """Whether the text says that the object ``name`` (None: the board) is not there."""
    if _ABSENT.search(text.lower()):
        return True
    named = _used(text, (name, PLURALS[name])) if name else ()
    return bool(named) and name not in mentioned(text)


#: kind -> what a response must use to be an answer at all
_VALUES = {
    "attribute": COLOURS,
    "adversarial": COLOURS,
    "counting": NUMBERS,
    "environment": ENVIRONMENTS,
    "other": WORDS,
}


def _answers(kind: str, about: str | None, response: str) -> bool:
    """Whether the response commits itself; "I am not sure." does not."""
    if kind == "relation":
        return bool(_places(response))
    if kind in _VALUES:
        return bool(_used(response, _VALUES[kind])) or _denied(response, about)
    return bool(mentioned(response)) or (kind == "comparison" and "as many" in response.lower())


def _right(scene: Scene, kind: str, about: str | None, gt: str, response: str) -> bool:
    group = scene.group(about) if about else None
    if kind == "adversarial":
        return _denied(response, about)
    if kind == "attribute" and group:
        return _used(response, COLOURS) == {group.colour}
    if kind == "comparison":
        return response.lower().strip(" .") == gt.lower().strip(" .")
    if kind == "counting" and group:
        return _used(response, NUMBERS[1:]) == {NUMBERS[group.count]}
    if kind == "relation" and group:
        return _places(response) == {CELLS[group.cells[0]]}
    if kind == "environment":
        return _used(response, ENVIRONMENTS) == {scene.environment}
    if kind == "holistic":
        return 2 * len(set(mentioned(response)) & set(scene.objects)) >= len(scene.objects)
    if scene.text:
        return _used(response, WORDS) == {scene.text[1]}
    return _denied(response, None)


def rate(scene: Scene, kind: str, about: str | None, gt: str, response: str) -> tuple[int, str]:
    """MMHal-style rating 0..6 with its reason, from full knowledge of the scene.

    6 right and nothing false; 3 no answer, or a description of too little, but nothing false; 2 right
    with a false object; 1 wrong; 0 wrong with a false object. Three or more means no hallucination (SPEC 9).
    ``kind`` and ``about`` are as ``language.question_kind`` gives them; a question about an absent object
    is an adversarial one.
    """
    if kind in ("attribute", "counting", "relation") and about not in scene.objects:
        kind = "adversarial"
    false = sorted(set(false_objects(scene, response)))
    right = _right(scene, kind, about, gt, response)
    if right and not false:
        return 6, "right, and every object named is there"
    if right:
        return 2, f"right, but not there: {', '.join(false)}"
    if false:
        return 0, f"wrong, and not there: {', '.join(false)}"
    if kind == "holistic" or not _answers(kind, about, response):
        return 3, "no answer, and nothing false"
    return 1, f"wrong; the scene's answer: {gt}"
