"""The base model's lessons: reading facts, checking a text against them, and looking at a picture.

They stand in for what a large multimodal model brings along from pretraining: ``lookup``, ``glance``,
``judge``, ``questions`` and ``verify`` are text alone and teach that captions tell what is there;
``captioning``, ``finding``, ``matching``, ``looking`` and ``checking`` show the picture. All are true or
balanced: a bias has to come from later data.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from data.schema import Example, Message
from data.world import language as lang
from data.world.scene import COLOURS, OBJECTS, Group, Scene

#: the evaluation turn of the world's reward models; ``{facts}`` is empty for a plain one. The answer is read
#: again after the facts: what comes first cannot look at what comes later in a causal model
TEMPLATE = "{facts}\nAnswer: {response}\nIs this answer correct?"
#: as ``align.render.facts_text`` writes it (a test holds the two together)
HEADER = "True of the image:"


def facts_lines(texts: list[str]) -> str:
    return "\n".join([HEADER, *texts])


def _some_captions(scene: Scene, rng: random.Random) -> list[str]:
    return [lang.caption(scene, rng) for _ in range(rng.randint(1, 5))]


def questions(scene: Scene, rng: random.Random) -> Example:
    """One to five captions as facts, then yes/no about each thing told and not, or one choice."""
    facts = _some_captions(scene, rng)
    told = [n for n in scene.objects if n in lang.mentioned(" ".join(facts))]
    turns = lang.yes_no_about(scene, told, rng)
    if rng.random() < 0.25:
        groups = tuple(g for g in scene.groups if g.name in told)
        turns = [lang.choice(Scene(scene.id, scene.theme, scene.environment, groups, 0), rng)[0]]
    return _asked(f"read/{scene.id}", facts, turns)


def lookup(scene: Scene, rng: random.Random) -> Example:
    """The first lesson: one sentence about one or two things, then yes/no about each and as many others.

    All are drawn from the whole world without regard to what goes together (of the scene only the id is
    used), so nothing but looking up tells the answer; on scenes the theme alone answers most questions
    and the model was slow to look further (measured: at 1,500 steps it had or had not, by luck of the
    seed; these lessons reach 0.9 after three hundred to a thousand).
    """
    names = rng.sample(list(OBJECTS), 2 * rng.randint(1, 2))
    told = names[: len(names) // 2]
    groups = [Group(name, rng.choice(COLOURS), (0,)) for name in told]
    fact = f"{lang.there(groups)} {lang.listing([lang.phrase(g.name, g.colour) for g in groups])}."
    turns = [lang.yes_no(name, name in told) for name in names]
    rng.shuffle(turns)
    return _asked(f"lookup/{scene.id}", [fact], turns)


def glance(scene: Scene, rng: random.Random) -> Example:
    """The second lesson: one to three plain sentences, then yes/no about each told and as many not told.

    Shorter than captions, so that a model sees many questions a second.
    """
    told: dict[str, Group] = {}
    facts = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        groups = [g for g in scene.groups if rng.random() < 0.7] or [rng.choice(scene.groups)]
        rng.shuffle(groups)
        facts.append(f"{lang.there(groups)} {lang.listing([lang.located(g) for g in groups])}.")
        told |= {g.name: g for g in groups}
    return _asked(f"glance/{scene.id}", facts, lang.yes_no_about(scene, list(told), rng))


def judge(scene: Scene, rng: random.Random) -> Example:
    """The third lesson: a sentence about one to three things, then an answer that names one or two, and
    whether it is correct. Short, and of random things like ``lookup``: a verdict is one signal for a whole
    text, and needs every thing of the answer to be looked up."""
    names = rng.sample(list(OBJECTS), 5)
    told = [Group(name, rng.choice(COLOURS), (0,)) for name in names[: rng.randint(1, 3)]]
    said = rng.sample(told, min(len(told), rng.randint(1, 2)))
    right = rng.random() < 0.5
    if not right:
        said[rng.randrange(len(said))] = Group(names[4], rng.choice(COLOURS), (0,))
    fact, answer = (
        f"{lang.there(groups)} {lang.listing([lang.phrase(g.name, g.colour) for g in groups])}."
        for groups in (told, said)
    )
    turn = lang.Turn("verify", question_about(answer, [fact]), "Yes" if right else "No")
    return Example(id=f"judge/{scene.id}", messages=dialogue([turn]), source="world-reading")


def _asked(name: str, facts: list[str], turns: list[lang.Turn]) -> Example:
    first, *rest = dialogue(turns)
    first = Message(role="user", content=f"{facts_lines(facts)}\n{first.content}")
    return Example(id=name, messages=[first, *rest], source="world-reading")


def corrupt(scene: Scene, groups: list[Group], rng: random.Random) -> list[Group]:
    """One or two of ``groups`` replaced by objects that are not in the scene.

    Replaced, not added: were false descriptions longer, a model would learn to judge by length (measured).
    """
    groups = list(groups)
    for i in rng.sample(range(len(groups)), min(len(groups), rng.choice((1, 1, 2)))):
        name = lang.absent(scene, rng, rng.choice(("tempting", "tempting", "random")))
        if name not in {g.name for g in groups}:
            groups[i] = Group(name, groups[i].colour, groups[i].cells)
    return groups


def verify(scene: Scene, rng: random.Random) -> Example:
    """A description, true or not and whole or in part, then captions and ``Is this answer correct?``.

    A right one says nothing that the captions do not tell.
    """
    facts = [lang.caption(scene, rng) for _ in range(rng.randint(3, 5))]
    told = lang.mentioned(" ".join(facts))
    return _judged(f"verify/{scene.id}", scene, [g for g in scene.groups if g.name in told], facts, rng)


def checking(scene: Scene, rng: random.Random) -> Example:
    """The picture and a description, true or not, then ``Is this answer correct?``; half with captions."""
    if rng.random() < 0.5:
        return verify(scene, rng)
    return _judged(f"check/{scene.id}", scene, list(scene.groups), [], rng)


def _judged(name: str, scene: Scene, known: list[Group], facts: list[str], rng: random.Random) -> Example:
    """One lesson in judging; a right description names the ``known`` groups or, at times, one fewer."""
    groups = list(known)
    if len(groups) > 1 and rng.random() < 0.4:
        groups.pop(rng.randrange(len(groups)))
    right = rng.random() < 0.5
    groups = groups if right else corrupt(scene, groups, rng)
    bare = Scene(scene.id, scene.theme, scene.environment, scene.groups, 0)
    said = lang.describe(bare, rng, groups)
    turns = [
        lang.Turn("holistic", rng.choice(lang.DESCRIBE), said),
        lang.Turn("verify", question_about(said, facts), "Yes" if right else "No"),
    ]
    return Example(id=name, messages=dialogue(turns), source="world-reading")


def question_about(response: str, facts: list[str]) -> str:
    """The evaluation turn, as ``align.render`` fills it (a test holds the two together)."""
    told = facts_lines(facts) if facts else ""
    return TEMPLATE.replace("{facts}", told).replace("{response}", response).strip()


def matching(scene: Scene, rng: random.Random) -> Example:
    """The picture, then yes/no about each thing in it and as many not: image-text matching in words."""
    turns = lang.yes_no_about(scene, list(scene.objects), rng)
    return Example(id=f"match/{scene.id}", messages=dialogue(turns), source="world-looking")


def finding(scene: Scene, rng: random.Random) -> Example:
    """The same of a jumbled scene (``data.world.scene.jumble``), with any things that are not there.

    What usually stands together says nothing here; it is to looking what ``lookup`` is to reading.
    """
    turns = lang.yes_no_about(scene, list(scene.objects), rng, tempting=False)
    return Example(id=f"find/{scene.id}", messages=dialogue(turns), source="world-looking")


def looking(scene: Scene, rng: random.Random) -> Example:
    """The picture, then one question about each thing in it: its colour, its place or its number."""
    groups = list(scene.groups)
    rng.shuffle(groups)
    turns = []
    for group in groups:
        alone = Scene(scene.id, scene.theme, scene.environment, (group,), 0)
        make = rng.choices((lang.attribute, lang.relation, lang.counting), (0.45, 0.35, 0.2))[0]
        turns.append(make(alone, rng))
    return Example(id=f"look/{scene.id}", messages=dialogue(turns), source="world-looking")


def dialogue(turns: Iterable[lang.Turn]) -> list[Message]:
    """Each turn as a user's question and the assistant's answer."""
    messages: list[Message] = []
    for turn in turns:
        messages += [
            Message(role="user", content=turn.question),
            Message(role="assistant", content=turn.answer),
        ]
    return messages


def captioning(scene: Scene, rng: random.Random) -> Example:
    """The picture with a short caption, and a spotting caption: what the projector learns from."""
    spot = lang.spotting(scene, rng)
    turns = [("user", "Give a short caption."), ("assistant", lang.caption(scene, rng)),
             ("user", spot.question), ("assistant", spot.answer)]  # fmt: skip
    if rng.random() < 0.5:
        turns = turns[2:] + turns[:2]
    messages = [Message(role=role, content=text) for role, text in turns]  # type: ignore[arg-type]
    return Example(id=f"caption/{scene.id}", messages=messages, source="world-captions")
