"""Data that breaks a rule, and where it stands. ``data.jsonl`` passes these names on."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

T = TypeVar("T")


class DataError(ValueError):
    """Data that breaks a rule. Reads as ``file:line: key: rule; mend``.

    ``index`` (0-based) stands in for ``line`` where the file is one JSON array.
    """

    def __init__(
        self,
        rule: str,
        *,
        mend: str = "",
        key: str | None = None,
        file: str | None = None,
        line: int | None = None,
        index: int | None = None,
    ) -> None:
        self.rule, self.mend, self.key = rule, mend, key
        self.file, self.line, self.index = file, line, index
        super().__init__(rule)

    def __str__(self) -> str:
        where = self.file or ""
        if self.line is not None:
            where += f":{self.line}"
        elif self.index is not None:
            where += f"[{self.index}]"
        text = f"{self.rule}; {self.mend}" if self.mend else self.rule
        return ": ".join(part for part in (where, self.key, text) if part)


@dataclass(frozen=True)
class Row:
    """One record as it stands in its file: where it is, and what it held before it was understood."""

    file: str
    line: int | None = None
    index: int | None = None
    #: the parsed JSON value, or the text of a line that is not JSON
    raw: Any = field(default=None, repr=False)

    @property
    def number(self) -> int:
        """0-based position in the file, for rows that bring no id of their own."""
        return self.index if self.index is not None else (self.line or 1) - 1

    def locate(self, error: DataError) -> DataError:
        """The same error, with this row's place."""
        error.file, error.line, error.index = self.file, self.line, self.index
        return error


Pairs = Iterator[tuple[Row, T | DataError]]


def explain(error: ValidationError, model: type[BaseModel] | None = None) -> DataError:
    """Turn pydantic's report into one DataError that names the first bad key (no place yet)."""
    errors = error.errors(include_url=False)
    first = errors[0]
    key = ".".join(str(part) for part in first["loc"]) or None
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    if first["type"] == "missing":
        return DataError("the key is missing" + more, key=key, mend="add it")
    if first["type"] == "extra_forbidden":
        known = list(model.model_fields) if model and len(first["loc"]) == 1 else []
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "remove it or correct its spelling"
        return DataError("unknown key" + more, key=key, mend=hint)
    if first["type"] == "value_error":
        return DataError(str(first["ctx"]["error"]) + more, key=key, mend="correct the record")
    value = repr(first["input"])
    value = value if len(value) <= 60 else value[:57] + "..."
    rule = first["msg"][0].lower() + first["msg"][1:]
    return DataError(f"{rule}, not {value}{more}", key=key, mend="correct the value")
