"""The evaluation turn of a reward model: its wording, the facts in it, and how the two are put together.

Without torch, so that a recipe's own template is checked before anything loads.
"""

from __future__ import annotations

import difflib
import random
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from align.config import FactKind
    from data.schema import Facts

#: The evaluation turn ahead of the score. ``{facts}`` is replaced by the facts, or by nothing.
REWARD_TEMPLATE = (
    "{facts}\n"
    "Now judge the last answer. It should be accurate: every claim holds in the image. It should be helpful: "
    "it answers what was asked. It should read naturally and be concise. Is the answer correct?"
)
FACTS_HEADER = "True of the image:"
#: what a template may name; the response stands ahead of it in any case
PLACES = ("facts", "response")


def check_template(template: str, facts: Sequence[str] = ()) -> None:
    """A word in braces must be a place that is filled, or it would be scored as it stands.

    Other braces are text. ``facts``: the kinds that the model reads; they need ``{facts}``.

    Raises:
        ValueError: names the word and the mend.
    """
    for word in re.findall(r"\{\s*\w*\s*\}", template):
        if word[1:-1] not in PLACES:
            near = difflib.get_close_matches(word[1:-1].strip(), PLACES, n=1)
            mend = f"did you mean {{{near[0]}}}?" if near else "the places are {facts} and {response}"
            raise ValueError(f"the template names {word}, which nothing replaces; {mend}")
    if facts and "{facts}" not in template:
        raise ValueError(
            f"the model reads facts ({', '.join(facts)}), and the template has no place for them; "
            "put {facts} where they should stand"
        )


def times_read(template: str) -> int:
    """How often a model reads the response: as a turn, and where its template repeats it."""
    return 1 + template.count("{response}")


def facts_text(
    facts: Facts, kinds: Sequence[FactKind], max_facts: Mapping[FactKind, int], rng: random.Random
) -> str | None:
    """The facts of the given ``kinds`` as lines of text, in an order that ``rng`` shuffles; None without any.

    At most ``max_facts[kind]`` entries of a kind, picked by ``rng`` (thesis, 9.3: 5 captions, 3 rationales).
    """
    lines: list[str] = []
    for kind in kinds:
        if kind == "answer":
            lines += [f"The right answer is {facts.answer}."] if facts.answer else []
            continue
        entries = list(getattr(facts, kind))
        rng.shuffle(entries)
        entries = entries[: max_facts.get(kind, len(entries))]
        if kind == "objects" and entries:
            lines.append(f"Objects in it: {', '.join(entries)}.")
        elif kind != "objects":
            lines += entries
    rng.shuffle(lines)
    return "\n".join([FACTS_HEADER, *lines]) if lines else None


def fill(template: str, **texts: str) -> str:
    """The template with each ``{name}`` replaced by its text; braces inside the texts stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda found: texts.get(found[1], found[0]), template).strip()
