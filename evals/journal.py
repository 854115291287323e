"""An append-only JSONL file that survives being killed: what long evaluations resume from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data.jsonl import DataError


def content_hash(value: Any) -> str:
    """sha256 of a JSON value in one canonical spelling."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(path: str | Path) -> str:
    """sha256 of a file's bytes, as ``sha256sum`` prints it. DataError where it cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", file=str(path), mend="check the path") from None


class Journal:
    """Rows (JSON objects) in order of writing. Opening cuts off a last line that a kill left unfinished."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.rows: list[dict[str, Any]] = []
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                mend = "delete the line (its item is then done again)"
                raise DataError("not a JSON object", file=str(self.path), line=number, mend=mend)
            self.rows.append(row)
        if len(whole) < len(data):
            with open(self.path, "r+b") as file:
                file.truncate(len(whole))

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append rows and flush them to the file."""
        new = list(rows)
        # ASCII: a lone surrogate in a model's text must not stop the run; NaN is an error here
        text = "".join(json.dumps(row, ensure_ascii=True, allow_nan=False) + "\n" for row in new)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8", newline="\n") as file:
            file.write(text)
        self.rows.extend(new)
