"""Whole files: opened with errors that name them, read as text or JSON, and written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from data.errors import DataError, Row


def open_file(path: str | Path) -> IO[bytes]:
    """A file to read bytes from. Raises DataError where there is none."""
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise DataError("no such file", file=str(path), mend="check the path") from None
    except (OSError, ValueError) as error:
        rule = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise DataError(rule, file=str(path), mend="give a readable file") from error


def read_text(path: str | Path) -> str:
    """A file's text, without a byte order mark. Raises DataError where it cannot be read or is not UTF-8."""
    with open_file(path) as file:
        data = file.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        rule = f"not UTF-8 (byte {error.start})"
        raise DataError(rule, file=str(path), mend="save the file as UTF-8") from None


def read_json(path: str | Path) -> Any:
    """The value of a JSON file.

    Raises DataError with the line where it is not UTF-8 or not JSON, or with the key of a text that is no
    whole text (a lone surrogate).
    """
    row = Row(str(path))
    try:
        value = parse_json(read_text(path))
        whole_text(value)
    except json.JSONDecodeError as error:
        rule = f"not valid JSON ({error.msg}, column {error.colno})"
        raise DataError(rule, file=str(path), line=error.lineno, mend="correct the JSON") from None
    except DataError as error:
        raise error if error.file else row.locate(error) from None
    return value


def parse_json(text: str) -> Any:
    """``json.loads``; a DataError (without a place) for what nests too deep, or a number that is too long."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise DataError("nested too deep", mend="give a flatter value") from None
    except ValueError as error:  # a whole number of thousands of digits
        raise DataError(f"not readable ({error})", mend="correct the number") from None


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


def to_json(value: Any, path: str | Path, index: int | None = None, indent: int | None = None) -> str:
    """One JSON text. Raises DataError, placed at ``path``, for what JSON cannot hold."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    except (ValueError, TypeError, RecursionError) as error:
        mend = "replace it by a number, a text or null"
        raise DataError(f"cannot be JSON ({error})", file=str(path), index=index, mend=mend) from None


def write_json(path: str | Path, obj: Any) -> None:
    """Write one JSON value, indented, atomically."""
    write_text(path, to_json(obj, path, indent=2) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file, atomically."""
    with replacing(path) as file:
        file.write(text)


def write_lines(path: str | Path, lines: Iterable[str]) -> int:
    """Write text lines, atomically; returns how many."""
    count = 0
    with replacing(path) as file:
        for line in lines:
            file.write(line + "\n")
            count += 1
    return count


def write_array(path: str | Path, rows: Iterable[Any]) -> int:
    """Write one JSON array, a row at a time, laid out as ``write_json`` does; returns how many."""
    return write_texts(path, (to_json(row, path, i, indent=2) for i, row in enumerate(rows)), lines=False)


def write_texts(path: str | Path, texts: Iterable[str], *, lines: bool) -> int:
    """Write finished JSON texts, one a ``lines`` or as one array, atomically; returns how many."""
    if lines:
        return write_lines(path, texts)
    count = 0
    with replacing(path) as file:
        for count, text in enumerate(texts, start=1):
            file.write(("[" if count == 1 else ",") + "\n  " + text.replace("\n", "\n  "))
        file.write("\n]\n" if count else "[]\n")
    return count


@contextlib.contextmanager
def replacing(path: str | Path, *, always: bool = False) -> Iterator[IO[str]]:
    """A new text file beside ``path``, moved there when the block ends: readers see the old or the new.

    When the process dies, or the block raises (unless ``always``), ``path`` stays as it was.
    """
    with replacing_bytes(path, always=always) as part:
        with open(part, "x", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def replacing_bytes(path: str | Path, *, always: bool = False) -> Iterator[Path]:
    """The name of a file to create beside ``path``, which is moved there as ``replacing`` does."""
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # a plain open (not tempfile's 0600) so that the file gets the permissions the user's umask gives
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    whole = always
    try:
        yield part
        whole = True
    finally:
        # not there where it could not be made, which is the error to tell
        if whole and part.exists():
            os.replace(part, path)
        part.unlink(missing_ok=True)
