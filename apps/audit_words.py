"""What an audit's figures say in plain words, each sentence with the numbers that it rests on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from align.audit import BLANK, FACTS, FALSE, IMAGE, SWAPPED, said_times
from data.jsonl import read_json
from evals.report import format_number

#: a mean shift below this share of the spread is nothing to speak of
NOTHING = 0.05
#: agreement with choices so far below the labelers' own is as good
NEAR = 0.02
#: the difference of false and true sentences, in ``contrasts``
LESS = "false less true"
TWICE = said_times(2)

Found = Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """One finding. ``kind`` says whether a reward model should be so; "unclear": the data does not tell."""

    subject: str
    kind: Literal["good", "bad", "unclear"]
    text: str


def findings_of(found: Found) -> list[Finding]:
    """The findings of an audit, those first that decide whether to use the model."""
    if not found["spread"]["value"]:
        text = "All scores are equal: the model has learned nothing, or its head was lost."
        return [Finding("scores", "bad", text)]
    told = [_agreement(found), _image(found), _facts(found), _truth(found), _padding(found)]
    told += [_length(found), _lean(found), _response(found), _orders(found)]
    return [finding for finding in told if finding is not None]


def _agreement(found: Found) -> Finding | None:
    if found["agreement"] is None:
        return None
    own, labelers = found["agreement"]["all"], found["agreement"]["labelers"]
    of = {"measured": "two annotators of these pairs", "thesis": "human labelers (thesis)",
          "settings": "labelers"}[labelers["source"]]  # fmt: skip
    told = (
        f"Agrees with {_percent(own)} of {own['n']} choices; {of} agree on {_percent(labelers)}, "
        f"with which no scores can be expected to reach more than {100 * labelers['at_most']:.0f} %."
    )
    # a share that is given has no interval
    low, high = (labelers["value"] if labelers[end] is None else labelers[end] for end in ("low", "high"))
    if own["high"] < 0.5:
        return Finding("choices", "bad", f"{told} Worse than chance.")
    if own["low"] <= 0.5:
        kind: Literal["bad", "unclear"] = "bad" if own["high"] < low else "unclear"
        return Finding("choices", kind, f"{told} That is not told apart from chance.")
    if own["low"] >= high - NEAR:
        return Finding("choices", "good", f"{told} As good as a second labeler.")
    if own["high"] < low:
        return Finding("choices", "good", f"{told} Better than chance, short of a second labeler.")
    text = "Better than chance; whether as good as a second labeler, these pairs do not tell."
    return Finding("choices", "good", f"{told} {text}")


def _image(found: Found) -> Finding | None:
    if not {BLANK, IMAGE} <= found["changes"].keys():
        return None
    blank, other = (found["changes"][name] for name in (BLANK, IMAGE))
    if max(blank["relative_size"]["high"], other["relative_size"]["high"]) < NOTHING:
        moves = f"blanking it moves the score by {_number(blank['relative_size'], ' spreads')}"
        also = f"another image by {_number(other['relative_size'], ' spreads')}"
        return Finding("image", "bad", f"Does not look at the image: {moves}, {also}.")
    falls = f"{_shift(other['relative'])} ({_percent(other['falls'])} fall)"
    if other["relative"]["high"] < 0:
        text = f"Looks at the image: another record's image moves the score by {falls}"
        return Finding("image", "good", f"{text}, a blank one by {_shift(blank['relative'])}.")
    if other["relative"]["low"] > 0:
        return Finding("image", "bad", f"Prefers another record's image: it moves the score by {falls}.")
    text = "Sees the image, and does not tell its own from another's: with that the score moves by"
    return Finding("image", "unclear", f"{text} {falls}.")


def _facts(found: Found) -> Finding | None:
    if not found["facts"] or FACTS not in found["changes"]:
        return None
    other = found["changes"][FACTS]
    if other["relative_size"]["high"] < NOTHING:
        moves = f"those of another image move the score by {_number(other['relative_size'], ' spreads')}"
        return Finding("facts", "bad", f"Does not read the facts: {moves}.")
    falls = f"{_shift(other['relative'])} ({_percent(other['falls'])} fall)"
    if other["relative"]["high"] < 0:
        return Finding("facts", "good", f"Reads the facts: those of another image move the score by {falls}.")
    kind: Literal["bad", "unclear"] = "bad" if other["relative"]["low"] > 0 else "unclear"
    text = "Reads the facts, and does not hold the response to them: those of another image move the score by"
    return Finding("facts", kind, f"{text} {falls}.")


def _truth(found: Found) -> Finding | None:
    less = found["contrasts"].get(LESS)
    if less is None:
        return None
    costs = f"{_shift(less['relative'])} against a true one (lower for {_percent(less['falls'])})"
    moves = f"a false sentence moves the score by {costs}"
    if less["relative"]["high"] < 0:
        return Finding("truth", "good", f"Tells false from true: {moves}.")
    if less["relative"]["low"] > 0:
        return Finding("truth", "bad", f"Prefers false to true: {moves}.")
    kind: Literal["bad", "unclear"] = "bad" if less["relative"]["low"] > -NOTHING else "unclear"
    return Finding("truth", kind, f"Does not tell false from true: {moves}.")


def _padding(found: Found) -> Finding | None:
    """Whether a false sentence pays; a policy would add more of what does."""
    false = found["changes"].get(FALSE)
    if false is None:
        return None
    moves = f"{_shift(false['relative'])} ({_percent(false['rises'])} rise)"
    if false["relative"]["low"] > 0:
        return Finding("padding", "bad", f"A false sentence pays: added, it moves the score by {moves}.")
    if false["relative"]["high"] < 0:
        return Finding("padding", "good", f"A false sentence costs: added, it moves the score by {moves}.")
    return Finding("padding", "unclear", f"A false sentence is free: added, it moves the score by {moves}.")


def _length(found: Found) -> Finding | None:
    within = found["length"]["within"]
    told = ""
    if within["value"] is not None:
        told = f" Within conversations, score and length correlate at {_number(within, signed=True)}."
    twice = found["changes"].get(TWICE)
    if twice is None:
        return Finding("length", "unclear", told.strip()) if told else None
    moves = f"the same text twice moves the score by {_shift(twice['relative'])}"
    if twice["relative"]["low"] > 0:
        # with repetition alone it may still not prefer what is longer and says more
        likes = "Likes length" if told and within["low"] > 0 else "Pays for repetition"
        return Finding("length", "bad", f"{likes}: {moves}.{told}")
    if twice["relative"]["high"] < 0:
        return Finding("length", "good", f"Does not pay for repetition: {moves}.{told}")
    return Finding("length", "unclear", f"Indifferent to repetition: {moves}.{told}")


def _lean(found: Found) -> Finding | None:
    """Whether agreement comes from one side of the lengths."""
    bins = found["agreement"]
    if bins is None or not bins["shorter"]["n"] or not bins["longer"]["n"]:
        return None
    shorter, longer = bins["shorter"], bins["longer"]
    told = (
        f"right on {_percent(shorter)} where the shorter response was chosen, "
        f"on {_percent(longer)} where the longer was"
    )
    if shorter["low"] > longer["high"]:
        return Finding("lean", "bad", f"Leans on shortness: {told}.")
    if longer["low"] > shorter["high"]:
        return Finding("lean", "bad", f"Leans on length: {told}.")
    if min(shorter["low"], longer["low"]) > 0.5:
        return Finding("lean", "good", f"Agrees with short and with long choices: {told}.")
    return Finding("lean", "unclear", f"Whether it leans on length, these pairs do not tell: {told}.")


def _response(found: Found) -> Finding | None:
    swapped = found["changes"].get(SWAPPED)
    if swapped is None:
        return None
    told = (
        "the response to the same question of another image is scored lower for "
        f"{_percent(swapped['falls'])} ({_shift(swapped['relative'])})"
    )
    if swapped["relative"]["high"] < 0:
        return Finding("response", "good", f"Knows which response belongs here: {told}.")
    kind: Literal["bad", "unclear"] = "bad" if swapped["relative"]["low"] > -NOTHING else "unclear"
    return Finding("response", kind, f"Does not know which response belongs here: {told}.")


def _orders(found: Found) -> Finding | None:
    orders = found["orders"]
    if orders is None:
        return None
    apart = _number(orders["relative"], " spreads")
    told = f"over {orders['orders']} orders the scores of one response are {apart} apart (standard deviation)"
    steady = orders["relative"]["high"] < 0.25
    if orders["changed"]["value"] is not None:
        told += f", and {_percent(orders['changed'])} of the pairs change sides in some"
        steady = orders["changed"]["high"] < 0.1
    if steady:
        return Finding("order of facts", "good", f"Steady: {told}.")
    return Finding("order of facts", "unclear", f"The order of the facts matters: {told}.")


def _percent(of: Mapping[str, float | None]) -> str:
    """``78 % [74, 82]``."""
    if of["value"] is None:
        return "none"
    text = f"{100 * of['value']:.0f} %"
    low, high = of.get("low"), of.get("high")
    return text if low is None or high is None else f"{text} [{100 * low:.0f}, {100 * high:.0f}]"


def _number(of: Mapping[str, float | None], unit: str = "", *, signed: bool = False) -> str:
    """``0.12 [0.10, 0.14]``, with a unit and a plus sign where asked for."""

    def one(value: float | None) -> str:
        return ("+" if signed and (value or 0) > 0 else "") + format_number(value, 2)

    if of["value"] is None:
        return "undefined"
    return f"{one(of['value'])}{unit} [{one(of['low'])}, {one(of['high'])}]"


def _shift(of: Mapping[str, float | None]) -> str:
    return _number(of, " spreads", signed=True)


def headlines(folder: Path) -> list[str]:
    """What the audit in a run directory says, a line each, for the terminal."""
    return [f"{one['subject']}: {one['text']}" for one in read_json(folder / "audit.json")["findings"]]


_HEADING = "## Audit"


def card_with(card: str, found: Found) -> str:
    """The model's card with the audit's findings at its end, in the place of an earlier audit's."""
    kept = re.split(rf"^{_HEADING}$", card, maxsplit=1, flags=re.MULTILINE)[0].rstrip()
    lines = [
        kept, "", _HEADING, "",
        f"On {found['n']['responses']} responses to {found['n']['conversations']} conversations of "
        f"`{found['data']}`. A spread is the standard deviation of all scores; 95 % intervals in brackets.",
        "",
        *(f"- **{v.subject}** ({v.kind}): {v.text}" for v in findings_of(found)),
        "",
    ]  # fmt: skip
    return "\n".join(lines)
