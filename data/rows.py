"""The rows of a file, whatever holds them: JSON lines, one JSON array, Parquet, or a TSV table.

Rows stream: memory holds one (of Parquet, a batch), however large the file is.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.errors import DataError, Pairs, Row
from data.files import open_file, parse_json, whole_text
from data.jsonstream import JsonStream

PARQUET = b"PAR1"
#: rows of Parquet that are in memory at once; pictures may be in them
BATCH = 64
#: what a row of a rejects file holds beside the record
_REJECT = {"file", "line", "index", "key", "rule", "mend", "record"}
_NEEDED = {"file", "rule", "record"}
_NO_OBJECT = "give an object with named keys"


def shards(path: str | Path) -> list[Path]:
    """The Parquet files of a folder, in order of their names, as the hub's data sets have them."""
    return sorted(file for file in Path(path).rglob("*.parquet") if not file.name.startswith("."))


def container(path: str | Path) -> str:
    """What holds the rows: "parquet" (a file, or a folder of such), "tsv", "array" or "lines".

    Raises DataError for no file, and for a folder without Parquet files.
    """
    if os.path.isdir(path):
        if not shards(path):
            mend = "give a file, or a folder of Parquet files"
            raise DataError("a folder without Parquet files", file=str(path), mend=mend)
        return "parquet"
    with open_file(path) as file:
        head = file.read(4096)
    if head.startswith(PARQUET):
        return "parquet"
    if Path(path).suffix.lower() == ".tsv":
        return "tsv"
    return "array" if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[") else "lines"


def read_rows(path: str | Path) -> Pairs[dict[str, Any]]:
    """The rows of a file, or the error at each one's place, told by its first bytes.

    A row of a rejects file is the record in it, as it may have been mended.
    """
    reader = {"parquet": _parquet, "tsv": _tsv, "array": _array, "lines": _json_lines}[container(path)]
    for row, value in reader(path):
        if isinstance(value, dict) and is_reject(value):
            value = value["record"]
            row = Row(row.file, line=row.line, index=row.index, raw=value)
        if isinstance(value, DataError | dict):
            yield row, value
        else:
            rule = f"the record is a {type(value).__name__}, not a JSON object"
            yield row, row.locate(DataError(rule, mend=_NO_OBJECT))


def is_reject(value: dict[str, Any]) -> bool:
    """Whether a row is one of ``data.jsonl.Rejects``."""
    return value.keys() >= _NEEDED and value.keys() <= _REJECT


def plain(value: Any) -> Any:
    """A row's values as JSON can hold them: see ``jsonable`` for those that it cannot."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | float) else jsonable(value)


def jsonable(value: Any) -> str:
    """Bytes in base64; what else Parquet has and JSON lacks (dates and the like) as its text."""
    return base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else str(value)


def lines(path: str | Path) -> Iterator[tuple[Row, str | DataError]]:
    """Non-blank lines as text. Only a newline byte ends a line; a byte order mark is dropped."""
    with open_file(path) as file:
        for number, data in enumerate(file, start=1):
            if number == 1:
                data = data.removeprefix(b"\xef\xbb\xbf")
            try:
                text = data.decode("utf-8").strip()
            except UnicodeDecodeError as error:
                # escaped, so that a rejects file keeps the byte, and the row stays bad until it is mended
                row = Row(str(path), line=number, raw=data.decode("utf-8", "surrogateescape"))
                rule = f"not UTF-8 (byte {error.start} of the line)"
                yield row, row.locate(DataError(rule, mend="save the file as UTF-8"))
                continue
            if text:
                yield Row(str(path), line=number, raw=text), text


def parse_line(row: Row, text: str) -> Any:
    """The value of one line. Raises DataError at its place."""
    try:
        value = parse_json(text)
        if "\\u" in text:  # the bytes were UTF-8, so only an escape can hold half a character
            whole_text(value)
    except json.JSONDecodeError as error:
        rule = f"not valid JSON ({error.msg}, column {error.colno})"
        raise row.locate(DataError(rule, mend="put one whole JSON object on each line")) from None
    except DataError as error:
        raise row.locate(error) from None
    return value


def _json_lines(path: str | Path) -> Iterator[tuple[Row, Any]]:
    for row, text in lines(path):
        if isinstance(text, DataError):
            yield row, text
            continue
        try:
            value = parse_line(row, text)
        except DataError as error:
            yield row, error
        else:
            yield Row(row.file, line=row.line, raw=value), value


def _array(path: str | Path) -> Iterator[tuple[Row, Any]]:
    for _, row, value in read_members(path):
        yield row, value


def read_members(path: str | Path) -> Iterator[tuple[str | None, Row, Any]]:
    """(top-level key, place, value or error) of every element of a JSON file's arrays, in turn.

    For files that are one object of arrays (COCO, VQA), whose other values come too; where the file is one
    array, the key is None. Raises DataError where it is not JSON.
    """
    with open_file(path) as file:
        for element in JsonStream(file, str(path)):
            row = Row(str(path), index=element.index, raw=element.value)
            try:
                if element.doubtful:
                    whole_text(element.value)
            except DataError as error:
                yield element.key, row, row.locate(error)
            else:
                yield element.key, row, element.value


def _parquet(path: str | Path) -> Iterator[tuple[Row, Any]]:
    for file in shards(path) if os.path.isdir(path) else [path]:
        yield from _parquet_file(file)


def _parquet_file(path: str | Path) -> Iterator[tuple[Row, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    index = 0
    try:
        # read as it is needed: else whole columns, pictures and all, are held
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            check_names(path, file.schema_arrow.names)
            for batch in file.iter_batches(BATCH):
                for value in batch.to_pylist():
                    yield Row(str(path), index=index, raw=value), value
                    index += 1
    except DataError:
        raise
    # a date beyond Python's years, an unknown time zone, a text that is not UTF-8
    except (pa.ArrowException, OSError, OverflowError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        mend = "copy or download the file again"
        raise DataError(f"damaged Parquet ({reason})", file=str(path), index=index, mend=mend) from None


def check_names(path: str | Path, names: list[str]) -> None:
    """Raise DataError for two columns of one name: one of them would be lost."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"two columns are named {twice[0]!r}", file=str(path), mend="rename one of them")


def _tsv(path: str | Path) -> Iterator[tuple[Row, Any]]:
    # a cell may hold a picture in base64
    csv.field_size_limit(1 << 30)
    with open_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="", errors="surrogateescape")
        rows = csv.reader(text, delimiter="\t", strict=True)
        try:
            names = next(rows, [])
            check_names(path, names)
            for number, cells in enumerate(rows):
                if not cells:
                    continue
                held = dict(zip(names, cells)) if len(cells) <= len(names) else cells
                row = Row(str(path), line=rows.line_num, index=number, raw=held)
                yield row, _tsv_row(row, names, cells)
        except csv.Error as error:
            place: dict[str, Any] = {"file": str(path), "line": rows.line_num}
            raise DataError(f"no table ({error})", **place, mend="save it as tab-separated text") from None


def _tsv_row(row: Row, names: list[str], cells: list[str]) -> dict[str, Any] | DataError:
    if len(cells) != len(names):
        rule = f"{len(cells)} cells, where the header has {len(names)}"
        return row.locate(DataError(rule, mend="quote cells that hold tabs or line breaks"))
    try:
        whole_text(row.raw)
    except DataError as error:
        return row.locate(error)
    return row.raw
