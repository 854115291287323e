"""The page of an audited reward model, and the same as Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from align.audit import BLANK, CONTEXT, ELSEWHERE, FACTS, FALSE, IMAGE, SWAPPED, TRUE, Subject
from align.padding import padded
from apps.audit_words import LESS, NOTHING, findings_of
from data.thumbnail import thumbnail
from evals.audit import MOVED, unchanged
from evals.metrics import Interval, interval_from
from evals.report import (
    Answer,
    Bars,
    Cell,
    Gallery,
    GalleryItem,
    Page,
    Section,
    Table,
    as_markdown,
    format_number,
)

#: sides of a picture on the page
SIDE = 216
#: what is done to a response or to what stands around it
DONE = {
    BLANK: "the image made grey",
    IMAGE: "another record's image, the facts its own",
    FACTS: "another record's facts, the image its own",
    CONTEXT: "another record's image and facts",
    SWAPPED: "another record's response to the same question, image and facts its own",
    ELSEWHERE: "another record's response to another question, which its topic may give away",
    TRUE: "true sentences added at the end",
    FALSE: "the same sentences, but false",
}
SOURCES = {
    "scenes": "Sentences that are added name a thing of the scene, or one that usually goes with it and is "
    "not there; the two are alike but for the name.",
    "captions": "Sentences that are added are captions of the image, and captions of another image, which "
    "may happen to be true of this one; the two may differ in length.",
}
#: of a model that reads facts
UNSHOWN = " A fact with the words of a true sentence is not shown, nor for the score that the shift is from."
Found = Mapping[str, Any]


def page_of(
    found: Found,
    rows: Sequence[Mapping[str, Any]],
    subjects: Sequence[Subject],
    root: str | None,
    pictures: int,
) -> Page:
    """The findings, their figures, and the responses that a false sentence helped most.

    ``root`` is the image root, ``pictures`` how many responses are shown.
    """
    sections: list[Section] = [findings(found), *charts(found), changes_table(found)]
    sections += [table for table in (agreement_table(found), lengths_table(found)) if table is not None]
    shown = gallery(found, rows, subjects, root, pictures)
    if shown is not None:
        sections.append(shown)
    n = found["n"]
    reads = f"reads {', '.join(found['facts'])}" if found["facts"] else "reads no facts"
    subtitle = (
        f"{found['reward_model']} ({reads}), on {n['responses']} responses to {n['conversations']} "
        f"conversations about {n['images']} images"
    )
    footer = (
        f"Data: {found['data']}; seed {found['seed']}.\n"
        "Intervals: 95 % bootstrap over pictures; for agreement with choices Wilson's, of as many "
        "pairs as would tell the same if no two were of one picture.\n"
        "Every score of every response stands in audit.jsonl."
    )
    return Page("Reward model audit", sections, subtitle, footer=footer)


def markdown_of(found: Found) -> str:
    """The findings and the tables as Markdown."""
    tables = [findings(found), changes_table(found), agreement_table(found), lengths_table(found)]
    written = (as_markdown(table) for table in tables if table is not None)
    return "\n".join(["# Reward model audit\n", *written])


def findings(found: Found) -> Table:
    """What the figures say in words."""
    marks = {"good": "✓", "bad": "✗", "unclear": "?"}
    rows: list[list[Cell]] = [
        [f"{marks[v.kind]}\u00a0{v.subject}", _unbroken(v.text)] for v in findings_of(found)
    ]
    spread = interval(found["spread"])
    note = (
        f"A spread is the standard deviation of all unchanged scores, {number(spread)} here. ✓: as it should "
        f"be; ✗: as it should not; ?: the data does not tell. Less than {NOTHING} spreads counts as nothing."
    )
    return Table("What was found", ["", "finding"], rows, note)


def _unbroken(text: str) -> str:
    """No line breaks inside a figure and its interval."""
    return re.sub(r" %|(?<=\d) (?=\[)|(?<=\d), (?=[\d−+])", lambda m: m[0].replace(" ", "\u00a0"), text)


def charts(found: Found) -> list[Section]:
    """How far each change moves the score, and how choices are agreed with by length."""
    names = list(found["changes"])
    moved = [interval(found["changes"][name]["relative"]) for name in names]
    note = "Mean shifts in spreads, with 95 % intervals. Below zero: the score falls."
    sections: list[Section] = []
    if names:
        sections.append(Bars("What moves the score", names, {"mean shift": moved}, "spreads", note=note))
    if found["agreement"] is not None:
        groups = [name for name in BINS if found["agreement"][name]["n"]]
        agreed = [interval(found["agreement"][name]) for name in groups]
        labelers = found["agreement"]["labelers"]["value"]
        sections.append(
            Bars(
                "Agreement with choices",
                [*(BINS[name] for name in groups), "labelers"],
                {"share": [*agreed, labelers]},
                "share of pairs",
                note=f"By which response was chosen. {labelers_note(found)}",
            )
        )
    return sections


#: the bins of ``align.pairs.by_length``
BINS = {"all": "all pairs", "shorter": "shorter chosen", "equal": "equally long", "longer": "longer chosen"}


def labelers_note(found: Found) -> str:
    """Where the labelers' agreement is from."""
    of = found["agreement"]["labelers"]
    share = format_number(of["value"], 2)
    told = {
        "measured": f"two annotators of the {of['n']} pairs that have several agree on {share}",
        "thesis": f"two human labelers agree on {share} (thesis, appendix H)",
        "settings": f"{share}, by the settings",
    }[of["source"]]
    most = format_number(of["at_most"], 2)
    return f"Labelers: {told}; no scores can be expected to agree with one of them on more than {most}."


def changes_table(found: Found) -> Table:
    """Each change with its figures, and the difference of false and true sentences."""
    several = found["changes"] | found["contrasts"]
    rows: list[list[Cell]] = []
    for name, of in several.items():
        keys = ("mean", "relative", "relative_size", "falls", "rises")
        figures = [_counted_beside(of[key]) for key in keys]
        rows.append([name, of["n"], *figures, of["tokens"]])
    columns = ["change", "n", "shift", "in spreads", "size, spreads", "falls", "rises", "tokens"]
    told = "; ".join(f"{name}: {DONE[name]}" for name in several if name in DONE)
    note = (
        f"{told[:1].upper()}{told[1:]}. {LESS[:1].upper()}{LESS[1:]}: the difference of the two, response by "
        f"response. Falls and rises: shares of the responses whose score moves by more than {MOVED} spreads. "
        f"Size: mean of the shift without its sign. Tokens: mean change in length. {SOURCES[found['source']]}"
        f"{UNSHOWN if found['facts'] else ''}"
    )
    return Table("Every change", columns, rows, note, digits=2)


def agreement_table(found: Found) -> Table | None:
    """Agreement with choices by length; None where no choice is recorded."""
    of = found["agreement"]
    if of is None:
        return None
    rows: list[list[Cell]] = [
        [BINS[name], of[name]["n"], _counted_beside(of[name])] for name in BINS if of[name]["n"]
    ]
    rows.append(['"the shorter is better", alone', of["shorter_is_better"]["n"],
                 _counted_beside(of["shorter_is_better"])])  # fmt: skip
    labelers = of["labelers"]
    known = _counted_beside(labelers) if labelers["n"] else labelers["value"]
    rows.append(["labelers with each other", labelers["n"] or None, known])
    note = (
        f"Choices by the question {of['target']!r}; an equal score is half right; equally long is within 2 "
        f"tokens. {labelers_note(found)}"
    )
    return Table("Agreement with choices", ["pairs", "n", "agreement"], rows, note, digits=2)


def lengths_table(found: Found) -> Table:
    """Score and length, and the order of facts."""
    length, orders = found["length"], found["orders"]
    rows: list[list[Cell]] = [
        ["correlation of score and tokens", interval(length["correlation"])],
        ["the same within conversations", interval(length["within"])],
        ["mean length in tokens", length["tokens"]],
        ["spread of the scores", interval(found["spread"])],
    ]
    if orders is not None:
        rows += [
            [f"a score over {orders['orders']} orders of facts, spreads", interval(orders["relative"])],
            ["pairs that change sides over them", interval(orders["changed"])],
        ]
    return Table("Length and order", ["", "figure"], rows, digits=2)


def gallery(
    found: Found,
    rows: Sequence[Mapping[str, Any]],
    subjects: Sequence[Subject],
    root: str | None,
    pictures: int,
) -> Gallery | None:
    """The responses whose score a false sentence raised most (or lowered least), one a picture."""
    by_id = {subject.id: subject for subject in subjects}
    added = [row for row in rows if FALSE in row["changes"]]
    added.sort(key=lambda row: (-_moved(row, FALSE), row["id"], row["response"]))
    worst: dict[str, Mapping[str, Any]] = {}
    for row in added:
        worst.setdefault(row["picture"] or row["id"], row)
    spread = found["spread"]["value"] or 1.0
    items = []
    for row in list(worst.values())[:pictures]:
        subject = by_id[row["id"]]
        answers = {
            "as it was": Answer(row["text"], verdict=f"score {format_number(row['score'], 2)}"),
            TRUE: _answer(row, TRUE, spread),
            FALSE: _answer(row, FALSE, spread),
        }
        truth = f"Captions: {' '.join(subject.facts.captions)}" if subject.facts.captions else ""
        shown = None if subject.image is None else thumbnail(subject.image, root, SIDE)
        items.append(GalleryItem(shown, subject.messages[-1].content, answers, truth))
    if not items:
        return None
    note = "Marked: the false sentence that was added. What pays is what a policy would learn to say."
    return Gallery("Where a false sentence paid most", items, note)


def _moved(row: Mapping[str, Any], name: str) -> float:
    return float(row["changes"][name]["score"]) - unchanged(row, name)


def _answer(row: Mapping[str, Any], name: str, spread: float) -> Answer:
    change = row["changes"][name]
    text = padded(row["text"], tuple(change["added"]))
    start = len(text) - len(" ".join(change["added"]))
    moved = _moved(row, name) / spread
    sign = "+" if moved > 0 else ""
    told = f"score {format_number(change['score'], 2)} ({sign}{format_number(moved, 2)} spreads)"
    return Answer(text, [(start, len(text))] if name == FALSE else (), told)


def interval(of: Mapping[str, Any]) -> Interval:
    """The Interval of a figure in ``audit.json``."""
    return interval_from({key: of[key] for key in ("value", "low", "high", "n")})


def _counted_beside(of: Mapping[str, Any]) -> Interval:
    """The same for a table with a column of its own for n: Markdown need not tell it in every cell."""
    return replace(interval(of), n=1)


def number(of: Interval) -> str:
    """``0.52 [0.48, 0.55]``."""
    return f"{format_number(of.value, 2)} [{format_number(of.low, 2)}, {format_number(of.high, 2)}]"
