"""RLHF-V's and RLAIF-V's pairs -> Preference, from Parquet or JSON.

A row has ``ds_name``, ``image`` (``{"bytes", "path"}``, the bytes raw in Parquet and in base64 in JSON, or
a path), ``image_path`` (where the picture stood in its first data set), ``origin_dataset``,
``origin_split`` and ``idx``. The texts are ``question``, ``chosen`` and ``rejected``: columns of their own
in RLAIF-V, and in RLHF-V one column ``text`` that holds them as a JSON text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.formats.base import Format, build, named_image, need, row_id, without_marker
from data.formats.pictures import parse_bytes
from data.formats.trl import json_value, parse_object
from data.jsonl import DataError, Row
from data.schema import Image, Message, Preference, Response

#: what ``meta`` keeps of a row
_KEPT = ("idx", "origin_dataset", "origin_split", "image_path")
_KEYS = frozenset({"id", "image", "ds_name", *_KEPT})


def _image(row: Row, value: dict[str, Any]) -> Image | None:
    """The row's picture: bytes before a path, a path of its own before that of the first data set."""
    first = need(value, "image_path", str) if value.get("image_path") is not None else ""
    found = value.get("image")
    if found is None:
        return named_image(first, "image_path") if first else None
    data = None
    if not isinstance(found, str):
        found = need(value, "image", (str, dict))
        data = parse_bytes(found, "image")
        found = need(found, "path", str, "image") if found.get("path") is not None else ""
    name = first or found
    if data is not None:
        return build(Image, id=name or row_id(row, value), data=data)
    if not name:
        rule = "the image has neither bytes nor a path"
        raise DataError(rule, key="image", mend='give {"bytes", "path"}, a path, or image_path')
    image = named_image(found, "image") if found else named_image(first, "image_path")
    return image.model_copy(update={"id": name})


def _text(texts: dict[str, Any], key: str, where: str) -> str:
    full = f"{where}.{key}" if where else key
    return without_marker(need(texts, key, str, where), full, first=False, has_image=False)


def _pair(row: Row, value: dict[str, Any], texts: dict[str, Any], where: str) -> Preference:
    """A row whose three texts stand in ``texts``, which is the row itself or under its key ``where``."""
    image = _image(row, value)
    key = f"{where}.question" if where else "question"
    question = need(texts, "question", str, where)
    question = without_marker(question, key, first=True, has_image=image is not None)
    return build(
        Preference,
        id=row_id(row, value),
        image=image,
        messages=[build(Message, role="user", content=question)],
        responses=[build(Response, text=_text(texts, name, where)) for name in ("chosen", "rejected")],
        choices={"overall": 0},
        source=need(value, "ds_name", str),
        meta={name: json_value(value[name], name) for name in _KEPT if value.get(name) is not None},
    )


def _rlhf_v(row: Row, value: dict[str, Any]) -> Preference:
    need(value, "text", (str, dict))  # null is no text
    texts = parse_object(value, "text") or {}
    return _pair(row, value, texts, "text")


def _rlaif_v(row: Row, value: dict[str, Any]) -> Preference:
    return _pair(row, value, value, "")


RLHF_V = Format(
    name="rlhf_v",
    kind="preference",
    doc="RLHF-V pairs: ds_name, image, text = JSON of question, chosen, rejected (Parquet or JSON)",
    parse=_rlhf_v,
    family="rlhf_v",
    needs=frozenset({"ds_name", "text"}),
    keys=_KEYS | {"text"},
)

RLAIF_V = Format(
    name="rlaif_v",
    kind="preference",
    doc="RLAIF-V pairs: ds_name, image, question, chosen, rejected (Parquet or JSON)",
    parse=_rlaif_v,
    family="rlhf_v",
    needs=frozenset({"ds_name", "question", "chosen", "rejected"}),
    keys=_KEYS | {"question", "chosen", "rejected"},
)


def read(path: str | Path, **policy: Any) -> list[Preference]:
    """All pairs of an RLHF-V file; ``policy`` as in ``Format.read``."""
    return RLHF_V.read(path, **policy)


def read_rlaif(path: str | Path, **policy: Any) -> list[Preference]:
    """All pairs of an RLAIF-V file; ``policy`` as in ``Format.read``."""
    return RLAIF_V.read(path, **policy)
