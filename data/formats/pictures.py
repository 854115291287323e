"""The picture of a foreign row: a name, a URL, or the file's bytes."""

from __future__ import annotations

import base64
from typing import Any

from data.formats.base import build, named_image, need, row_id
from data.jsonl import DataError, Row
from data.schema import Image


def parse_bytes(found: dict[str, Any], key: str) -> bytes | None:
    """``bytes`` of an image: raw from Parquet, base64 from JSON; None where only its path is given."""
    data = found.get("bytes")
    if data is None or isinstance(data, bytes):
        return data
    text = need(found, "bytes", str, key)
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:  # not only binascii's: letters outside ASCII are another
        mend = "encode the file as base64"
        raise DataError(f"not base64 ({error})", key=f"{key}.bytes", mend=mend) from None


def parse_picture(
    row: Row, value: dict[str, Any], keys: tuple[str, ...] = ("images", "image")
) -> Image | None:
    """The row's one picture under the first of ``keys`` that has one: text, ``{"path", "bytes"}``, or a list
    of one of these. DataError for several."""
    key = next((key for key in keys if value.get(key) is not None), keys[-1])
    found = value.get(key)
    if found is None or found == []:
        return None
    if isinstance(found, list):
        if len(found) != 1:
            rule = f"{len(found)} images, and a record holds one"
            raise DataError(rule, key=key, mend="split the record, or keep one image")
        found = found[0]
    if isinstance(need({key: found}, key, (str, dict)), str):
        return named_image(found, key)
    data = parse_bytes(found, key)
    if data is None:
        return named_image(need(found, "path", str, key), key)
    path = need(found, "path", str, key) if found.get("path") is not None else None
    return build(Image, id=path or row_id(row, value), data=data)
