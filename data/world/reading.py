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
    """Captions as facts, then six yes/no, choice or attribute questions that they answer."""
    facts = _some_captions(scene, rng)
    told = [n for n in scene.objects if n in lang.mentioned(" ".join(facts))]
    messages: list[Message] = []
    for i in range(6):
        kind = rng.random()
        if kind < 0.75:
            truth = rng.random() < 0.5
            turn = lang.yes_no(
                rng.choice(told) if truth else lang.absent(scene, rng, rng.choice(("tempting", "random"))),
                truth,
            )
        else:
            known = Scene(
                scene.id, scene.theme, scene.environment, tuple(g for g in scene.groups if g.name in told), 0
            )
            turn = lang.choice(known, rng)[0]
        lead = facts_lines(facts) + "\n" if i == 0 else ""
        messages += [
            Message(role="user", content=lead + turn.question),
            Message(role="assistant", content=turn.answer),
        ]
    return Example(id=f"read/{scene.id}", messages=messages, source="world-reading")


def corrupt(scene: Scene, rng: random.Random) -> list[Group]:
    """The scene's groups with one or two false objects: added, or in place of a true one."""
    groups = list(scene.groups)
    for _ in range(rng.choice((1, 1, 2))):
        name = lang.absent(scene, rng, rng.choice(("tempting", "random")))
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
    right = rng.random() < 0.5
    groups = list(scene.groups) if right else corrupt(scene, rng)
    if right and len(groups) > 1 and rng.random() < 0.5:
        groups.pop(rng.randrange(len(groups)))
    facts = [lang.caption(scene, rng) for _ in range(rng.randint(3, 5))]
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
