"""Rows as Parquet with the pictures inside, alone or as a folder that ``datasets.load_dataset`` reads."""

from __future__ import annotations

import base64
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.files import replacing_bytes, to_json, write_text
from data.images import image_bytes
from data.jsonl import DataError
from data.schema import Image

if TYPE_CHECKING:
    import pyarrow as pa

#: rows that are in memory at once and form a row group; the first so many settle the columns
GROUP_ROWS = 1000
#: a group ends earlier once its pictures are as large
GROUP_BYTES = 64 * 2**20
#: rows of one file of a data set
SHARD_ROWS = 10_000
#: columns of pictures: one, or a list
PICTURE, PICTURES = "image", "images"
#: the hub's words for a number of rows: those below the bound
_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
_LARGEST = "n>1M"

Rows = Iterable[dict[str, Any]]
#: what Arrow raises for a value that its column cannot hold
_UNFIT = (ValueError, TypeError, OverflowError, NotImplementedError)


def write_parquet(path: str | Path, rows: Rows, like: Sequence[dict[str, Any]] = ()) -> int:
    """Write rows as one Parquet file, atomically, a row group at a time; returns how many rows.

    The first ``GROUP_ROWS``, and rows ``like`` those that may come, settle the columns and types. Raises
    DataError naming the first row that does not fit them. In the columns ``image`` and ``images`` pictures
    are ``{"bytes", "path"}``, the bytes raw (base64 is decoded), and the file says so to ``datasets``; where
    they are names alone they stay texts.
    """
    with replacing_bytes(path) as part:
        return sum(_write_files(lambda number: part, rows, str(path), like=like))


def write_dataset(
    folder: str | Path,
    rows: Rows,
    *,
    card: str,
    split: str = "train",
    shard_rows: int = SHARD_ROWS,
    tags: Sequence[str] = ("multimodal",),
    like: Sequence[dict[str, Any]] = (),
) -> int:
    """Write rows as a data set for ``datasets.load_dataset(folder)``; returns how many rows.

    The folder gets ``data/SPLIT-00000-of-0000N.parquet`` and ``README.md``: the front matter that names the
    files, and ``card``, its text. It is there whole or not at all. Raises DataError as ``write_parquet``,
    where there are no rows, or where the folder holds anything already.
    """
    if not re.fullmatch(r"[A-Za-z0-9_]+", split):
        rule = f"{split!r} is no name of a split"
        raise DataError(rule, key="split", mend="use letters, digits and underscores")
    if shard_rows < 1:
        raise DataError(f"{shard_rows} rows a file", key="shard_rows", mend="give at least one")
    target = Path(os.path.realpath(folder))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        rule = "is there already, and no empty folder"
        raise DataError(rule, file=str(folder), mend="choose another folder, or delete this one")
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    (part / "data").mkdir(parents=True)
    try:
        counts = _write_files(lambda k: part / "data" / f"{k}", rows, str(folder), shard_rows, like)
        if not sum(counts):
            raise DataError("no rows", file=str(folder), mend="give at least one record")
        for number in range(len(counts)):
            name = f"{split}-{number:05d}-of-{len(counts):05d}.parquet"
            (part / "data" / f"{number}").rename(part / "data" / name)
        write_text(part / "README.md", f"{_front_matter(split, sum(counts), tags)}\n{card.strip()}\n")
        os.replace(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return sum(counts)


def embed(rows: Rows, root: str | Path | None) -> Iterator[dict[str, Any]]:
    """The rows with the pictures that ``image`` and ``images`` name by a path as ``{"bytes", "path"}``.

    The bytes are the file's below the image root, not decoded; URLs and pictures with bytes stay. Raises
    DataError naming the row and key of a picture that cannot be had.
    """
    for index, row in enumerate(rows):
        held = {key: row[key] for key in (PICTURE, PICTURES) if row.get(key) is not None}
        yield row | {key: _embedded(found, root, key, index) for key, found in held.items()}


def _embedded(found: Any, root: str | Path | None, key: str, index: int) -> Any:
    if isinstance(found, list):
        return [_embedded(picture, root, f"{key}.{i}", index) for i, picture in enumerate(found)]
    name = found.get("path") if isinstance(found, dict) and found.get("bytes") is None else found
    if not isinstance(name, str) or name.startswith(("http://", "https://")):
        return found
    try:
        return {"bytes": image_bytes(Image(id=name, path=name), root), "path": name}
    except DataError as error:
        raise DataError(error.rule, index=index, key=key, mend=error.mend) from None


def _write_files(
    name: Callable[[int], Path],
    rows: Rows,
    told: str,
    shard_rows: int | None = None,
    like: Sequence[dict[str, Any]] = (),
) -> list[int]:
    """Write rows to the files ``name(0)``, ``name(1)``, ...; returns how many rows each has.

    All have the columns of the first group and of ``like``. An error names the file ``told``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    counts: list[int] = []
    writer, columns = None, None
    try:
        for group in chain(_groups(rows), [[]]):
            columns = columns or _Columns([*(_raw(row, 0) for row in like), *group])
            table = columns.table(group, sum(counts))
            # once for a file without rows, and again for as long as the group goes on in a further file
            while writer is None or table.num_rows:
                if writer is None or counts[-1] == shard_rows:
                    if writer is not None:
                        writer.close()
                    writer = pq.ParquetWriter(name(len(counts)), columns.schema)
                    counts.append(0)
                room = table.num_rows if shard_rows is None else shard_rows - counts[-1]
                part = table.slice(0, min(room, table.num_rows))
                writer.write_table(part)
                table = table.slice(part.num_rows)
                counts[-1] += part.num_rows
    except DataError as error:
        error.file = error.file or told
        raise
    except pa.ArrowException as error:
        rule = f"cannot be Parquet ({' '.join(str(error).split())})"
        raise DataError(rule, file=told, mend="leave out the column, or give it other values") from None
    finally:
        if writer is not None:
            writer.close()
    return counts


def _groups(rows: Rows) -> Iterator[list[dict[str, Any]]]:
    """Rows in lists of at most ``GROUP_ROWS``, shorter where pictures make them large."""
    group: list[dict[str, Any]] = []
    size = 0
    for index, row in enumerate(rows):
        row = _raw(row, index)
        group.append(row)
        size += sum(len(picture["bytes"] or b"") for picture in _pictures(row))
        if len(group) == GROUP_ROWS or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _pictures(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    found = row.get(PICTURES)
    for picture in [row.get(PICTURE), *(found if isinstance(found, list) else [])]:
        if isinstance(picture, dict):
            yield picture


def _raw(row: dict[str, Any], index: int) -> dict[str, Any]:
    """The row with each picture's bytes as bytes, and no more than bytes and path. DataError for others."""
    row = dict(row)
    if isinstance(row.get(PICTURE), dict):
        row[PICTURE] = _raw_picture(row[PICTURE], PICTURE, index)
    if isinstance(row.get(PICTURES), list):
        row[PICTURES] = [
            _raw_picture(p, f"{PICTURES}.{i}", index) if isinstance(p, dict) else p
            for i, p in enumerate(row[PICTURES])
        ]
    return row


def _raw_picture(picture: dict[str, Any], key: str, index: int) -> dict[str, Any]:
    data, spare = picture.get("bytes"), sorted(picture.keys() - {"bytes", "path"})
    if spare:
        raise DataError("unknown key", index=index, key=f"{key}.{spare[0]}", mend="give bytes and path alone")
    if isinstance(data, str):
        try:
            data = base64.b64decode(data, validate=True)
        except ValueError as error:
            rule = f"not base64 ({error})"
            raise DataError(rule, index=index, key=f"{key}.bytes", mend="give bytes or base64") from None
    if not isinstance(data, bytes | None):
        rule = f"a value of type {type(data).__name__}"
        raise DataError(rule, index=index, key=f"{key}.bytes", mend="give bytes or base64")
    return {"bytes": data, "path": picture.get("path")}


class _Columns:
    """The columns that a first group of rows has, and the groups as tables of these columns."""

    def __init__(self, first: list[dict[str, Any]]) -> None:
        import pyarrow as pa

        fields = []
        for name in dict.fromkeys(key for row in first for key in row):
            values = [row.get(name) for row in first]
            kind = _picture_type(name, values) or _settled(_inferred(values, name, 0))
            fields.append(pa.field(name, kind))
        if first and not fields:
            raise DataError("a row without a column", index=0, mend="give each row its columns")
        #: with what tells ``datasets`` which columns are pictures
        self.schema = _with_features(pa.schema(fields))

    def table(self, group: list[dict[str, Any]], start: int) -> pa.Table:
        """Rows as a table; the first is row ``start`` of all. DataError naming one that does not fit."""
        import pyarrow as pa

        columns = []
        for i, row in enumerate(group):
            spare = [key for key in row if key not in self.schema.names]
            if spare:
                rule = f"a column that the first {GROUP_ROWS} rows lack"
                mend = "bring a row that has it forward, or leave it out"
                raise DataError(rule, index=start + i, key=spare[0], mend=mend)
        for field in self.schema:
            values = [row.get(field.name) for row in group]
            if _picture_type(field.name, []) == field.type:
                values = [_with_keys(value) for value in values]
            column = _array(values, field.type)
            if column is None:
                i = next(i for i, value in enumerate(values) if _array([value], field.type) is None)
                rule = f"does not fit the column, which holds {field.type}"
                mend = f"give the kind of value that the first {GROUP_ROWS} rows have"
                raise DataError(rule, index=start + i, key=field.name, mend=mend)
            columns.append(column)
        return pa.Table.from_arrays(columns, schema=self.schema)


def _with_keys(value: Any) -> Any:
    """A cell of pictures, in which a name becomes a picture without bytes."""
    if isinstance(value, list):
        return [_with_keys(item) for item in value]
    return {"bytes": None, "path": value} if isinstance(value, str) else value


def _picture_type(name: str, values: list[Any]) -> pa.DataType | None:
    """The type of a column of pictures; None for another column, and where all pictures are names."""
    import pyarrow as pa

    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    flat = [item for value in values for item in (value if isinstance(value, list) else [value])]
    held = [item for item in flat if item is not None]
    if name not in (PICTURE, PICTURES) or (held and not any(isinstance(item, dict) for item in held)):
        return None
    return picture if name == PICTURE else pa.list_(picture)


def _inferred(values: list[Any], name: str, start: int) -> pa.DataType:
    """The type that holds all values. DataError naming the first value that is not of the others' kind."""
    import pyarrow as pa

    def type_of(count: int) -> pa.DataType | None:
        try:
            kind = pa.array(values[:count]).type
        except _UNFIT:
            return None
        # Arrow would take a text among bytes for bytes
        mixed = pa.types.is_binary(kind) and any(isinstance(value, str) for value in values[:count])
        return None if mixed else kind

    found = type_of(len(values))
    if found is not None:
        return found
    good, bad = 0, len(values)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if type_of(middle) is not None else (good, middle)
    rule = f"{values[bad - 1]!r:.60} is not of one kind with the rows before"
    raise DataError(rule, index=start + bad - 1, key=name, mend="give a column values of one kind")


def _settled(kind: pa.DataType) -> pa.DataType:
    """A type without parts of which nothing is known yet: they become texts."""
    import pyarrow as pa

    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_settled(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _settled(field.type)) for field in kind])
    return kind


def _array(values: list[Any], kind: pa.DataType) -> pa.Array | None:
    """Values of a type, as they are; None where they are of another: Arrow would drop keys it lacks."""
    import pyarrow as pa

    pair = [pa.schema([("x", kind)])]
    try:
        pair.append(pa.schema([("x", pa.array(values).type)]))
        merged = pa.unify_schemas(pair, promote_options="permissive").field("x").type
        found = pa.array(values, type=kind)
    except _UNFIT:
        return None
    mixed = pa.types.is_binary(kind) and any(isinstance(value, str) for value in values)
    return None if mixed or merged != kind else found


def _with_features(schema: pa.Schema) -> pa.Schema:
    """The schema with the ``datasets`` library's description of it, in which pictures are images."""
    import datasets

    features = datasets.Features.from_arrow_schema(schema)
    for name, feature in ((PICTURE, datasets.Image()), (PICTURES, datasets.List(datasets.Image()))):
        if name in schema.names and _picture_type(name, []) == schema.field(name).type:
            features[name] = feature
    return schema.with_metadata(features.arrow_schema.metadata)


def _front_matter(split: str, count: int, tags: Sequence[str]) -> str:
    """What the hub and ``datasets`` read of a data set's card; JSON texts are YAML too."""
    size = next((words for bound, words in _SIZES.items() if count < bound), _LARGEST)
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files:",
        f"  - split: {split}",
        f"    path: data/{split}-*.parquet",
        "size_categories:",
        f"- {size}",
        "tags:" if tags else "tags: []",
        *(f"- {to_json(tag, 'tags')}" for tag in tags),
        "---",
    ]
    return "\n".join(lines) + "\n"
