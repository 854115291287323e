"""Read and write records and JSON files: every bad record is named by file and line, never lost silently.

Reading is a pipeline of ``(Row, record or DataError)`` pairs; ``keep`` is the one place that decides
what happens to the bad ones (stop at the first, or stop when they are too many, or put them aside).
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from pydantic import ValidationError

from data.errors import DataError as DataError
from data.errors import Pairs as Pairs
from data.errors import Row as Row
from data.errors import explain as explain
from data.schema import RECORDS, AnyRecord, Facts, Preference, Verdict

log = logging.getLogger(__name__)
T = TypeVar("T")


def _open(path: str | Path) -> IO[bytes]:
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise DataError("no such file", file=str(path), mend="check the path") from None
    except OSError as error:
        rule = f"cannot be read ({error.strerror})"
        raise DataError(rule, file=str(path), mend="give a readable file") from error


def _lines(path: str | Path) -> Iterator[tuple[Row, str | DataError]]:
    """Non-blank lines as text. Only a newline byte ends a line; a byte order mark is dropped."""
    with _open(path) as file:
        for number, data in enumerate(file, start=1):
            if number == 1:
                data = data.removeprefix(b"\xef\xbb\xbf")
            try:
                text = data.decode("utf-8").strip()
            except UnicodeDecodeError as error:
                row = Row(str(path), line=number, raw=data.decode("utf-8", "replace"))
                rule = f"not UTF-8 (byte {error.start} of the line)"
                yield row, row.locate(DataError(rule, mend="save the file as UTF-8"))
                continue
            if text:
                yield Row(str(path), line=number, raw=text), text


def _parse_line(row: Row, text: str) -> Any:
    try:
        value = json.loads(text)
        if "\\u" in text:  # the bytes were UTF-8, so only an escape can hold half a character
            whole_text(value)
    except json.JSONDecodeError as error:
        rule = f"not valid JSON ({error.msg}, column {error.colno})"
        raise row.locate(DataError(rule, mend="put one whole JSON object on each line")) from None
    except DataError as error:
        raise row.locate(error) from None
    return value


def whole_text(value: Any, key: str | None = None) -> None:
    """Raise DataError (without a file) for a text that holds a lone surrogate: JSON can escape one
    (``"\\ud83d"``), but no UTF-8 file and no tokenizer takes it."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            rule = f"half a character ({value[error.start]!r}, a lone surrogate)"
            raise DataError(rule, key=key, mend="write the character whole, or remove it") from None
    elif isinstance(value, dict):
        for name, item in value.items():
            whole_text(name, key)
            whole_text(item, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            whole_text(item, f"{key}.{i}" if key else str(i))


def read_json(path: str | Path) -> Any:
    """The value of a JSON file.

    Raises DataError with the line where it is not UTF-8 or not JSON, or with the key of a text that is no
    whole text (a lone surrogate).
    """
    value = _parse_file(path)
    try:
        whole_text(value)
    except DataError as error:
        raise Row(str(path)).locate(error) from None
    return value


def read_text(path: str | Path) -> str:
    """A file's text, without a byte order mark. Raises DataError where it cannot be read or is not UTF-8."""
    with _open(path) as file:
        data = file.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        rule = f"not UTF-8 (byte {error.start})"
        raise DataError(rule, file=str(path), mend="save the file as UTF-8") from None


def _parse_file(path: str | Path) -> Any:
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        rule = f"not valid JSON ({error.msg}, column {error.colno})"
        raise DataError(rule, file=str(path), line=error.lineno, mend="correct the JSON") from None


def read_rows(path: str | Path) -> Pairs[dict[str, Any]]:
    """The JSON objects of a file that is a JSON array or has one object a line (told by its first byte)."""
    with _open(path) as file:
        head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    found: Iterator[tuple[Row, Any]]
    if head.startswith(b"["):
        found = _json_array(path)
    else:
        found = _json_lines(path)
    for row, value in found:
        if isinstance(value, DataError | dict):
            yield row, value
        else:
            rule = f"the record is a {type(value).__name__}, not a JSON object"
            yield row, row.locate(DataError(rule, mend="give an object with named keys"))


def _json_array(path: str | Path) -> Iterator[tuple[Row, Any]]:
    for i, value in enumerate(_parse_file(path)):
        row = Row(str(path), index=i, raw=value)
        try:
            whole_text(value)
        except DataError as error:
            yield row, row.locate(error)
        else:
            yield row, value


def _json_lines(path: str | Path) -> Iterator[tuple[Row, Any]]:
    for row, text in _lines(path):
        if isinstance(text, DataError):
            yield row, text
            continue
        try:
            value = _parse_line(row, text)
        except DataError as error:
            yield row, error
        else:
            yield Row(row.file, line=row.line, raw=value), value


@dataclass
class Rejects:
    """Bad records that wait for their file, because the folder it belongs to is not there yet."""

    found: list[tuple[Row, DataError]] = field(default_factory=list)

    def write(self, path: str | Path) -> None:
        """One JSON line a bad record: its place, the reason, and the original. Empty when all is well."""
        # ASCII, because an original may hold what UTF-8 cannot (see ``whole_text``)
        write_lines(path, (json.dumps(_reject(row, error)) for row, error in self.found))


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
    every case: a file is written at the end of reading, a ``Rejects`` by its owner.
    """
    good = 0
    bad: list[tuple[Row, DataError]] = []
    try:
        for row, got in pairs:
            if isinstance(got, DataError):
                bad.append((row, got))
                if strict:
                    raise got
                continue
            good += 1
            yield got
            if good == limit:
                break
    finally:
        if isinstance(rejects, Rejects):
            rejects.found += bad
        elif rejects is not None:
            Rejects(bad).write(rejects)
    count = f"{len(bad)} of {good + len(bad)} records are bad"
    if len(bad) > max_bad * (good + len(bad)):
        quoted = "".join(f"\n  {error}" for _, error in bad[:3])
        lists = "align data validate FILE --rejects OUT lists them"
        seen = f"see {rejects}" if isinstance(rejects, str | Path) else lists
        mend = f"mend them ({seen}) or raise max_bad. The first:{quoted}"
        rule = f"{count}, more than {max_bad:.3g} of them"
        raise DataError(rule, file=bad[0][0].file, mend=mend)
    if bad:
        log.warning("%s and left out; the first: %s", count, bad[0][1])


def _reject(row: Row, error: DataError) -> dict[str, Any]:
    place = {"file": row.file, "line": row.line, "index": row.index}
    reason = {"key": error.key, "rule": error.rule, "mend": error.mend}
    record = row.raw
    if isinstance(record, str):
        with suppress(ValueError):  # a line that is not JSON stays as text
            record = json.loads(record)
    return {k: v for k, v in (place | reason).items() if v is not None} | {"record": record}


def _parse_record(row: Row, text: str) -> AnyRecord:
    value = _parse_line(row, text)
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
    for row, text in _lines(path):
        try:
            yield row, text if isinstance(text, DataError) else _parse_record(row, text)
        except DataError as error:
            yield row, error


def no_duplicates(pairs: Pairs[AnyRecord]) -> Pairs[AnyRecord]:
    """Turn every record whose identity was seen before into an error that names the first place."""
    seen: dict[tuple[str, ...], Row] = {}
    for row, got in pairs:
        name = None if isinstance(got, DataError) else identity(got)
        if name is not None and name in seen:
            first = seen[name]
            rule = f"duplicate id {name[1]!r} (first in {first.file}:{first.line})"
            yield row, row.locate(DataError(rule, key="id", mend="give each record its own id"))
            continue
        if name is not None:
            seen[name] = Row(row.file, line=row.line, index=row.index)
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


def dump(record: AnyRecord) -> dict[str, Any]:
    """The record as JSON values: ``kind`` first, then the schema's order, without defaults."""
    row = record.model_dump(mode="json", exclude_defaults=True)
    facts = getattr(record, "facts", None)
    if isinstance(facts, Facts):
        row["facts"] = {k: v for k, v in facts.model_dump(mode="json").items() if v}
    # default factories are not "defaults" to pydantic, so empty containers are dropped here
    for name in ("facts", "meta"):
        if name in row and not row[name]:
            del row[name]
    order = [name for name in type(record).model_fields if name in row and name != "kind"]
    return {"kind": record.kind} | {name: row[name] for name in order}


def write_records(path: str | Path, records: Iterable[AnyRecord]) -> int:
    """Write one record a line, atomically; returns how many. Raises DataError on a duplicate id."""
    seen: set[tuple[str, ...]] = set()

    def lines() -> Iterator[str]:
        for index, record in enumerate(records):
            name = identity(record)
            if name is not None and name in seen:
                rule = f"duplicate id {name[1]!r}"
                raise DataError(rule, file=str(path), index=index, key="id", mend="make ids unique")
            if name is not None:
                seen.add(name)
            yield _to_json(dump(record), path, index)

    return write_lines(path, lines())


def write_rows(path: str | Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write JSON objects one a line, atomically; returns how many."""
    return write_lines(path, (_to_json(row, path, i) for i, row in enumerate(rows)))


def _to_json(value: Any, path: str | Path, index: int | None = None, indent: int | None = None) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    except ValueError as error:
        mend = "replace it by a number or null"
        raise DataError(f"cannot be JSON ({error})", file=str(path), index=index, mend=mend) from None


def write_lines(path: str | Path, lines: Iterable[str]) -> int:
    """Write text lines, atomically; returns how many."""
    count = 0

    def fill(file: IO[str]) -> None:
        nonlocal count
        for line in lines:
            file.write(line + "\n")
            count += 1

    _atomic(Path(path), fill)
    return count


def write_json(path: str | Path, obj: Any) -> None:
    """Write one JSON value, indented, atomically."""
    write_text(path, _to_json(obj, path, indent=2) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file, atomically."""
    _atomic(Path(path), lambda file: file.write(text))


def _atomic(path: Path, fill: Callable[[IO[str]], object]) -> None:
    """Fill a new file beside ``path``, then move it there: readers see the old or the new, never a part."""
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # a plain open (not tempfile's 0600) so that the file gets the permissions the user's umask gives
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "x", encoding="utf-8", newline="\n") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
