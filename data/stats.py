"""What a data set holds, in figures: counts, lengths, pictures, balance of answers, duplicates, overlaps."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.images import content_hash, inspect_image
from data.prompts import short_answer
from data.schema import Example, Image, Preference, Prompt

#: named duplicates and overlaps of each kind; all are counted
NAMED = 5
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass
class Pictures:
    """The pictures of one data set: under each key (a name, or the hash of a file) who shows it."""

    names: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    hashes: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def file_name(image: Image) -> str:
    """The name by which other data sets know a picture: its file's, without folders, the year of COCO's
    older names, and the ending (``COCO_val2014_000000000042.jpg`` is ``000000000042.jpg`` in later releases).
    """
    name = (image.path or image.url or image.id).rsplit("/", 1)[-1]
    stem = name.rsplit(".", 1)[0]
    return re.sub(r"^COCO_(train|val|test)20\d\d_", "", stem)


def pictures(records: Iterable[Any], images: str | Path | None) -> Pictures:
    """Who shows which picture; hashes of the files where there is an image root."""
    found = Pictures()
    known: dict[str, str | None] = {}
    for record in records:
        image = getattr(record, "image", None)
        if not isinstance(image, Image):
            continue
        found.names[file_name(image)].append(record.id)
        if images is None and image.data is None:
            continue
        name = image.path or image.id
        if name not in known:
            known[name] = _hash(image, images)
        if known[name] is not None:
            found.hashes[str(known[name])].append(record.id)
    return found


def _hash(image: Image, images: str | Path | None) -> str | None:
    try:
        return content_hash(image, images)
    except DataError:
        return None  # counted as unreadable where sizes are


def overlap(ours: Pictures, theirs: Pictures) -> dict[str, Any]:
    """Pictures that stand in both, by file name and by content: how many, and who shows the first few.

    Names may agree by chance where both number their pictures from 1; equal contents do not.
    """
    found: dict[str, Any] = {}
    for kind in ("names", "hashes"):
        mine, other = getattr(ours, kind), getattr(theirs, kind)
        common = sorted(mine.keys() & other.keys())
        found["by_name" if kind == "names" else "by_content"] = {
            "pictures": len(common),
            "first": [
                {"picture": key, "here": mine[key][:3], "there": other[key][:3]} for key in common[:NAMED]
            ],
        }
    return found


def stats(records: Sequence[Any], images: str | Path | None = None) -> dict[str, Any]:
    """All figures of one data set, as JSON values; with the image root also of the files of its pictures."""
    found: dict[str, Any] = {"records": len(records)}
    for name in ("kind", "source", "split", "task"):
        counted = Counter(str(value) for r in records if (value := getattr(r, name, None)) is not None)
        if counted:
            found[name] = dict(counted.most_common())
    found["lengths"] = {name: quantiles(values) for name, values in lengths(records).items() if values}
    found["facts"] = facts(records)
    found["answers"] = answers(records)
    shown = pictures(records, images)
    found["images"] = image_figures(records, images, shown)
    found["duplicates"] = duplicates(records, shown)
    between = between_splits(records, images)
    if between:
        found["splits_overlap"] = between
    return found


def quantiles(values: Sequence[int]) -> dict[str, float]:
    """Smallest, quartiles, 95 %, largest and mean; the nearest value, not an interpolated one."""
    ordered = sorted(values)
    last = len(ordered) - 1
    named = {f"{q:.0%}": ordered[round(q * last)] for q in QUANTILES}
    return named | {"mean": round(sum(ordered) / len(ordered), 2)}


def lengths(records: Iterable[Any]) -> dict[str, list[int]]:
    """Turns, and words of questions and answers (of preferences: of all responses)."""
    found: dict[str, list[int]] = {"turns": [], "question words": [], "answer words": []}
    for record in records:
        asked, said = texts(record)
        found["turns"].append(len(asked) + (len(said) if isinstance(record, Example) else 0))
        found["question words"] += [len(text.split()) for text in asked]
        found["answer words"] += [len(text.split()) for text in said]
    return found


def texts(record: Any) -> tuple[list[str], list[str]]:
    """What is asked and what is answered in a record."""
    if isinstance(record, Prompt):
        return [record.question], []
    asked = [m.content for m in record.messages if m.role == "user"]
    if isinstance(record, Preference):
        return asked, [response.text for response in record.responses]
    return asked, [m.content for m in record.messages if m.role == "assistant"]


def facts(records: Iterable[Any]) -> dict[str, int]:
    """In how many records there are facts of each kind."""
    held: Counter[str] = Counter()
    for record in records:
        for name in ("captions", "rationales", "answer", "objects", "knowledge"):
            held[name] += bool(getattr(record.facts, name))
    return {name: n for name, n in held.items() if n}


def answers(records: Iterable[Any]) -> dict[str, Any]:
    """How answers are balanced: yes, no and options; of preferences, where the better response stands."""
    plain: Counter[str] = Counter()
    types: dict[str, Counter[str]] = {"answer_type": Counter(), "length_class": Counter()}
    places: Counter[str] = Counter()
    longer: Counter[str] = Counter()
    for record in records:
        if isinstance(record, Prompt):
            for name, counted in types.items():
                counted[getattr(record, name)] += 1
        elif isinstance(record, Preference):
            best = record.preferred
            places["tie" if best is None else f"response {best + 1}"] += 1
            if best is not None and len(record.responses) == 2:
                mine, other = (len(record.responses[k].text.split()) for k in (best, 1 - best))
                longer["longer" if mine > other else "shorter" if mine < other else "equal"] += 1
        else:
            plain.update(map(short_answer, texts(record)[1]))
    found = {"short": plain, **types, "better": places, "better is": longer}
    return {name: dict(counted.most_common()) for name, counted in found.items() if counted}


def image_figures(records: Sequence[Any], images: str | Path | None, shown: Pictures) -> dict[str, Any]:
    """How many pictures, and with an image root their sizes, forms and those that cannot be read."""
    pictured = [r for r in records if getattr(r, "image", None) is not None]
    found: dict[str, Any] = {
        "records without": len(records) - len(pictured),
        "different": len(shown.names),
        "records a picture": round(len(pictured) / max(1, len(shown.names)), 2),
    }
    if images is None and all(r.image.data is None for r in pictured):
        return found
    sizes: dict[str, list[int]] = {"width": [], "height": []}
    forms: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    unreadable: list[str] = []
    for image in {(r.image.path or r.image.id): r.image for r in pictured}.values():
        try:
            info = inspect_image(image, images)
        except DataError as error:
            unreadable.append(str(error))
            continue
        sizes["width"].append(info.width)
        sizes["height"].append(info.height)
        forms[info.format] += 1
        notes.update(re.sub(r"\d+ frames", "several frames", note) for note in info.notes)
    found |= {name: quantiles(values) for name, values in sizes.items() if values}
    found |= {"formats": dict(forms.most_common()), "notes": dict(notes.most_common())}
    return found | {"unreadable": {"pictures": len(unreadable), "first": unreadable[:NAMED]}}


def duplicates(records: Sequence[Any], shown: Pictures) -> dict[str, Any]:
    """Records that say the same of one picture, texts that repeat, and picture files of equal content."""
    whole: dict[str, list[str]] = defaultdict(list)
    said: dict[str, list[str]] = defaultdict(list)
    for record in records:
        asked, answered = texts(record)
        text = "\n".join(" ".join(part.lower().split()) for part in (*asked, *answered))
        image = "" if record.image is None else file_name(record.image)
        whole[f"{image}\n{text}"].append(record.id)
        said[text].append(record.id)
    found = {"records": whole, "texts": said}
    counted = {name: _repeated(groups) for name, groups in found.items()}
    if shown.hashes:
        # one file under one name is no duplicate, however many records show it
        names = {i: file_name(r.image) for r in records if r.image is not None for i in [r.id]}
        groups = {key: list({names[i]: i for i in ids}.values()) for key, ids in shown.hashes.items()}
        counted["picture files"] = _repeated(groups)
    return counted


def _repeated(groups: Mapping[str, list[str]]) -> dict[str, Any]:
    several = [ids for ids in groups.values() if len(ids) > 1]
    return {
        "groups": len(several),
        "in them": sum(map(len, several)),
        "first": [ids[:4] for ids in several[:NAMED]],
    }


def between_splits(records: Sequence[Any], images: str | Path | None) -> dict[str, Any]:
    """Pictures that stand in two splits of this data set, for each two; only splits that overlap."""
    parts: dict[str, list[Any]] = defaultdict(list)
    for record in records:
        if getattr(record, "split", None):
            parts[record.split].append(record)
    shown = {name: pictures(part, images) for name, part in parts.items()}
    found = {f"{a}, {b}": overlap(shown[a], shown[b]) for a, b in _couples(sorted(shown))}
    return {name: both for name, both in found.items() if any(way["pictures"] for way in both.values())}


def _couples(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    for k, first in enumerate(names):
        for second in names[k + 1 :]:
            yield first, second
