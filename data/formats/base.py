"""What every foreign format is made of: a reader of rows, a writer of rows, and words that describe both."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from data.files import write_array
from data.jsonl import DataError, Pairs, Row, explain, keep, read_rows, write_rows
from data.schema import AnyRecord, Image

M = TypeVar("M", bound=BaseModel)

#: paths that go down and nowhere else, if they hold no ".."
_PLAIN = re.compile(r"[^\\/:.\0][^\\:\0]*")
#: the marker of the picture in LLaVA-like texts; in our records the picture is not named in the text
MARKER = "<image>"


@dataclass(frozen=True)
class Format:
    """A foreign layout: ``parse`` reads one row of it, ``row``, if any, is the way back."""

    name: str
    #: what one record of it becomes: a kind of ``data.schema``, or "pope" / "mmhal" for benchmark items
    kind: str
    doc: str
    #: one row as a record; raises DataError without a place. None where a file is not read row by row
    parse: Callable[[Row, dict[str, Any]], Any] | None = None
    row: Callable[[Any], dict[str, Any]] | None = None
    #: a file (or folder) as records or errors, with ``options`` by keyword; None: row by row, by ``parse``
    reader: Callable[..., Pairs[Any]] | None = None
    #: layouts of one project, of which the wanted record kind chooses one
    family: str = ""
    #: what holds it: "rows" (JSON array or lines, Parquet, TSV), "object" (one JSON object), or "folder"
    holder: Literal["rows", "object", "folder"] = "rows"
    #: keys that every row has, or top-level keys, or names in the folder; they tell the formats apart
    needs: frozenset[str] = frozenset()
    #: top-level keys that reading carries over; others are reported by ``align data convert``
    keys: frozenset[str] = frozenset()
    #: what reading takes beside the file, by name: a further file that belongs to it, or a choice; with words
    options: Mapping[str, str] = field(default_factory=dict)
    #: those of ``options`` without which nothing can be read
    required: frozenset[str] = frozenset()
    #: a record that fills every column, where pictures can stand in the rows as bytes: for Parquet's schema
    sample: Any = None
    #: one object a line (else one JSON array); a target named .jsonl gets lines in any case
    lines: bool = False

    def pairs(self, path: str | Path, **options: str) -> Pairs[Any]:
        """A file as records or errors. DataError for options that the format does not know, or that lack."""
        unknown = sorted(options.keys() - self.options.keys())
        missing = sorted(self.required - options.keys())
        if unknown or missing:
            known = ", ".join(f"{name} ({what})" for name, what in self.options.items()) or "none"
            rule = f"{self.name} takes no {unknown[0]!r}" if unknown else f"{self.name} needs {missing[0]!r}"
            raise DataError(rule, file=str(path), key="options", mend=f"its options: {known}")
        if self.reader is not None:
            return self.reader(path, **options)
        assert self.parse is not None, self.name
        return by_row(self.parse)(path)

    def read(
        self,
        path: str | Path,
        *,
        limit: int | None = None,
        strict: bool = False,
        max_bad: float = 0.01,
        rejects: str | Path | None = None,
        options: Mapping[str, str] | None = None,
    ) -> list[Any]:
        """All records of a file; bad ones are dealt with as ``data.jsonl.keep`` says."""
        pairs = unique_ids(self.pairs(path, **(options or {})))
        return list(keep(pairs, limit=limit, strict=strict, max_bad=max_bad, rejects=rejects))

    def write(self, path: str | Path, records: Iterable[Any]) -> int:
        """Write records in this layout, atomically; returns how many. DataError where it cannot hold one."""

        def rows() -> Iterator[dict[str, Any]]:
            for index, (record, name) in enumerate(original_ids(records_only(self, records))):
                try:
                    yield self.to_row(record, name)
                except DataError as error:
                    raise Row(str(path), index=index).locate(error) from None

        return self.write_rows(path, rows())

    def to_row(self, record: Any, name: str | None = None) -> dict[str, Any]:
        """One record as a row; ``name`` replaces its id. DataError (without a place) where it cannot be."""
        if self.row is None:
            raise DataError(f"format {self.name!r} can only be read", mend="choose another target format")
        row = self.row(record)
        if name is not None and "id" in row:
            row["id"] = name
        return row

    def write_rows(self, path: str | Path, rows: Iterable[dict[str, Any]]) -> int:
        """Write finished rows in this format's file layout, atomically; returns how many."""
        if self.lines or Path(path).suffix == ".jsonl":
            return write_rows(path, rows)
        return write_array(path, rows)


def by_row(parse: Callable[[Row, dict[str, Any]], Any]) -> Callable[[str | Path], Pairs[Any]]:
    """A file reader from a function that understands one row (and raises DataError, without a place)."""

    def pairs(path: str | Path) -> Pairs[Any]:
        for row, value in read_rows(path):
            if isinstance(value, DataError):
                yield row, value
                continue
            try:
                yield row, parse(row, value)
            except DataError as error:
                yield row, row.locate(error)

    return pairs


def unique_ids(pairs: Pairs[Any]) -> Pairs[Any]:
    """Number repeated ids ("x", "x#2", "x#3"): foreign files often use the image's name as id.

    Items without a textual ``id`` (benchmark items) pass unchanged. Of ids that stand once, a hash is kept.
    """
    count: dict[str, int] = {}
    taken: set[int] = set()
    for row, got in pairs:
        name = getattr(got, "id", None)
        if isinstance(got, DataError) or not isinstance(name, str):
            yield row, got
            continue
        unique = name
        while hash(unique) in taken:
            count[name] = count.get(name, 1) + 1
            unique = f"{name}#{count[name]}"
        taken.add(hash(unique))
        yield row, got if unique == name else got.model_copy(update={"id": unique})


class OriginalIds:
    """The ids that records had before ``unique_ids``: "x#2" is "x" again where "x" came before."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._count: dict[str, int] = {}

    def of(self, record: Any) -> str | None:
        """The next record's; None where it has no textual id."""
        name = getattr(record, "id", None)
        if not isinstance(name, str):
            return None
        match = re.fullmatch(r"(.*)#([0-9]+)", name, re.DOTALL) if "#" in name else None
        if match and hash(match[1]) in self._seen and int(match[2]) == self._count.get(match[1], 1) + 1:
            self._count[match[1]] = self._count.get(match[1], 1) + 1
            return match[1]
        self._seen.add(hash(name))
        return name


def original_ids(records: Iterable[Any]) -> Iterator[tuple[Any, str | None]]:
    """Each record with its original id; see ``OriginalIds``."""
    ids = OriginalIds()
    for record in records:
        yield record, ids.of(record)


def need(row: dict[str, Any], key: str, kind: type[Any] | tuple[type[Any], ...], where: str = "") -> Any:
    """The value of a key, which must be there and be of a JSON type; else DataError naming the key."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    words = " or ".join(_JSON_NAMES[k] for k in kinds)
    full = f"{where}.{key}" if where else key
    if key not in row:
        raise DataError("the key is missing", key=full, mend=f"add it ({words})")
    value = row[key]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise DataError(f"{_name(value)}, where {words} is needed", key=full, mend="correct the value")
    return value


_JSON_NAMES: dict[type[Any], str] = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def _name(value: Any) -> str:
    return "null" if value is None else _JSON_NAMES.get(type(value), f"a {type(value).__name__}")


def build(model: type[M], /, **values: Any) -> M:
    """Make a record; a broken rule of the schema becomes a DataError."""
    try:
        return model(**values)
    except ValidationError as error:
        raise explain(error, model) from None


def row_id(row: Row, value: dict[str, Any]) -> str:
    """The row's own id as text, or its position in the file where it has none."""
    if value.get("id") is None:
        return f"{Path(row.file).stem}-{row.number}"
    return str(need(value, "id", (str, int)))


def named_image(name: str, key: str = "image") -> Image:
    """The image that a row names: a URL, or a path inside the image root. The name is its id too."""
    if name.startswith(("http://", "https://")):
        return build(Image, id=name, url=name)
    inside(name, key)
    return build(Image, id=name, path=name)


def without_marker(text: str, key: str, *, first: bool, has_image: bool) -> str:
    """A turn's text without the picture's marker, which may stand once, in the ``first`` human turn.

    Raises DataError naming ``key`` where the marker stands elsewhere, or no picture belongs to it.
    """
    if first and MARKER in text:
        if not has_image:
            rule = f"the text has {MARKER}, but the record names no image"
            raise DataError(rule, key=key, mend="add the key image, or drop the marker")
        text = _cut_marker(text)
    if MARKER in text:
        rule = f"{MARKER} stands elsewhere than once in the first human turn"
        raise DataError(rule, key=key, mend="show one picture, in the first human turn")
    return text


def _cut_marker(text: str) -> str:
    # only the marker's own line break goes with it, so that the text itself comes back exactly
    for edge in (MARKER + "\n", MARKER):
        if text.startswith(edge):
            return text.removeprefix(edge)
    for edge in ("\n" + MARKER, MARKER):
        if text.endswith(edge):
            return text.removesuffix(edge)
    return text.replace(MARKER, "", 1)


def markerless(text: str, key: str) -> str:
    """A text as it can be written; DataError where it holds what a reader would take for the picture."""
    if MARKER in text:
        rule = f"the text holds {MARKER}, which this format reads as a picture"
        raise DataError(rule, key=key, mend="reword the text")
    return text


def inside(name: str, key: str) -> None:
    """Refuse a path that cannot lie in an image root, whatever the root is."""
    if _PLAIN.fullmatch(name) and ".." not in name:
        return  # nearly all are
    path = PurePosixPath(name.replace("\\", "/"))
    depth = 0
    for part in path.parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            break
    if not name or path.is_absolute() or depth < 1 or re.match(r"[A-Za-z]:", name) or "\0" in name:
        rule = f"{name!r} is no path inside an image root"
        raise DataError(rule, key=key, mend="give a path relative to the folder of images, inside it")


def image_name(image: Image) -> str:
    """The name under which a JSON row can refer to the image; DataError for an image held as bytes."""
    name = image.path or image.url
    if name is None:
        mend = "write the image to a file and give its path"
        raise DataError("this format cannot hold an image as bytes", key="image.data", mend=mend)
    return name


def pair_of(record: Any, what: str) -> int:
    """Index (0 or 1) of the better of exactly two responses; DataError for a tie or for more responses."""
    if len(record.responses) != 2:
        rule = f"{len(record.responses)} responses, and {what} holds exactly two"
        raise DataError(rule, key="responses", mend="split the record into pairs")
    if record.preferred is None:
        rule = f"a tie, which {what} cannot hold"
        raise DataError(rule, key="choices", mend="leave ties out of the target")
    return record.preferred


def records_only(fmt: Format, records: Iterable[Any]) -> Iterator[AnyRecord]:
    """The records themselves, checked to be of the format's kind. Raises DataError otherwise."""
    for index, record in enumerate(records):
        kind = getattr(record, "kind", fmt.kind)
        if kind != fmt.kind:
            rule = f"a record of kind {kind!r}, and format {fmt.name!r} holds {fmt.kind!r}"
            raise DataError(rule, index=index, mend="choose a format for that kind (align data formats)")
        yield record
