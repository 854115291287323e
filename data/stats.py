"""What a data set holds, in figures: counts, lengths, pictures, balance of answers, duplicates, overlaps.

Records are taken one at a time: of each, its id, its lengths and hashes are kept, not its texts or pictures.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.images import content_hash, inspect_image
from data.prompts import short_answer
from data.schema import Example, Image, Preference, Prompt

#: named duplicates and overlaps of each kind; all are counted
NAMED = 5
#: of those who show one picture, named
SHOWN = 3
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)
FACTS = ("captions", "rationales", "answer", "objects", "knowledge")


def file_name(image: Image) -> str:
    """The name by which other data sets know a picture: its file's, without folders, the year of COCO's
    older names, and the ending (``COCO_val2014_000000000042.jpg`` is ``000000000042.jpg`` in later releases).
    """
    name = (image.path or image.url or image.id).rsplit("/", 1)[-1]
    stem = name.rsplit(".", 1)[0]
    return re.sub(r"^COCO_(train|val|test)20\d\d_", "", stem)


def identity(image: Image) -> str:
    """What tells pictures of one data set apart: path, address, or the hash of the bytes."""
    return image.path or image.url or hashlib.sha256(image.data or b"").hexdigest()


@dataclass
class Pictures:
    """Who shows which picture: ids by the picture's name, and by the hash of its file."""

    names: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    hashes: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


@dataclass
class Seen:
    """What the first look at a picture found."""

    digest: str | None = None
    #: how many records show it
    records: int = 0


class Collector:
    """The figures of a data set, from its records one by one. ``images``: the root of its pictures."""

    def __init__(self, images: str | Path | None = None) -> None:
        self.images = images
        self.records = 0
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.lengths: dict[str, array[int]] = defaultdict(lambda: array("q"))
        self.facts: Counter[str] = Counter()
        self.answers: dict[str, Counter[str]] = defaultdict(Counter)
        self.seen: dict[str, Seen] = {}
        self.sizes: dict[str, array[int]] = {"width": array("q"), "height": array("q")}
        self.forms: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.unreadable: list[str] = []
        self.shown: dict[str, Pictures] = defaultdict(Pictures)
        #: hash of a text (with its picture) -> ids
        self.wholes: dict[int, list[str]] = defaultdict(list)
        self.texts: dict[int, list[str]] = defaultdict(list)

    def add(self, record: Any) -> None:
        """Take one example, prompt or preference."""
        self.records += 1
        for name in ("kind", "source", "split", "task"):
            if (value := getattr(record, name, None)) is not None:
                self.counts[name][str(value)] += 1
        for name in FACTS:
            self.facts[name] += bool(getattr(record.facts, name))
        asked, said = texts(record)
        self.lengths["turns"].append(len(asked) + (len(said) if isinstance(record, Example) else 0))
        self.lengths["question words"].extend(len(text.split()) for text in asked)
        self.lengths["answer words"].extend(len(text.split()) for text in said)
        self._answers(record, said)
        key = "" if record.image is None else self._picture(record)
        text = "\n".join(" ".join(part.lower().split()) for part in (*asked, *said))
        self.wholes[hash((key, text))].append(record.id)
        self.texts[hash(text)].append(record.id)

    def _answers(self, record: Any, said: Sequence[str]) -> None:
        if isinstance(record, Prompt):
            for name in ("answer_type", "length_class"):
                self.answers[name][getattr(record, name)] += 1
        elif isinstance(record, Preference):
            best = record.preferred
            self.answers["better"]["tie" if best is None else f"response {best + 1}"] += 1
            if best is not None and len(said) == 2:
                mine, other = (len(said[k].split()) for k in (best, 1 - best))
                word = "longer" if mine > other else "shorter" if mine < other else "equal"
                self.answers["better is"][word] += 1
        else:
            self.answers["short"].update(map(short_answer, said))

    def _picture(self, record: Any) -> str:
        """Take the record's picture; returns what tells it from others."""
        image, key = record.image, identity(record.image)
        if key not in self.seen:
            self.seen[key] = Seen(self._look(image))
        self.seen[key].records += 1
        for part in ("", record.split or ""):
            shown = self.shown[part]
            shown.names[file_name(image)].append(record.id)
            if self.seen[key].digest is not None:
                shown.hashes[str(self.seen[key].digest)].append(record.id)
            if not record.split:
                break
        return key

    def _look(self, image: Image) -> str | None:
        """Note size and form of a picture that can be had; returns the hash of its file."""
        if image.url is not None or (self.images is None and image.data is None):
            return None
        try:
            info = inspect_image(image, self.images)
            digest = content_hash(image, self.images)
        except DataError as error:
            self.unreadable.append(str(error))
            return None
        self.sizes["width"].append(info.width)
        self.sizes["height"].append(info.height)
        self.forms[info.format] += 1
        self.notes.update(re.sub(r"\d+ frames", "several frames", note) for note in info.notes)
        return digest

    def figures(self) -> dict[str, Any]:
        """All figures as JSON values."""
        found: dict[str, Any] = {"records": self.records}
        found |= {name: dict(counted.most_common()) for name, counted in self.counts.items()}
        found["lengths"] = {name: quantiles(values) for name, values in self.lengths.items() if values}
        found["facts"] = {name: n for name, n in self.facts.items() if n}
        found["answers"] = {name: dict(counted.most_common()) for name, counted in self.answers.items()}
        found["images"] = self._image_figures()
        found["duplicates"] = self._duplicates()
        splits = {name: shown for name, shown in self.shown.items() if name}
        between = {f"{a}, {b}": overlap(splits[a], splits[b]) for a, b in _couples(sorted(splits))}
        between = {name: both for name, both in between.items() if any(w["pictures"] for w in both.values())}
        return found | ({"splits_overlap": between} if between else {})

    def _image_figures(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "records without": self.records - self.shown_records(),
            "different": len(self.seen),
            "records a picture": round(self.shown_records() / max(1, len(self.seen)), 2),
        }
        if not self.forms and not self.unreadable:
            return found
        found |= {name: quantiles(values) for name, values in self.sizes.items() if values}
        found |= {"formats": dict(self.forms.most_common()), "notes": dict(self.notes.most_common())}
        return found | {"unreadable": {"pictures": len(self.unreadable), "first": self.unreadable[:NAMED]}}

    def shown_records(self) -> int:
        """Records that show a picture."""
        return sum(seen.records for seen in self.seen.values())

    def _duplicates(self) -> dict[str, Any]:
        """Records that say the same of one picture, texts that repeat, and picture files of equal content."""
        found = {"records": _repeated(self.wholes.values()), "texts": _repeated(self.texts.values())}
        files: dict[str, list[str]] = defaultdict(list)
        for key, seen in self.seen.items():
            if seen.digest is not None:
                files[seen.digest].append(key)
        return found | ({"picture files": _repeated(files.values())} if files else {})


def stats(records: Iterable[Any], images: str | Path | None = None) -> dict[str, Any]:
    """All figures of one data set; with the image root also of the files of its pictures."""
    collector = Collector(images)
    for record in records:
        collector.add(record)
    return collector.figures()


def pictures(records: Iterable[Any], images: str | Path | None) -> Pictures:
    """Who shows which picture; with the image root by the files' contents too."""
    collector = Collector(images)
    for record in records:
        collector.add(record)
    return collector.shown[""]


def overlap(ours: Pictures, theirs: Pictures) -> dict[str, Any]:
    """Pictures that stand in both, by file name and by content: how many, and who shows the first few.

    Names may agree by chance where both number their pictures from 1; equal contents do not.
    """
    found: dict[str, Any] = {}
    for kind, word in (("names", "by_name"), ("hashes", "by_content")):
        mine, other = getattr(ours, kind), getattr(theirs, kind)
        common = sorted(mine.keys() & other.keys())
        named = [
            {"picture": key, "here": mine[key][:SHOWN], "there": other[key][:SHOWN]} for key in common[:NAMED]
        ]
        found[word] = {"pictures": len(common), "first": named}
    return found


def quantiles(values: Sequence[int]) -> dict[str, float]:
    """Smallest, quartiles, 95 %, largest and mean; the nearest value, not an interpolated one."""
    ordered = sorted(values)
    last = len(ordered) - 1
    named: dict[str, float] = {f"{q:.0%}": ordered[round(q * last)] for q in QUANTILES}
    return named | {"mean": round(sum(ordered) / len(ordered), 2)}


def texts(record: Any) -> tuple[list[str], list[str]]:
    """What is asked and what is answered in a record."""
    if isinstance(record, Prompt):
        return [record.question], []
    asked = [m.content for m in record.messages if m.role == "user"]
    if isinstance(record, Preference):
        return asked, [response.text for response in record.responses]
    return asked, [m.content for m in record.messages if m.role == "assistant"]


def _repeated(groups: Iterable[list[str]]) -> dict[str, Any]:
    several = [ids for ids in groups if len(ids) > 1]
    return {
        "groups": len(several),
        "in them": sum(map(len, several)),
        "first": [ids[: SHOWN + 1] for ids in several[:NAMED]],
    }


def _couples(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    for k, first in enumerate(names):
        for second in names[k + 1 :]:
            yield first, second
