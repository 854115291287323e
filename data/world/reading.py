"""Text-only lessons in the world's language: reading facts and checking a text against them.

The base model learns from these that captions tell what is there, before it ever sees a preference.
They stand in for the reading skill that a pretrained language model brings along; no picture is
involved, so they teach nothing about seeing.
"""

from __future__ import annotations

import random

from data.schema import Example, Message
from data.world import language as lang
from data.world.scene import COLOURS, Group, Scene

#: the evaluation turn of the world's reward models; ``{facts}`` is empty for a plain one
TEMPLATE = "{facts}\nIs this answer correct?"
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
    turns = _yes_no_about(scene, told, rng)
    if rng.random() < 0.25:
        groups = tuple(g for g in scene.groups if g.name in told)
        turns = [lang.choice(Scene(scene.id, scene.theme, scene.environment, groups, 0), rng)[0]]
    return _asked(f"read/{scene.id}", facts, turns)


def glance(scene: Scene, rng: random.Random) -> Example:
    """The first lesson: one to three plain sentences, then yes/no about each thing told and as many not told.

    Short, so that a model sees many questions a second; looking up is learned here or not at all.
    """
    told: dict[str, Group] = {}
    facts = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        groups = [g for g in scene.groups if rng.random() < 0.7] or [rng.choice(scene.groups)]
        rng.shuffle(groups)
        facts.append(f"{lang.there(groups)} {lang.listing([lang.located(g) for g in groups])}.")
        told |= {g.name: g for g in groups}
    return _asked(f"glance/{scene.id}", facts, _yes_no_about(scene, list(told), rng))


def _yes_no_about(scene: Scene, told: list[str], rng: random.Random) -> list[lang.Turn]:
    """One question about each object told and about as many that are not there, shuffled.

    Never twice about one: a name that an earlier question brought up would look like a fact, and a
    model that is just learning to look up finds no signal in that (measured: yes/no stayed at chance).
    """
    gone: list[str] = []
    while len(gone) < max(1, len(told) + rng.choice((-1, 0, 1))):
        name = lang.absent(scene, rng, rng.choice(("tempting", "random")))
        if name not in gone:
            gone.append(name)
    turns = [lang.yes_no(n, True) for n in told] + [lang.yes_no(n, False) for n in gone]
    rng.shuffle(turns)
    return turns


def _asked(name: str, facts: list[str], turns: list[lang.Turn]) -> Example:
    messages: list[Message] = []
    for i, turn in enumerate(turns):
        lead = facts_lines(facts) + "\n" if i == 0 else ""
        messages += [
            Message(role="user", content=lead + turn.question),
            Message(role="assistant", content=turn.answer),
        ]
    return Example(id=name, messages=messages, source="world-reading")


def corrupt(scene: Scene, rng: random.Random) -> list[Group]:
    """The scene's groups with one or two false objects: added, or in place of a true one."""
    groups = list(scene.groups)
    for _ in range(rng.choice((1, 1, 2))):
        name = lang.absent(scene, rng, rng.choice(("tempting", "tempting", "random")))
        if rng.random() < 0.5:
            i = rng.randrange(len(groups))
            groups[i] = Group(name, groups[i].colour, groups[i].cells)
        else:
            groups.insert(
                rng.randrange(len(groups) + 1), Group(name, rng.choice(COLOURS), (rng.randrange(9),))
            )
    return groups


def verify(scene: Scene, rng: random.Random) -> Example:
    """A description, true or not and whole or in part, then captions and ``Is this answer correct?``."""
    facts = [lang.caption(scene, rng) for _ in range(rng.randint(3, 5))]
    right = rng.random() < 0.5
    if right:
        # a right answer says nothing that the captions do not tell
        told = lang.mentioned(" ".join(facts))
        groups = [g for g in scene.groups if g.name in told]
        if len(groups) > 1 and rng.random() < 0.4:
            groups.pop(rng.randrange(len(groups)))
    else:
        groups = corrupt(scene, rng)
    known = Scene(scene.id, scene.theme, scene.environment, scene.groups, 0)
    turns = [
        ("user", rng.choice(lang.DESCRIBE)),
        ("assistant", lang.describe(known, rng, groups)),
        ("user", TEMPLATE.replace("{facts}", facts_lines(facts))),
        ("assistant", "Yes" if right else "No"),
    ]
    messages = [Message(role=role, content=text) for role, text in turns]  # type: ignore[arg-type]
    return Example(id=f"verify/{scene.id}", messages=messages, source="world-reading")


def captioning(scene: Scene, rng: random.Random) -> Example:
    """The picture with a short caption, and a spotting caption: what the projector learns from."""
    spot = lang.spotting(scene, rng)
    turns = [("user", "Give a short caption."), ("assistant", lang.caption(scene, rng)),
             ("user", spot.question), ("assistant", spot.answer)]  # fmt: skip
    if rng.random() < 0.5:
        turns = turns[2:] + turns[:2]
    messages = [Message(role=role, content=text) for role, text in turns]  # type: ignore[arg-type]
    return Example(id=f"caption/{scene.id}", messages=messages, source="world-captions")
