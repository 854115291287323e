"""Read and write records and JSON files: every bad record is named by file and line, never lost silently.

Reading is a pipeline of ``(Row, record or DataError)`` pairs; ``keep`` is the one place that decides
what happens to the bad ones (stop at the first, or stop when they are too many, or put them aside).
"""

from __future__ import annotations

import contextlib
import json
import logging
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from data.errors import DataError as DataError
from data.errors import Pairs as Pairs
from data.errors import Row as Row
from data.errors import explain as explain
from data.files import read_json as read_json
from data.files import read_text as read_text
from data.files import replacing, to_json
from data.files import whole_text as whole_text
from data.files import write_json as write_json
from data.files import write_lines as write_lines
from data.files import write_text as write_text
from data.rows import is_reject, jsonable, lines, parse_line
from data.rows import read_rows as read_rows
from data.schema import RECORDS, AnyRecord, Preference, Verdict

log = logging.getLogger(__name__)
T = TypeVar("T")
#: bad records that an error quotes
QUOTED = 3
#: duplicates whose first place is told: it is looked for among all records
PLACED = 100


@dataclass
class Rejects:
    """Bad records that wait for their file, because the folder it belongs to is not there yet."""

    found: list[tuple[Row, DataError]] = field(default_factory=list)

    def write(self, path: str | Path) -> None:
        """One JSON line a bad record: its place, the reason, and the original. Empty when all is well."""
        write_lines(path, (_reject(row, error) for row, error in self.found))


def keep(
    pairs: Iterable[tuple[Row, T | DataError]],
    *,
    limit: int | None = None,
    strict: bool = False,
    max_bad: float = 0.01,
    rejects: str | Path | Rejects | None = None,
) -> Iterator[T]:
    """Yield the good records of a reading pipeline and deal with the bad ones.

    ``strict`` raises the first bad record's error. Otherwise bad records are counted, and once the
    input (or ``limit`` good records) is through, more than the share ``max_bad`` of them raises a
    DataError that quotes the first few; fewer are left out with a warning. ``rejects`` gets them all, in
    every case: a file as they are found (it is there at the end of reading), a ``Rejects`` for its owner.
    """
    good = bad = 0
    first: list[DataError] = []
    with rejects_of(rejects) as put:
        for row, got in pairs:
            if isinstance(got, DataError):
                bad += 1
                first += [got] if bad <= QUOTED else []
                put(row, got)
                if strict:
                    raise got
                continue
            good += 1
            yield got
            if good == limit:
                break
    count = f"{bad} of {good + bad} records are bad"
    if bad > max_bad * (good + bad):
        quoted = "".join(f"\n  {error}" for error in first)
        lists = "align data validate FILE --rejects OUT lists them"
        seen = f"see {rejects}" if isinstance(rejects, str | Path) else lists
        mend = f"mend them ({seen}) or raise max_bad. The first:{quoted}"
        rule = f"{count}, more than {max_bad:.3g} of them"
        raise DataError(rule, file=first[0].file, mend=mend)
    if bad:
        log.warning("%s and left out; the first: %s", count, first[0])


@contextlib.contextmanager
def rejects_of(rejects: str | Path | Rejects | None) -> Iterator[Callable[[Row, DataError], object]]:
    """Puts bad records where they belong; the file is written when the block ends, by an error too."""
    if isinstance(rejects, Rejects):
        yield lambda row, error: rejects.found.append((row, error))
        return
    if rejects is None:
        yield lambda row, error: None
        return
    with replacing(rejects, always=True) as file:
        yield lambda row, error: file.write(_reject(row, error) + "\n")


def _reject(row: Row, error: DataError) -> str:
    place = {"file": row.file, "line": row.line, "index": row.index}
    reason = {"key": error.key, "rule": error.rule, "mend": error.mend}
    record = row.raw
    if isinstance(record, str):
        with suppress(ValueError, RecursionError):  # a line that is not JSON stays as text
            record = json.loads(record)
    told = {k: v for k, v in (place | reason).items() if v is not None} | {"record": record}
    # ASCII, because an original may hold what UTF-8 cannot (see ``whole_text``)
    return json.dumps(told, default=jsonable)


def _parse_record(row: Row, text: str) -> AnyRecord:
    value = parse_line(row, text)
    if isinstance(value, dict) and is_reject(value):
        value = value["record"]
        text = json.dumps(value)
    if not isinstance(value, dict):
        raise row.locate(DataError("the line is not a JSON object", mend="give an object with named keys"))
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in RECORDS:
        rule = "the key is missing" if kind is None else f"unknown kind {kind!r}"
        mend = f"use one of {', '.join(RECORDS)}, or convert the file (align data convert)"
        raise row.locate(DataError(rule, key="kind", mend=mend))
    try:
        return RECORDS[kind].model_validate_json(text)
    except ValidationError as error:
        raise row.locate(explain(error, RECORDS[kind])) from None


def identity(record: AnyRecord) -> tuple[str, ...] | None:
    """What is unique in a file: the id, for preferences with the annotator; verdicts repeat (None)."""
    if isinstance(record, Verdict):
        return None
    if isinstance(record, Preference):
        return record.kind, record.id, record.annotator or ""
    return record.kind, record.id


def record_pairs(path: str | Path) -> Pairs[AnyRecord]:
    """Every line of a schema file as a record or as the reason why it is none; duplicate ids pass."""
    for row, text in lines(path):
        try:
            yield row, text if isinstance(text, DataError) else _parse_record(row, text)
        except DataError as error:
            yield row, error


def no_duplicates(pairs: Pairs[AnyRecord]) -> Pairs[AnyRecord]:
    """Turn every record whose identity was seen before into an error that names the first place.

    Identities are kept as 64-bit hashes: some tens of bytes a record, whatever the ids are.
    """
    seen: set[int] = set()
    # in their order, for the place of the first
    hashes, places, files = array("q"), array("q"), dict[str, int]()
    told = 0
    for row, got in pairs:
        name = None if isinstance(got, DataError) else identity(got)
        if name is None:
            yield row, got
            continue
        key = hash(name)
        if key in seen:
            told += 1
            first = ""
            if told <= PLACED:
                number, place = divmod(places[hashes.index(key)], 1 << 40)
                first = f" (first in {list(files)[number]}:{place})"
            rule = f"duplicate id {name[1]!r}{first}"
            yield row, row.locate(DataError(rule, key="id", mend="give each record its own id"))
            continue
        seen.add(key)
        hashes.append(key)
        places.append((files.setdefault(row.file, len(files)) << 40) + row.number + 1)
        yield row, got


def iter_records(
    path: str | Path,
    kind: str | None = None,
    *,
    limit: int | None = None,
    strict: bool = False,
    max_bad: float = 0.01,
    rejects: str | Path | None = None,
) -> Iterator[AnyRecord]:
    """Stream the records of a schema JSONL file; ``kind`` passes over the other kinds.

    Raises DataError as ``keep`` says; duplicate ids are bad records.
    """
    if kind is not None and kind not in RECORDS:
        raise DataError(f"unknown kind {kind!r}", file=str(path), mend=f"use one of {', '.join(RECORDS)}")
    pairs: Pairs[AnyRecord] = no_duplicates(record_pairs(path))
    if kind is not None:
        pairs = ((row, got) for row, got in pairs if isinstance(got, DataError) or got.kind == kind)
    found: Iterator[AnyRecord]
    found = keep(pairs, limit=limit, strict=strict, max_bad=max_bad, rejects=rejects)
    yield from found


def read_records(
    path: str | Path,
    kind: str | None = None,
    *,
    limit: int | None = None,
    strict: bool = False,
    max_bad: float = 0.01,
    rejects: str | Path | None = None,
) -> list[AnyRecord]:
    """All records of a schema JSONL file, in order; see ``iter_records``."""
    found = iter_records(path, kind, limit=limit, strict=strict, max_bad=max_bad, rejects=rejects)
    return list(found)


#: the fields of each kind but ``kind``, in the schema's order
_FIELDS = {model: tuple(name for name in model.model_fields if name != "kind") for model in RECORDS.values()}


def dump(record: AnyRecord) -> dict[str, Any]:
    """The record as JSON values: ``kind`` first, then the schema's order, without defaults."""
    fields = _FIELDS[type(record)]
    row = record.model_dump(mode="json", exclude_defaults=True)
    # default factories are not "defaults" to pydantic, so empty containers are dropped here
    if "facts" in row:
        row["facts"] = {k: v for k, v in row["facts"].items() if v not in (None, [])}
    for name in ("facts", "meta"):
        if name in row and not row[name]:
            del row[name]
    return {"kind": record.kind} | {name: row[name] for name in fields if name in row}


def write_records(path: str | Path, records: Iterable[AnyRecord]) -> int:
    """Write one record a line, atomically; returns how many. Raises DataError on a duplicate id."""
    seen: set[int] = set()

    def lines_of() -> Iterator[str]:
        for index, record in enumerate(records):
            name = identity(record)
            if name is not None and hash(name) in seen:
                rule = f"duplicate id {name[1]!r}"
                raise DataError(rule, file=str(path), index=index, key="id", mend="make ids unique")
            if name is not None:
                seen.add(hash(name))
            yield to_json(dump(record), path, index)

    return write_lines(path, lines_of())


def write_rows(path: str | Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write JSON objects one a line, atomically; returns how many."""
    return write_lines(path, (to_json(row, path, i) for i, row in enumerate(rows)))
