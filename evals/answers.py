"""Answers from a file: whoever made them, joined to a benchmark's items by id; what does not fit is counted.

Nothing here stops at a bad line: a file of answers is scored as far as it goes, and the result says what is
missing, stands twice, belongs to nothing, or was given to another version of the questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.jsonl import DataError, read_rows
from evals.runner import Benchmark, Scored

#: keys under which the scorers in use expect an item's number, and its answer
ID_KEYS = ("id", "question_id", "image_id", "index")
TEXT_KEYS = ("response", "answer", "text", "caption", "model_answer", "prediction")
#: ids listed of each kind of trouble; all are counted
LISTED = 20


@dataclass(frozen=True)
class Answers:
    """What a file holds for one benchmark."""

    texts: Mapping[str, str]
    #: items without an answer
    missing: tuple[str, ...] = ()
    #: ids with two answers; equal ones count as one, different ones as none
    duplicate: tuple[str, ...] = ()
    conflicting: tuple[str, ...] = ()
    #: ids that the benchmark does not have
    unknown: tuple[str, ...] = ()
    #: ids whose row names another benchmark's hash
    other_version: tuple[str, ...] = ()
    #: lines that are no JSON object, or lack an id or a text: "file:line: what"
    unreadable: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every item has exactly one answer and nothing else was found."""
        return not any(getattr(self, name) for name in TROUBLES)

    def as_dict(self) -> dict[str, Any]:
        """Counts, and the first of each kind, for ``results.json``."""
        found: dict[str, Any] = {"answered": len(self.texts)}
        for name in TROUBLES:
            ids = getattr(self, name)
            found[name] = {"n": len(ids), "first": list(ids[:LISTED])}
        return found


TROUBLES = ("missing", "duplicate", "conflicting", "unknown", "other_version", "unreadable")


@dataclass
class _Found:
    texts: dict[str, str] = field(default_factory=dict)
    duplicate: dict[str, None] = field(default_factory=dict)
    conflicting: dict[str, None] = field(default_factory=dict)
    unknown: dict[str, None] = field(default_factory=dict)
    other_version: dict[str, None] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)


def read_answers(
    path: str | Path,
    wanted: Iterable[str],
    *,
    benchmark: str,
    sha256: str | None = None,
    prefix: str = "",
    identify: Callable[[Mapping[str, Any]], str | None] | None = None,
) -> Answers:
    """The answers of a JSON list, or of JSON lines, to the items ``wanted`` (ids).

    A row has its item's id (``id``, ``question_id``, ``image_id`` or ``index``; ``prefix`` is put before
    one that is not wanted as it stands, e.g. "random/" of a POPE split) and its text (``response``,
    ``answer``, ``text``, ``caption``, ``model_answer`` or ``prediction``). A row that names another
    ``benchmark`` is another's and passed over; one that names another ``sha256`` was given to other
    questions and is counted.

    ``identify`` gives the id of rows in a benchmark's own layout, which may have none; None for others.

    Raises:
        DataError: the file is not there, or not JSON at all.
    """
    ids, found = list(wanted), _Found()
    known = set(ids)
    for row, got in read_rows(path):
        if isinstance(got, DataError):
            found.unreadable.append(str(got))
            continue
        if got.get("benchmark", benchmark) != benchmark:
            continue
        try:
            name = (identify(got) if identify else None) or id_of(got)
            text = _value(got, TEXT_KEYS, "text")
        except DataError as error:
            found.unreadable.append(str(row.locate(error)))
            continue
        # a split's own questions are numbered without its name, our responses.jsonl with it
        name = name if name in known else prefix + name
        _put(found, name, text, known, sha256 if "sha256" in got else None, got.get("sha256"))
    for name in found.conflicting:
        found.texts.pop(name, None)
    return Answers(
        texts=found.texts,
        missing=tuple(name for name in ids if name not in found.texts),
        duplicate=tuple(name for name in found.duplicate if name not in found.conflicting),
        conflicting=tuple(found.conflicting),
        unknown=tuple(found.unknown),
        other_version=tuple(found.other_version),
        unreadable=tuple(found.unreadable),
    )


def _put(found: _Found, name: str, text: str, known: set[str], ours: str | None, theirs: Any) -> None:
    if name not in known:
        found.unknown[name] = None
    elif ours is not None and theirs != ours:
        found.other_version[name] = None
    elif name not in found.texts:
        found.texts[name] = text
    elif found.texts[name] == text:
        found.duplicate[name] = None
    else:
        # which of the two was meant nobody knows
        found.conflicting[name] = None


def id_of(row: Mapping[str, Any]) -> str:
    """The id that a row of answers names. DataError where it names none."""
    return _value(row, ID_KEYS, "id")


def _value(row: Mapping[str, Any], keys: tuple[str, ...], what: str) -> str:
    for key in keys:
        value = row.get(key)
        if isinstance(value, str):
            return value
        if what == "id" and isinstance(value, int) and not isinstance(value, bool):
            return str(value)
    raise DataError(f"no {what}", mend=f"give it as one of {', '.join(keys)}")


def score_partial(benchmark: Benchmark, responses: Mapping[str, str]) -> Scored:
    """``score`` where all that can be wrong is that items have no response."""
    missing = tuple(item.id for item in benchmark.items if item.id not in responses)
    return score(benchmark, Answers(responses, missing=missing)) if missing else benchmark.score(responses)


def score(benchmark: Benchmark, answers: Answers) -> Scored:
    """The benchmark's figures over the items that have an answer; the result says what is missing.

    ``answers`` of the result holds the counts. With no answer at all there are no figures.
    """
    if not answers.texts:
        return Scored({"n": 0, "answers": answers.as_dict()}, [])
    try:
        kept = benchmark.only(answers.texts)
    except DataError:
        # answers there are, but not to all parts of any question (MMBench's rotations)
        return Scored({"n": 0, "answers": answers.as_dict()}, [])
    asked = {item.id for item in kept.items}
    scored = kept.score({name: text for name, text in answers.texts.items() if name in asked})
    return Scored(scored.result | {"answers": answers.as_dict()}, scored.verdicts)
