"""TRL's vision columns <-> our records, as JSON lines.

Preferences are ``images, prompt, chosen, rejected``; conversations are ``images, messages``. Texts are
strings or message lists; a message's content is a string or a list of ``{"type": "text" | "image"}``
parts. An image is a path, a URL, or ``{"path", "bytes"}`` with the bytes in base64. A marker ``<image>``
in a text is read as in LLaVA's files: it goes from the first user turn, and is an error elsewhere. Writing
uses message lists with string contents, for which TRL puts the picture into the first user message, and
adds ``id``.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data.formats.base import (
    Format,
    build,
    inside,
    markerless,
    named_image,
    need,
    pair_of,
    row_id,
    without_marker,
)
from data.jsonl import DataError, Row
from data.schema import Example, Image, Message, Preference, Response


def _image(row: Row, value: dict[str, Any]) -> Image | None:
    key = "images" if value.get("images") is not None else "image"
    found = value.get(key)
    if found is None or found == []:
        return None
    if isinstance(found, list):
        if len(found) != 1:
            rule = f"{len(found)} images, and a record holds one"
            raise DataError(rule, key=key, mend="split the record, or keep one image")
        found = found[0]
    if isinstance(found, str):
        return named_image(found, key)
    if not isinstance(found, dict):
        mend = 'give a path, a URL or {"path", "bytes"}'
        raise DataError("an image is neither text nor an object", key=key, mend=mend)
    path, data = found.get("path"), found.get("bytes")
    if data is None:
        return named_image(need(found, "path", str, key), key)
    try:
        decoded = base64.b64decode(need(found, "bytes", str, key), validate=True)
    except binascii.Error as error:
        rule = f"not base64 ({error})"
        raise DataError(rule, key=f"{key}.bytes", mend="encode the file as base64") from None
    return build(Image, id=path or row_id(row, value), data=decoded)


def _messages(found: list[Any], key: str, *, has_image: bool) -> list[Message]:
    messages: list[Message] = []
    for i, message in enumerate(found):
        where = f"{key}.{i}"
        if not isinstance(message, dict):
            mend = 'give {"role": ..., "content": ...}'
            raise DataError("a message is not an object", key=where, mend=mend)
        role = need(message, "role", str, where)
        if role not in ("system", "user", "assistant"):
            rule = f"a message from {role!r}"
            raise DataError(rule, key=f"{where}.role", mend="use system, user and assistant turns")
        content = need(message, "content", (str, list), where)
        text = content if isinstance(content, str) else _parts(content, f"{where}.content")
        first = role == "user" and all(m.role != "user" for m in messages)
        text = without_marker(text, f"{where}.content", first=first, has_image=has_image)
        messages.append(build(Message, role=role, content=text))
    return messages


def _parts(parts: list[Any], key: str) -> str:
    texts = []
    for i, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            # Arrow fills absent keys with null, so a part may carry nulls of the other type
            texts.append(need(part, "text", str, f"{key}.{i}"))
        elif kind != "image":
            rule = f"a part of type {kind!r}"
            raise DataError(rule, key=f"{key}.{i}.type", mend="use parts of type text or image")
    return "".join(texts)


def _text(value: dict[str, Any], key: str) -> str:
    """The one answer in ``chosen`` or ``rejected``."""
    found = need(value, key, (str, list))
    if isinstance(found, str):
        return without_marker(found, key, first=False, has_image=False)
    messages = _messages(found, key, has_image=False)
    if len(messages) != 1 or messages[0].role != "assistant":
        rule = f"{len(messages)} messages, where one assistant turn is needed"
        raise DataError(rule, key=key, mend="put what comes before it into prompt")
    return messages[0].content


def _preference(row: Row, value: dict[str, Any]) -> Preference:
    if value.get("prompt") is None:
        value = _explicit(value)
    image = _image(row, value)
    prompt = need(value, "prompt", (str, list))
    if isinstance(prompt, str):
        text = without_marker(prompt, "prompt", first=True, has_image=image is not None)
        messages = [build(Message, role="user", content=text)]
    else:
        messages = _messages(prompt, "prompt", has_image=image is not None)
    return build(
        Preference,
        id=row_id(row, value),
        image=image,
        messages=messages,
        responses=[build(Response, text=_text(value, key)) for key in ("chosen", "rejected")],
        choices={"overall": 0},
    )


def _explicit(value: dict[str, Any]) -> dict[str, Any]:
    """The row with the turns that both conversations begin with moved into ``prompt``."""
    chosen, rejected = (value.get(key) for key in ("chosen", "rejected"))
    same = 0
    if isinstance(chosen, list) and isinstance(rejected, list):
        # the last turns are the answers, even where they are equal
        while same < min(len(chosen), len(rejected)) - 1 and chosen[same] == rejected[same]:
            same += 1
    if not same:
        mend = "add it, or give chosen and rejected as conversations that begin alike"
        raise DataError("the key is missing", key="prompt", mend=mend)
    parts = {"prompt": value["chosen"][:same], "chosen": value["chosen"][same:]}
    return {**value, **parts, "rejected": value["rejected"][same:]}


def _example(row: Row, value: dict[str, Any]) -> Example:
    image = _image(row, value)
    messages = _messages(need(value, "messages", list), "messages", has_image=image is not None)
    return build(Example, id=row_id(row, value), image=image, messages=messages)


def _images(image: Image | None) -> list[Any]:
    if image is None:
        return []
    if image.data is not None:
        return [{"path": image.id, "bytes": base64.b64encode(image.data).decode("ascii")}]
    if image.path is not None:
        inside(image.path, "image.path")
    return [image.path or image.url]


def _turns(messages: list[Message]) -> list[dict[str, str]]:
    return [
        {"role": m.role, "content": markerless(m.content, f"messages.{i}.content")}
        for i, m in enumerate(messages)
    ]


def _preference_row(record: Preference) -> dict[str, Any]:
    better = pair_of(record, "a chosen/rejected pair")
    texts = [markerless(r.text, f"responses.{i}.text") for i, r in enumerate(record.responses)]
    answers = [[{"role": "assistant", "content": text}] for text in texts]
    return {
        "id": record.id,
        "images": _images(record.image),
        "prompt": _turns(record.messages),
        "chosen": answers[better],
        "rejected": answers[1 - better],
    }


def _example_row(record: Example) -> dict[str, Any]:
    return {"id": record.id, "images": _images(record.image), "messages": _turns(record.messages)}


PREFERENCES = Format(
    name="trl",
    kind="preference",
    doc="TRL preference columns: images, prompt, chosen, rejected (JSON lines)",
    parse=_preference,
    row=_preference_row,
    family="trl",
    needs=frozenset({"chosen", "rejected"}),
    keys=frozenset({"id", "image", "images", "prompt", "chosen", "rejected"}),
    lines=True,
)

CONVERSATIONS = Format(
    name="trl_messages",
    kind="example",
    doc="TRL conversation columns: images, messages (JSON lines)",
    parse=_example,
    row=_example_row,
    family="trl",
    needs=frozenset({"messages"}),
    keys=frozenset({"id", "image", "images", "messages"}),
    lines=True,
)


def read(path: str | Path, **policy: Any) -> list[Preference]:
    """All preferences of a TRL file; ``policy`` as in ``Format.read``."""
    return PREFERENCES.read(path, **policy)


def read_messages(path: str | Path, **policy: Any) -> list[Example]:
    """All conversations of a TRL file; ``policy`` as in ``Format.read``."""
    return CONVERSATIONS.read(path, **policy)


def write(path: str | Path, records: Iterable[Preference]) -> int:
    """Write preferences as TRL columns, the better response as ``chosen``; returns how many."""
    return PREFERENCES.write(path, records)


def write_messages(path: str | Path, records: Iterable[Example]) -> int:
    """Write conversations as TRL columns; returns how many."""
    return CONVERSATIONS.write(path, records)
