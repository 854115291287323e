"""Instructions: the project's own, ours, and worked examples with pictures of the built-in world."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from apps.annotate.pages.shell import ASSETS
from data.errors import DataError
from data.world.draw import draw_scene
from data.world.scene import Group, Scene

#: bytes of a project's own instructions
MOST = 100 * 1024
#: pixels of an example's picture
_SIDE = 288
#: false words of an example stand between these
_FALSE = re.compile(r"\[\[(.*?)\]\]")


@dataclass(frozen=True)
class Example:
    """A worked example. ``texts`` are A and B, with ``[[false words]]``."""

    title: str
    scene: Scene
    question: str
    texts: tuple[str, str]
    #: the two answers, as a vote has them
    hallucination: str
    helpfulness: str | None
    why: str


def _scene(environment: str, *groups: tuple[str, str, tuple[int, ...]], **more: Any) -> Scene:
    made = tuple(Group(name, colour, cells) for name, colour, cells in groups)
    return Scene("example", "work", environment, made, seed=3, difficulty=0.0, **more)


EXAMPLES = (
    Example(
        "A thing that is not there",
        _scene("kitchen", ("toaster", "blue", (3,)), ("cup", "red", (4,)), ("apple", "green", (8,))),
        "Describe the picture.",
        (
            "A kitchen with a blue toaster on the left and a red cup in the middle. A green apple is at the "
            "bottom right, and [[a fork lies beside it]].",
            "There is a toaster and a red cup.",
        ),
        "B",
        None,
        "A is well written and tells more, but there is no fork. B leaves out the apple and the colour of "
        "the toaster; what is left out is no hallucination.",
    ),
    Example(
        "Both are wrong, one more often",
        _scene("street", ("car", "red", (3, 5)), ("lamp", "black", (1,)), ("bench", "green", (7,))),
        "What stands on the street?",
        (
            "[[Three]] red cars, a black lamp and a green bench.",
            "Two [[blue]] cars, and [[a man who waits for the bus]] on a green bench.",
        ),
        "A",
        None,
        "A has one false claim, the count. B has two: the colour, and a person with a purpose that nobody "
        "could see.",
    ),
    Example(
        "A sign, and a place",
        _scene("beach", ("boat", "blue", (3,)), ("umbrella", "yellow", (8,)), text=(1, "CAFE")),
        "What does the sign say, and where is the boat?",
        (
            "The sign says [[SALE]]. The boat is on the left.",
            "The sign says CAFE. The boat is [[on the right, under the umbrella]].",
        ),
        "tie",
        "A",
        "One claim is false in each: the text in A, the place in B. So it is a tie. To the second question "
        "we said A, since one of its two answers is simply right; B would be a fair answer too.",
    ),
    Example(
        "Both are true",
        _scene("park", ("child", "purple", (4,)), ("ball", "orange", (6,)), ("kite", "red", (2,))),
        "What could the child play with here?",
        (
            "A child in purple is in a park.",
            "With the orange ball at the bottom left, or with the red kite at the top right.",
        ),
        "tie",
        "B",
        "Neither claims anything false: a tie. B answers what was asked, so it is more helpful.",
    ),
)


def pieces(text: str) -> list[tuple[str, bool]]:
    """The text of an example in order, each piece with whether it is false."""
    parts = _FALSE.split(text)
    return [(part, bool(k % 2)) for k, part in enumerate(parts) if part]


@cache
def _picture(scene: Scene) -> str:
    data = io.BytesIO()
    draw_scene(scene, _SIDE).quantize(128).save(data, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"


def _shown(example: Example) -> dict[str, Any]:
    return {
        "title": example.title,
        "image": _picture(example.scene),
        "question": example.question,
        "responses": [pieces(text) for text in example.texts],
        "hallucination": example.hallucination,
        "helpfulness": example.helpfulness,
        "why": example.why,
    }


def guide(own: str | None) -> dict[str, Any]:
    """What ``GET /api/guide`` tells: {own, text, examples, version}.

    ``own`` and ``text`` are Markdown that the page shows as text, headings, lists and emphasis, never as
    HTML. ``version`` changes with the content, so that changed instructions are shown again.
    """
    text = (ASSETS / "guide.md").read_text("utf-8")
    found = {"own": own, "text": text, "examples": [_shown(example) for example in EXAMPLES]}
    digest = hashlib.sha256(json.dumps(found).encode("utf-8")).hexdigest()
    return found | {"version": digest[:16]}


def read_instructions(file: Path) -> str:
    """A project's own instructions. Raises DataError where the file is absent, too long or no UTF-8 text."""

    def fault(rule: str, mend: str) -> DataError:
        return DataError(rule, key="--instructions", file=str(file), mend=mend)

    try:
        with file.open("rb") as opened:
            data = opened.read(MOST + 1)
    except OSError as error:
        raise fault(f"cannot be read ({error.strerror})", "give a Markdown or text file") from None
    if len(data) > MOST:
        raise fault(f"more than {MOST // 1024} KiB", "labelers read it before their first pair: shorten it")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise fault("no UTF-8 text", "save it as UTF-8") from None
    if "\0" in text:
        raise fault("no text", "give a Markdown or text file")
    if not text.strip():
        raise fault("empty", "write something, or leave the option out")
    return text
