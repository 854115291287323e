"""LLaVA-RLHF's files: preference JSON <-> Preference, PPO prompts -> Prompt, and image_to_caption.json.

Preference rows are LLaVA rows with ``output_1``, ``output_2`` (each ``{"from", "value"}``), ``preference``
1 or 2 and, in the published file, ``hallucination``. The last assistant turn of ``conversations``, where
there is one, only holds the place of the two outputs.

PPO rows are LLaVA rows with ``caption_type`` (1 when absent), ``length_bonus`` (1.0 when absent) and, in
some files, ``captions``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from data.formats import samples
from data.formats.base import Format, build, image_name, need, pair_of, row_id
from data.formats.llava import parse_turns, turns_to_json
from data.formats.pictures import parse_picture
from data.jsonl import DataError, Row, read_json
from data.schema import (
    AnswerType,
    Example,
    Facts,
    Image,
    LengthClass,
    Message,
    Preference,
    Prompt,
    Response,
)

#: caption_type 1..7, in order
ANSWER_TYPES: tuple[AnswerType, ...] = ("general", "A", "B", "C", "D", "no", "yes")
#: the answer types of multiple-choice questions, whose facts are rationales
CHOICES = ("A", "B", "C", "D")
#: the key of an image's rationales in image_to_caption.json is this and the image's name
RATIONALE_PREFIX = "aok_"

_DEFAULT_SPEAKER = "gpt"
#: where meta keeps the conversation's last assistant turn, and the file's own hallucination flag
REPLACED, HALLUCINATION_FLAG = "replaced_turn", "hallucination"


def _preference(row: Row, value: dict[str, Any]) -> Preference:
    image = parse_picture(row, value, ("image",))
    messages = parse_turns(value, has_image=image is not None)
    meta: dict[str, Any] = {}
    if messages and messages[-1].role == "assistant":
        meta[REPLACED] = messages.pop().content
    # Parquet has a null where a row has no flag
    if value.get("hallucination") is not None:
        meta[HALLUCINATION_FLAG] = need(value, "hallucination", bool)
    choice = need(value, "preference", int)
    if choice not in (1, 2):
        rule = f"{choice}, where 1 or 2 is needed"
        raise DataError(rule, key="preference", mend="1 = output_1, 2 = output_2")
    return build(
        Preference,
        id=row_id(row, value),
        image=image,
        messages=messages,
        responses=[_response(value, "output_1"), _response(value, "output_2")],
        choices={"overall": choice - 1},
        meta=meta,
    )


def _response(value: dict[str, Any], key: str) -> Response:
    output = need(value, key, dict)
    speaker = _DEFAULT_SPEAKER if output.get("from") is None else output["from"]
    model = None if speaker == _DEFAULT_SPEAKER else need(output, "from", str, key)
    return build(Response, text=need(output, "value", str, key), model=model)


def _preference_row(record: Preference) -> dict[str, Any]:
    choice = pair_of(record, "LLaVA-RLHF's preference JSON")
    turns = turns_to_json(record.messages, record.image)
    if REPLACED in record.meta:
        turns.append({"from": "gpt", "value": record.meta[REPLACED]})
    row: dict[str, Any] = {"id": record.id}
    if record.image is not None:
        row["image"] = image_name(record.image)
    row["conversations"] = turns
    for i, response in enumerate(record.responses, start=1):
        row[f"output_{i}"] = {"from": response.model or _DEFAULT_SPEAKER, "value": response.text}
    row["preference"] = choice + 1
    if HALLUCINATION_FLAG in record.meta:
        row["hallucination"] = record.meta[HALLUCINATION_FLAG]
    return row


def _prompt(row: Row, value: dict[str, Any]) -> Prompt:
    image = parse_picture(row, value, ("image",))
    messages = parse_turns(value, has_image=image is not None)
    question = next((m.content for m in messages if m.role == "user"), None)
    if question is None:
        raise DataError("no human turn", key="conversations", mend="start with the question")
    number = need(value, "caption_type", int) if value.get("caption_type") is not None else 1
    if not 1 <= number <= len(ANSWER_TYPES):
        rule = f"{number}, where 1..7 is needed"
        raise DataError(rule, key="caption_type", mend="1..7 = general, A, B, C, D, no, yes")
    answer_type = ANSWER_TYPES[number - 1]
    facts = build(Facts)
    if value.get("captions") is not None:
        texts = _texts(need(value, "captions", list), "captions")
        # for multiple-choice questions the reference puts rationales where captions stand otherwise
        facts = Facts(rationales=texts) if answer_type in CHOICES else Facts(captions=texts)
    bonus = need(value, "length_bonus", (int, float)) if value.get("length_bonus") is not None else 1.0
    return build(
        Prompt,
        id=row_id(row, value),
        image=image,
        question=question,
        facts=facts,
        answer_type=answer_type,
        length_class=length_class(bonus),
    )


def length_class(bonus: float) -> LengthClass:
    """The class that a row's factor on the length reward stands for.

    The thesis's coefficients (appendix H) are -10 general, -40 detailed, +2.5 complex: against the
    general factor (1, or 2 in files made for half the coefficient) a detailed question has four times as
    much, and a complex one the other sign.
    """
    if bonus < 0:
        return "complex"
    return "detail" if bonus > 2 else "general"


#: the factors of the length classes: the thesis's coefficients (-10, -40, +2.5) against the general one
BONUS: dict[LengthClass, float] = {"general": 1.0, "detail": 4.0, "complex": -0.25}


def _prompt_row(record: Prompt) -> dict[str, Any]:
    image = {"image": image_name(record.image)} if record.image is not None else {}
    asked = [Message(role="user", content=record.question)]
    # as the reference has them, see ``_prompt``
    texts = record.facts.rationales if record.answer_type in CHOICES else record.facts.captions
    captions = {"captions": texts} if texts else {}
    return {
        "id": record.id,
        **image,
        "conversations": turns_to_json(asked, record.image),
        "caption_type": ANSWER_TYPES.index(record.answer_type) + 1,
        "length_bonus": BONUS[record.length_class],
        **captions,
    }


def _texts(value: list[Any], key: str) -> list[str]:
    for i, text in enumerate(value):
        if not isinstance(text, str):
            raise DataError("not a string", key=f"{key}.{i}", mend="give a list of strings")
    return value


def read_captions(path: str | Path) -> dict[str, list[str]]:
    """``image_to_caption.json``: image name -> captions. Raises DataError naming the image that is wrong."""
    found = read_json(path)
    if not isinstance(found, dict):
        rule = f"the file holds a {type(found).__name__}, not an object of image names"
        raise DataError(rule, file=str(path), mend='give {"image name": ["caption", ...], ...}')
    for name, texts in found.items():
        if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
            rule = "the captions are no list of strings"
            raise DataError(rule, file=str(path), key=name, mend='give {"image name": ["caption", ...]}')
    return found


def add_captions(
    records: list[Example | Prompt | Preference],
    captions: dict[str, list[str]],
    source: str,
) -> list[Example | Prompt | Preference]:
    """The records with captions as facts, looked up by the image's path, id or file name.

    A multiple-choice Prompt gets its rationales (key "aok_" + name) as such instead, where there are any.
    Records that already hold a text keep it once. Raises DataError when no record's image has an entry.
    """
    done, missing = [], 0
    for record in records:
        known = with_captions(record, captions)
        missing += known is None and record.image is not None
        done.append(known or record)
    pictured = sum(r.image is not None for r in records)
    if missing and missing == pictured:
        rule = f"no caption for any of the {pictured} images"
        raise DataError(rule, file=source, mend="use the captions of these images (keys are image names)")
    if missing:
        logging.getLogger(__name__).warning("%s: no caption for %d of %d images", source, missing, pictured)
    return done


def with_captions(
    record: Example | Prompt | Preference, captions: Mapping[str, list[str]]
) -> Example | Prompt | Preference | None:
    """The record with its image's captions, see ``add_captions``; None where there is no entry for it."""
    names = _names(record.image)
    kind, texts = "captions", _lookup(captions, names)
    if isinstance(record, Prompt) and record.answer_type in CHOICES:
        rationales = _lookup(captions, [RATIONALE_PREFIX + name for name in names])
        if rationales is not None:
            kind, texts = "rationales", rationales
    if texts is None:
        return None
    held = getattr(record.facts, kind)
    merged = held + [t for t in dict.fromkeys(texts) if t not in held]
    return record.model_copy(update={"facts": record.facts.model_copy(update={kind: merged})})


def _names(image: Image | None) -> list[str]:
    if image is None:
        return []
    names = [image.path, image.id, PurePosixPath(image.path or image.url or image.id).name]
    return [name for name in dict.fromkeys(names) if name]


def _lookup(captions: Mapping[str, list[str]], names: list[str]) -> list[str] | None:
    return next((captions[name] for name in names if name in captions), None)


PREFERENCES = Format(
    name="llava_rlhf",
    kind="preference",
    doc="LLaVA-RLHF preference JSON: LLaVA rows with output_1, output_2, preference 1 or 2",
    parse=_preference,
    row=_preference_row,
    family="llava_rlhf",
    needs=frozenset({"conversations", "output_1", "output_2", "preference"}),
    keys=frozenset({"id", "image", "conversations", "output_1", "output_2", "preference", "hallucination"}),
    sample=samples.PREFERENCE,
)

PROMPTS = Format(
    name="llava_rlhf_prompts",
    kind="prompt",
    doc="LLaVA-RLHF PPO prompts: LLaVA rows with caption_type 1..7 and length_bonus; first question only",
    parse=_prompt,
    row=_prompt_row,
    family="llava_rlhf",
    needs=frozenset({"conversations", "caption_type"}),
    keys=frozenset({"id", "image", "conversations", "captions", "caption_type", "length_bonus"}),
    sample=samples.PROMPT,
)


def read(path: str | Path, **policy: Any) -> list[Preference]:
    """All preferences of a LLaVA-RLHF file; ``policy`` as in ``Format.read``."""
    return PREFERENCES.read(path, **policy)


def read_prompts(path: str | Path, **policy: Any) -> list[Prompt]:
    """All PPO prompts of a LLaVA-RLHF file; ``policy`` as in ``Format.read``."""
    return PROMPTS.read(path, **policy)


def write(path: str | Path, records: Iterable[Preference]) -> int:
    """Write preferences as LLaVA-RLHF JSON; returns how many. DataError for a tie or over two responses."""
    return PREFERENCES.write(path, records)
