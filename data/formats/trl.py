"""TRL's vision columns <-> our records, as JSON lines or (to be read) Parquet.

Preferences are ``images, prompt, chosen, rejected``; conversations are ``images, messages``, or
``images, prompt, completion`` where the last answer stands by itself. Texts are strings or message lists;
a message's content is a string or a list of ``{"type": "text" | "image"}`` parts. An image is a path, a
URL, or ``{"path", "bytes"}`` with the bytes themselves (Parquet) or in base64 (JSON). A marker ``<image>``
in a text is read as in LLaVA's files: it goes from the first user turn, and is an error elsewhere. Writing
uses message lists with string contents, for which TRL puts the picture into the first user message, and
adds ``id``.

What TRL has no column for stands in further ones, which it hands to reward functions: ``facts`` (an object
of those that there are), ``source``, ``split``, ``task``, ``answer``, ``annotator``, and ``choices`` and
``meta`` as the text of a JSON object, because their keys differ from row to row and a column of a table has
one type. Each stands only where the record has it, and all are read back (``choices`` and ``meta`` as
objects too). ``choices`` counts chosen as 0 and rejected as 1. Lost are a response's ``model`` and
``complete``, an image's id where it is not its path, and the order of a pair whose second response is the
better: it comes back first, and if only one question was asked, its verdict as ``overall``.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data.files import parse_json, whole_text
from data.formats import samples
from data.formats.base import (
    Format,
    build,
    inside,
    markerless,
    need,
    pair_of,
    row_id,
    without_marker,
)
from data.formats.pictures import parse_picture
from data.jsonl import DataError, Row
from data.rows import plain
from data.schema import Example, Facts, Image, Message, Preference, Response

#: the verdict that chosen and rejected tell by themselves
_VERDICT: dict[str, int | None] = {"overall": 0}
#: columns of texts that TRL does not know
_TEXTS = ("source", "split", "task", "answer", "annotator")


def parse_object(value: dict[str, Any], key: str) -> dict[str, Any] | None:
    """The object under a key, or in the JSON text there; None where there is none. DataError for others."""
    if value.get(key) is None:
        return None
    found = need(value, key, (str, dict))
    if isinstance(found, dict):
        return found
    mend = "give a JSON object, or its text"
    try:
        found = parse_json(found)
        whole_text(found)
    except json.JSONDecodeError as error:
        rule = f"no JSON text ({error.msg}, column {error.colno})"
        raise DataError(rule, key=key, mend=mend) from None
    except DataError as error:
        raise DataError(error.rule, key=f"{key}.{error.key}" if error.key else key, mend=mend) from None
    except RecursionError:
        raise DataError("nested too deep", key=key, mend="give a flatter value") from None
    if not isinstance(found, dict):
        raise DataError("the JSON text is no object", key=key, mend=mend)
    return found


def json_value(value: Any, key: str) -> Any:
    """A value that is kept as it is, as JSON can hold it (see ``data.rows.plain``)."""
    try:
        return plain(value)
    except RecursionError:
        raise DataError("nested too deep", key=key, mend="give a flatter value") from None


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


def _prompt(value: dict[str, Any], *, has_image: bool) -> list[Message]:
    """The turns ahead of the answer: of a string, one user turn."""
    prompt = need(value, "prompt", (str, list))
    if isinstance(prompt, list):
        return _messages(prompt, "prompt", has_image=has_image)
    text = without_marker(prompt, "prompt", first=True, has_image=has_image)
    return [build(Message, role="user", content=text)]


def _preference(row: Row, value: dict[str, Any]) -> Preference:
    if value.get("prompt") is None:
        value = _explicit(value)
    image = parse_picture(row, value)
    record = build(
        Preference,
        id=row_id(row, value),
        image=image,
        messages=_prompt(value, has_image=image is not None),
        responses=[build(Response, text=_text(value, key)) for key in ("chosen", "rejected")],
        choices=parse_object(value, "choices") or _VERDICT,
        meta=json_value(parse_object(value, "meta") or {}, "meta"),
        **_more(value, Preference),
    )
    if record.preferred != 0:
        mend = "count chosen as 0 and rejected as 1, or leave choices out"
        raise DataError("the choices do not prefer what is chosen", key="choices", mend=mend)
    return record


def _more(value: dict[str, Any], model: type[Example] | type[Preference]) -> dict[str, Any]:
    """Facts and texts from the columns that TRL itself does not know, as far as the record has a place."""
    names = [key for key in _TEXTS if key in model.model_fields and value.get(key) is not None]
    found: dict[str, Any] = {key: need(value, key, str) for key in names}
    # Arrow fills with null what other rows have
    facts = {k: v for k, v in (parse_object(value, "facts") or {}).items() if v is not None}
    try:
        return found | {"facts": build(Facts, **facts)}
    except DataError as error:
        raise DataError(error.rule, key=f"facts.{error.key}", mend=error.mend) from None


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
    image = parse_picture(row, value)
    messages = _messages(need(value, "messages", list), "messages", has_image=image is not None)
    return build(Example, id=row_id(row, value), image=image, messages=messages, **_more(value, Example))


def _completion(row: Row, value: dict[str, Any]) -> Example:
    image = parse_picture(row, value)
    messages = _prompt(value, has_image=image is not None)
    messages.append(build(Message, role="assistant", content=_text(value, "completion")))
    return build(Example, id=row_id(row, value), image=image, messages=messages, **_more(value, Example))


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


def _more_row(record: Example | Preference) -> dict[str, Any]:
    """The columns that ``_more`` reads, where the record fills them."""
    texts = {key: getattr(record, key, None) for key in _TEXTS}
    row: dict[str, Any] = {key: text for key, text in texts.items() if text is not None}
    facts = {key: found for key, found in record.facts.model_dump().items() if found not in (None, [])}
    return row | ({"facts": facts} if facts else {})


def _preference_row(record: Preference) -> dict[str, Any]:
    better = pair_of(record, "a chosen/rejected pair")
    texts = [markerless(r.text, f"responses.{i}.text") for i, r in enumerate(record.responses)]
    answers = [[{"role": "assistant", "content": text}] for text in texts]
    row = {
        "id": record.id,
        "images": _images(record.image),
        "prompt": _turns(record.messages),
        "chosen": answers[better],
        "rejected": answers[1 - better],
        **_more_row(record),
    }
    choices = {key: None if i is None else abs(i - better) for key, i in record.choices.items()}
    # a pair that is turned round says its one verdict by its order
    if choices != _VERDICT and not (better == 1 and len(choices) == 1):
        row["choices"] = _json_text(choices, "choices")
    if record.meta:
        row["meta"] = _json_text(record.meta, "meta")
    return row


def _json_text(value: dict[str, Any], key: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        mend = "replace it by a number, a text or null"
        raise DataError(f"cannot be JSON ({error})", key=key, mend=mend) from None


def _example_row(record: Example) -> dict[str, Any]:
    turns = {"messages": _turns(record.messages)}
    return {"id": record.id, "images": _images(record.image), **turns, **_more_row(record)}


def _completion_row(record: Example) -> dict[str, Any]:
    turns = _turns(record.messages)
    parts = {"prompt": turns[:-1], "completion": turns[-1:]}
    return {"id": record.id, "images": _images(record.image), **parts, **_more_row(record)}


_SHARED = frozenset({"id", "image", "images", "facts", "source", "split"})
_OF_EXAMPLES = _SHARED | {"task", "answer"}

PREFERENCES = Format(
    name="trl",
    kind="preference",
    doc="TRL preference columns: images, prompt, chosen, rejected (JSON lines, or Parquet to read)",
    parse=_preference,
    row=_preference_row,
    family="trl",
    needs=frozenset({"chosen", "rejected"}),
    keys=_SHARED | {"prompt", "chosen", "rejected", "choices", "annotator", "meta"},
    sample=samples.PREFERENCE,
    lines=True,
)

CONVERSATIONS = Format(
    name="trl_messages",
    kind="example",
    doc="TRL conversation columns: images, messages (JSON lines, or Parquet to read)",
    parse=_example,
    row=_example_row,
    family="trl",
    needs=frozenset({"messages"}),
    keys=_OF_EXAMPLES | {"messages"},
    sample=samples.EXAMPLE,
    lines=True,
)

COMPLETIONS = Format(
    name="trl_completion",
    kind="example",
    doc="TRL columns images, prompt, completion = the last answer (JSON lines, or Parquet to read)",
    parse=_completion,
    row=_completion_row,
    family="trl",
    needs=frozenset({"prompt", "completion"}),
    keys=_OF_EXAMPLES | {"prompt", "completion"},
    sample=samples.EXAMPLE,
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


def read_completions(path: str | Path, **policy: Any) -> list[Example]:
    """All conversations of a TRL file of completions; ``policy`` as in ``Format.read``."""
    return COMPLETIONS.read(path, **policy)


def write_completions(path: str | Path, records: Iterable[Example]) -> int:
    """Write conversations as TRL columns, the last answer as ``completion``; returns how many."""
    return COMPLETIONS.write(path, records)
