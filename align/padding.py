"""Sentences to add to a response, true of its picture or false, in pairs that are alike but for that.

Who is shown a true sentence among the facts need only compare texts: :func:`without` takes it away.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from data.schema import Facts
from data.world.language import absent, mentioned, phrase, there
from data.world.scene import OBJECTS, Group, Scene


@dataclass(frozen=True)
class Padding:
    """As many true sentences as false ones."""

    true: tuple[str, ...]
    false: tuple[str, ...]


def of_scene(scene: Scene, response: str, rng: random.Random, count: int) -> Padding | None:
    """Up to ``count`` things of the built-in world's picture that the response does not name, and for each
    the same sentence of a thing that is not there. None where the response names everything.

    What is not there usually goes with what is, so that knowing what is usual does not tell the two apart.
    """
    said = set(mentioned(response))
    untold = [group for group in scene.groups if group.name not in said]
    rng.shuffle(untold)
    true, false = [], []
    for group in untold[:count]:
        drawn = [absent(scene, rng, "tempting") for _ in range(8)]
        name = next((n for n in (*drawn, *OBJECTS) if n not in said and n not in scene.objects), None)
        if name is not None:
            said.add(name)
            true.append(_sentence(group))
            false.append(_sentence(replace(group, name=name)))
    return Padding(tuple(true), tuple(false)) if true else None


def _sentence(group: Group) -> str:
    return f"{there([group])} {phrase(group.name, group.colour, group.count)}."


def of_captions(own: Facts, other: Facts, response: str, rng: random.Random, count: int) -> Padding | None:
    """Up to ``count`` captions of the picture that the response does not hold, and as many of another's.

    Another picture's caption may happen to be true of this one. None where either has no such caption.
    """
    true, known = _untold(own, response, rng), {_words(text) for text in own.captions}
    false = [text for text in _untold(other, response, rng) if _words(text) not in known]
    count = min(count, len(true), len(false))
    return Padding(tuple(true[:count]), tuple(false[:count])) if count else None


def _untold(facts: Facts, response: str, rng: random.Random) -> list[str]:
    captions = [text for text in dict.fromkeys(facts.captions) if text not in response]
    rng.shuffle(captions)
    return captions


def without(facts: Facts, sentences: Sequence[str]) -> Facts:
    """The facts but for the texts that hold the words of one of ``sentences``."""
    gone = [words for text in sentences if (words := _words(text)).strip()]

    def kept(texts: list[str]) -> list[str]:
        return [text for text in texts if not any(words in _words(text) for words in gone)]

    texts = {kind: kept(getattr(facts, kind)) for kind in ("captions", "rationales", "knowledge")}
    return facts.model_copy(update=texts)


def _words(text: str) -> str:
    """Its words in small letters, each between spaces."""
    return " ".join(["", *re.findall(r"[^\W_]+", text.casefold()), ""])


def padded(response: str, sentences: tuple[str, ...]) -> str:
    """The response with the sentences behind it; its last sentence is closed first."""
    text = response.rstrip()
    if text and text[-1] not in ".!?\"'”’)":
        text += "."
    return " ".join([text, *sentences]).strip()
