"""Which format a file is in, told from its content, and why."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.files import open_file
from data.formats import FORMATS
from data.jsonstream import JsonStream
from data.rows import container, read_rows, shards
from data.schema import RECORDS

#: the project's own layout
OWN = "schema"
#: rows that are looked at
ROWS = 50
#: share of the rows that must have a format's keys
MOST = 0.8
#: one line longer than this is taken for a whole JSON object, not for a row
LONGEST_ROW = 1 << 24
#: top-level keys that are looked at: other files than a list of captions by picture have a few
KEYS = 32
#: in an object of arrays, elements of these tell what it is
TELLING = ("annotations", "questions")
_WORDS = {"lines": "JSON lines", "array": "a JSON array", "parquet": "Parquet", "tsv": "a TSV table"}


@dataclass(frozen=True)
class Found:
    """A format that fits, and what in the file says so."""

    name: str
    why: str


def detect(path: str | Path) -> list[Found]:
    """The formats that fit a file or folder, the most specific first; empty when none does.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    if os.path.isdir(path):
        names = {entry.name for entry in Path(path).iterdir()}
        found = _fits("folder", [names], "a folder that holds")
        if found or not shards(path):
            return found
        return _of_rows(path, "parquet")[0]
    how = container(path)
    found, seen = [], 0
    if how != "lines" or not _is_object(path):
        found, seen = _of_rows(path, how)
    if how == "lines" and seen <= 1 and (not found or found[0].name != OWN):
        keys = set(itertools.islice(_top_keys(path), KEYS))
        found += _fits("object", [keys], "one JSON object with")
    return found


def _of_rows(path: str | Path, how: str) -> tuple[list[Found], int]:
    """The formats that the first rows fit, and how many rows there are among them."""
    head = list(_head(path))
    rows = [row for row in head if isinstance(row, dict)]
    if not rows:
        return [], len(head)
    words = _WORDS[how]
    ours = sum(isinstance(row.get("kind"), str) and row["kind"] in RECORDS for row in rows)
    if ours >= MOST * len(head):
        return [Found(OWN, f"{words} whose rows have one of our kinds")], len(head)
    held = [set(row) if isinstance(row, dict) else set() for row in head]
    return _fits("rows", held, f"{words} whose rows"), len(head)


def _head(path: str | Path) -> Iterator[Any]:
    """The first rows, up to where the file breaks off. Raises DataError for a file that has none."""
    none = True
    try:
        for _, row in itertools.islice(read_rows(path), ROWS):
            none = False
            yield row
    except DataError:
        if none:
            raise


def _fits(holder: str, held: list[set[str]], words: str) -> list[Found]:
    """The formats of a holder whose keys most of ``held`` have: one bad row does not hide what a file is."""
    found = []
    for fmt in FORMATS.values():
        share = sum(fmt.needs <= keys for keys in held)
        if fmt.holder == holder and fmt.needs and share and share >= MOST * len(held):
            keys = ", ".join(sorted(fmt.needs))
            if holder == "rows":
                keys = f"all have {keys}" if share == len(held) else f"have {keys} ({share} of {len(held)})"
            found.append((-len(fmt.needs), Found(fmt.name, f"{words} {keys}")))
    return [one for _, one in sorted(found, key=lambda pair: pair[0])]


def _is_object(path: str | Path) -> bool:
    """Whether a file's first line is no whole row: it ends in the middle, or does not end."""
    with open_file(path) as file:
        line = file.readline(LONGEST_ROW)
    return not line.rstrip().endswith(b"}")


def _top_keys(path: str | Path) -> Iterator[str]:
    """Top-level keys, and those of the first element of each array as "key.name", up to a telling one."""
    with open_file(path) as file:
        seen = None
        try:
            for element in JsonStream(file, str(path)):
                if element.key == seen or element.key is None:
                    continue
                seen = element.key
                yield seen
                if isinstance(element.value, dict):
                    yield from (f"{seen}.{name}" for name in element.value)
                if seen in TELLING and element.index is not None:
                    return
        except DataError:
            return  # what is no JSON is told when it is read


def describe(found: list[Found]) -> str:
    """One line for people."""
    if not found:
        return "unknown: no format's keys are all there (align data formats lists them)"
    rest = f"; also fits: {', '.join(f.name for f in found[1:])}" if found[1:] else ""
    return f"{found[0].name} ({found[0].why}){rest}"


def one(path: str | Path) -> str:
    """The name of the format that fits best. Raises DataError when none does."""
    found = detect(path)
    if not found:
        mend = "name it (--format; align data formats lists them)"
        raise DataError("no format's keys are all there", file=str(path), mend=mend)
    return found[0].name
