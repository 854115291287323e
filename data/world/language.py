"""Scene -> text, and text -> the objects it claims. A small English that every part of the world shares."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from data.world.scene import CELLS, COLOURS, ENVIRONMENTS, OBJECTS, PARTNERS, THEMES, Group, Scene, told_order

NUMBERS = ("no", "one", "two", "three")
PLURALS = {name: name + ("es" if name.endswith(("ch", "x")) else "s") for name in OBJECTS} | {
    "child": "children", "man": "men", "woman": "women",
}  # fmt: skip
_SINGULAR = {plural: name for name, plural in PLURALS.items()} | {name: name for name in OBJECTS}
_WORD = re.compile(r"[a-z]+(?:['’]t)?|[.!?;]")
_NEGATIONS = {"no", "not", "without", "neither", "none", "never", "cannot"}

DESCRIBE = ("Describe this image in detail.", "What is in this picture?", "Please describe what you see.")
LETTERS = "ABCD"


#: environment with its preposition
PLACES = {
    name: f"{'on' if name in ('street', 'beach') else 'in'} a{'n' if name[0] == 'o' else ''} {name}"
    for name in ENVIRONMENTS
}


def article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def phrase(name: str, colour: str | None, count: int = 1) -> str:
    """``a red cat``, ``two cups``."""
    noun = name if count == 1 else PLURALS[name]
    words = f"{colour} {noun}" if colour else noun
    return article(words) if count == 1 else f"{NUMBERS[count]} {words}"


def located(group: Group) -> str:
    """``a red cat at the top left``; several alike things have no one place and get none."""
    text = phrase(group.name, group.colour, group.count)
    return f"{text} {CELLS[group.cells[0]]}" if group.count == 1 else text


def listing(parts: list[str]) -> str:
    if len(parts) < 2:
        return "".join(parts)
    return ", ".join(parts[:-1]) + f" and {parts[-1]}"


def mentioned(text: str) -> list[str]:
    """Objects that the text claims to be there, in order, with repeats.

    A name that follows a negation inside its clause (``there is no cat``) is no claim; ``but`` and
    ``there`` begin a new one, commas do not (``no cat, dog or bird``).
    """
    found, negated = [], False
    for word in _WORD.findall(text.lower()):
        if word in ".!?;" or word in ("but", "there"):
            negated = False
        elif word in _NEGATIONS or word.endswith(("'t", "’t")):
            negated = True
        elif word in _SINGULAR and not negated:
            found.append(_SINGULAR[word])
    return found


def caption(scene: Scene, rng: random.Random) -> str:
    """One of a person's short captions: it names what stands out and leaves the rest away."""
    seen = [g for g in scene.groups if rng.random() < g.salience] or [
        max(scene.groups, key=lambda g: g.salience)
    ]
    style = rng.randrange(4)
    if style == 0:
        things = listing([phrase(g.name, g.colour, g.count) for g in seen])
        return f"{things} {PLACES[scene.environment]}.".capitalize()
    if style == 1:
        return f"A picture of {listing([phrase(g.name, None, g.count) for g in seen])}."
    if style == 2:
        return f"{there(seen)} {listing([located(g) for g in seen])}."
    return f"This {scene.environment} has {listing([phrase(g.name, g.colour, g.count) for g in seen])}."


def captions(scene: Scene, seed: int = 0, n: int = 5) -> list[str]:
    rng = random.Random(f"captions/{seed}/{scene.id}")
    return [caption(scene, rng) for _ in range(n)]


def describe(scene: Scene, rng: random.Random, groups: list[Group] | None = None) -> str:
    """A full description in reading order. ``groups`` may hold things that are not there."""
    groups = list(scene.groups) if groups is None else groups
    parts = listing([located(g) for g in groups])
    style = rng.randrange(3)
    if style == 0:
        text = f"This is {article(scene.environment)}. {there(groups)} {parts}."
    elif style == 1:
        text = f"The image shows {article(scene.environment)} with {parts}."
    else:
        text = f"{PLACES[scene.environment]} {there(groups).lower()} {parts}.".capitalize()
    return f"{text} A board says {scene.text[1]}." if scene.text else text


def there(groups: list[Group]) -> str:
    """``There is`` or ``There are``, by the first of the things that follow."""
    return "There is" if groups[0].count == 1 else "There are"


def absent(scene: Scene, rng: random.Random, how: str = "random") -> str:
    """An object that is not there: ``random``, or ``tempting`` (a partner or a thing of the theme)."""
    if how == "tempting":
        partners = [PARTNERS[n] for n in scene.objects if n in PARTNERS and PARTNERS[n] not in scene.objects]
        if partners and rng.random() < 0.8:
            return rng.choice(partners)
        theme = [n for n in THEMES[scene.theme][1] if n not in scene.objects]
        if theme:
            return rng.choice(theme)
    return rng.choice([n for n in OBJECTS if n not in scene.objects])


def plant(scene: Scene, rng: random.Random) -> list[Group]:
    """The scene's groups with one false object put among them, as machine-written data would."""
    free = [c for c in range(9) if all(c not in g.cells for g in scene.groups)] or [4]
    false = Group(absent(scene, rng, "tempting"), rng.choice(COLOURS), (rng.choice(free),))
    return sorted([*scene.groups, false], key=told_order)


@dataclass(frozen=True)
class Turn:
    """A question with its answer; ``kind`` names the question's type, ``about`` the object asked for."""

    kind: str
    question: str
    answer: str
    about: str | None = None


def yes_no(name: str, truth: bool) -> Turn:
    return Turn("yesno", f"Is there {article(name)} in the image?", "Yes" if truth else "No", name)


def yes_no_about(scene: Scene, told: list[str], rng: random.Random, tempting: bool = True) -> list[Turn]:
    """One question about each object of ``told`` and about as many that are not there, shuffled; half of
    these are ``tempting`` (see :func:`absent`), or none.

    Never twice about one: a name that an earlier question brought up would look like a fact, and a
    model that is just learning to look up finds no signal in that (measured: yes/no stayed at chance).
    """
    # "random" is always among them: a scene has few tempting things, and they would run out
    how = ("tempting", "random") if tempting else ("random",)
    gone: list[str] = []
    while len(gone) < max(1, len(told) + rng.choice((-1, 0, 1))):
        name = absent(scene, rng, rng.choice(how))
        if name not in gone:
            gone.append(name)
    turns = [yes_no(n, True) for n in told] + [yes_no(n, False) for n in gone]
    rng.shuffle(turns)
    return turns


def attribute(scene: Scene, rng: random.Random) -> Turn:
    g = rng.choice(scene.groups)
    verb, noun = ("is", g.name) if g.count == 1 else ("are", PLURALS[g.name])
    return Turn("attribute", f"What color {verb} the {noun}?", f"The {noun} {verb} {g.colour}.", g.name)


def adversarial(scene: Scene, rng: random.Random) -> Turn:
    name = absent(scene, rng, "tempting")
    return Turn("adversarial", f"What color is the {name}?", f"There is no {name} in the image.", name)


def comparison(scene: Scene, rng: random.Random) -> Turn:
    a, b = rng.sample(scene.groups, 2)
    question = f"Are there more {PLURALS[a.name]} or more {PLURALS[b.name]}?"
    if a.count == b.count:
        return Turn("comparison", question, "There are as many of both.", a.name)
    more, less = (a, b) if a.count > b.count else (b, a)
    return Turn(
        "comparison", question, f"There are more {PLURALS[more.name]} than {PLURALS[less.name]}.", a.name
    )


def counting(scene: Scene, rng: random.Random) -> Turn:
    g = rng.choice(scene.groups)
    noun = g.name if g.count == 1 else PLURALS[g.name]
    answer = f"There {'is' if g.count == 1 else 'are'} {NUMBERS[g.count]} {noun}."
    return Turn("counting", f"How many {PLURALS[g.name]} are there?", answer, g.name)


def relation(scene: Scene, rng: random.Random) -> Turn:
    single = [g for g in scene.groups if g.count == 1]
    if not single:
        return counting(scene, rng)
    g = rng.choice(single)
    return Turn("relation", f"Where is the {g.name}?", f"The {g.name} is {CELLS[g.cells[0]]}.", g.name)


def environment(scene: Scene, rng: random.Random) -> Turn:
    return Turn("environment", "Where was this picture taken?", f"It was taken {PLACES[scene.environment]}.")


def holistic(scene: Scene, rng: random.Random) -> Turn:
    return Turn("holistic", rng.choice(DESCRIBE), describe(scene, rng))


def other(scene: Scene, rng: random.Random) -> Turn:
    if not scene.text:
        return Turn("other", "What does the board say?", "There is no board in the image.")
    return Turn("other", "What does the board say?", f"The board says {scene.text[1]}.")


#: MMHal-Bench's eight types in its order (type = index mod 8)
MMHAL = (attribute, adversarial, comparison, counting, relation, environment, holistic, other)


def choice(scene: Scene, rng: random.Random) -> tuple[Turn, list[str]]:
    """A multiple-choice question answered by a letter, and its three rationales (facts)."""
    right = rng.choice(scene.groups)
    wrong: list[str] = [absent(scene, rng, "tempting")]
    while len(wrong) < 3:
        name = absent(scene, rng)
        if name not in wrong:
            wrong.append(name)
    options = [right.name, *wrong]
    rng.shuffle(options)
    text = " ".join(f"{LETTERS[i]}. {name}" for i, name in enumerate(options))
    rationales = [
        f"{there([right])} {located(right)}.",
        f"{phrase(right.name, right.colour, right.count)} can be seen.".capitalize(),
        f"The image shows {phrase(right.name, None, right.count)}.",
    ]
    letter = LETTERS[options.index(right.name)]
    return Turn(
        "choice", f"Which of these is in the image? {text} Answer with the letter.", letter, right.name
    ), rationales


def spotting(scene: Scene, rng: random.Random) -> Turn:
    """A grounded caption: every object with its place, one sentence each (Flickr30k Entities' role)."""
    sentences = []
    for g in scene.groups:
        places = listing([CELLS[c] for c in g.cells])
        sentences.append(f"{phrase(g.name, g.colour, g.count).capitalize()} {places}.")
    return Turn("spotting", "Name what you see and where it is.", " ".join(sentences))


def corpus(scenes: list[Scene], seed: int = 0) -> list[str]:
    """Texts that show every word of the language: what the tokenizer is trained on."""
    rng = random.Random(f"corpus/{seed}")
    texts = [
        f"{phrase(n, c, k)} {place}"
        for n in OBJECTS
        for c in COLOURS
        for k, place in zip((1, 2, 3), CELLS[:3])
    ]
    texts += [f"{place} {CELLS[(i * 5) % 9]}" for i, place in enumerate(CELLS)] + list(ENVIRONMENTS)
    for scene in scenes:
        texts += captions(scene, seed)
        turns = [make(scene, rng) for make in MMHAL] + [choice(scene, rng)[0], spotting(scene, rng)]
        turns += [yes_no(absent(scene, rng), False), yes_no(scene.objects[0], True)]
        texts += [f" {t.question} {t.answer}" for t in turns]
    return texts


_KINDS = (
    ("comparison", re.compile(r"Are there more (\w+) or more")),
    ("counting", re.compile(r"How many (\w+) are there")),
    ("relation", re.compile(r"Where is the (\w+)")),
    ("environment", re.compile(r"Where was this picture taken")),
    ("other", re.compile(r"What does the board say")),
    ("attribute", re.compile(r"What color (?:is|are) the (\w+)")),
)


def question_kind(question: str) -> tuple[str, str | None]:
    """(type, object asked for) of one of the world's open questions; anything else is ``holistic``.

    An attribute question about something absent is adversarial: only the scene can tell, see
    ``annotators.rate``.
    """
    for kind, pattern in _KINDS:
        if found := pattern.search(question):
            return kind, _SINGULAR[found.group(1)] if found.groups() else None
    return "holistic", None
