"""Several data sets as one file: so many records of each, in one random order, with a manifest beside it.

Everything follows from the settings and the files: the same ones give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import random
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from data.detect import OWN, one
from data.errors import DataError, Pairs
from data.facts import read_captions
from data.files import replacing, to_json, write_json
from data.formats import choose
from data.formats.base import unique_ids
from data.formats.llava_rlhf import with_captions
from data.jsonl import Rejects, dump, keep, no_duplicates, record_pairs
from data.load import existing, of_kind
from data.prompts import as_prompts
from data.schema import Example, Image, LengthClass, Preference, Prompt
from data.stats import file_name, texts


class MixSource(BaseModel):
    """One data set of a mixture."""

    model_config = ConfigDict(extra="forbid")

    path: str
    #: None: told from the file
    format: str | None = None
    options: dict[str, str] = {}
    #: "example" where a mixture of prompts takes the first questions of these conversations
    given: Literal["example"] | None = None
    #: of such prompts
    length_class: LengthClass = "general"
    #: image root, to check that the pictures are there
    images: str | None = None
    #: put before the records' image paths, so that the sources' pictures lie under one root
    image_prefix: str = ""
    #: captions keyed by image, added as facts
    captions: str | None = None
    #: leave out records whose picture and first question another file has, such as what SFT was trained on
    exclude: str | None = None
    #: so many records; else a share by ``weight`` of what the counted ones leave of ``total``; else all
    count: int | None = Field(None, ge=1)
    weight: float | None = Field(None, gt=0)
    #: take records more than once where there are too few; they get ids of their own
    repeat: bool = False
    max_bad: float = Field(0.01, ge=0, le=1)

    @model_validator(mode="after")
    def _one_share(self) -> MixSource:
        if self.count is not None and self.weight is not None:
            raise ValueError("count and weight are both given; give one of them")
        return self


class MixSettings(BaseModel):
    """A mixture: what ``align data mix`` reads."""

    model_config = ConfigDict(extra="forbid")

    #: the JSON lines to write; the manifest stands beside it as <output>.manifest.json
    output: str
    kind: Literal["example", "prompt", "preference"] = "example"
    seed: int = 0
    #: records in all; needed by weights
    total: int | None = Field(None, ge=1)
    sources: dict[str, MixSource] = Field(min_length=1)

    @model_validator(mode="after")
    def _weights_need_a_total(self) -> MixSettings:
        if self.total is None and any(source.weight is not None for source in self.sources.values()):
            raise ValueError("weights share out a total, and none is given; add total")
        if self.kind != "prompt" and any(source.given is not None for source in self.sources.values()):
            raise ValueError("given: example makes prompts, and the mixture's kind is another; drop it")
        return self


@dataclass
class Shelf:
    """One source's records as JSON lines in a file of their own, each reachable by its place."""

    file: IO[bytes]
    starts: array[int]
    #: what the manifest says of it
    about: dict[str, Any]

    def __len__(self) -> int:
        return len(self.starts)

    def record(self, index: int) -> dict[str, Any]:
        self.file.seek(self.starts[index])
        return json.loads(self.file.readline())


def mix(settings: MixSettings) -> dict[str, Any]:
    """Write the mixture and its manifest, and return the manifest.

    The manifest is there before the mixture, so that a mixture never stands beside an older one's.

    Raises:
        DataError: a source that cannot be read or holds too few records, with the source's name as key.
    """
    output = Path(settings.output)
    with TemporaryDirectory() as folder:
        shelves: dict[str, Shelf] = {}
        for name, source in settings.sources.items():
            try:
                shelves[name] = _shelve(source, settings.kind, Path(folder) / f"{len(shelves)}.jsonl")
            except DataError as error:
                error.key = f"sources.{name}" + (f": {error.key}" if error.key else "")
                raise
        taken = shares(settings, {name: len(shelf) for name, shelf in shelves.items()})
        order = [
            (name, index, turn)
            for name, n in taken.items()
            for index, turn in _picked(len(shelves[name]), n, f"{settings.seed}/{name}")
        ]
        random.Random(f"{settings.seed}/order").shuffle(order)
        digest = hashlib.sha256()
        with replacing(output) as file:
            for name, index, turn in order:
                line = to_json(_named(shelves[name].record(index), name, turn), output) + "\n"
                digest.update(line.encode())
                file.write(line)
            manifest = {
                "output": {"file": output.name, "records": len(order), "sha256": digest.hexdigest()},
                "kind": settings.kind,
                "seed": settings.seed,
                "sources": {
                    name: {**shelf.about, "taken": taken[name], "share": taken[name] / len(order)}
                    for name, shelf in shelves.items()
                },
            }
            write_json(f"{output}.manifest.json", manifest)
        for shelf in shelves.values():
            shelf.file.close()
    return manifest


def shares(settings: MixSettings, held: Mapping[str, int]) -> dict[str, int]:
    """How many records of each source, given how many each holds; weights are shared out exactly.

    Raises:
        DataError: more than a source holds (without ``repeat``), or counts beyond the total.
    """
    taken: dict[str, int] = {}
    for name, source in settings.sources.items():
        if source.weight is None:
            taken[name] = held[name] if source.count is None else source.count
    weights = {n: s.weight for n, s in settings.sources.items() if s.weight is not None}
    if settings.total is not None:
        left = settings.total - sum(taken.values())
        if left < 0 or (left and not weights):
            rule = f"the counts make {sum(taken.values())} records, the total is {settings.total}"
            raise DataError(rule, key="total", mend="change the total, or give a source a weight")
        taken |= _largest_remainders(weights, left)
    for name, n in taken.items():
        if n > held[name] and not settings.sources[name].repeat:
            rule = f"{n} records are wanted, and it holds {held[name]}"
            mend = "take fewer, or set repeat: true"
            raise DataError(rule, key=f"sources.{name}", mend=mend)
        if n and not held[name]:
            raise DataError("it holds no record of that kind", key=f"sources.{name}", mend="check its format")
    if not sum(taken.values()):
        raise DataError("no record is taken from any source", key="sources", mend="raise total or a count")
    return {name: taken[name] for name in settings.sources}


def _largest_remainders(weights: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole numbers in the weights' proportion that add up to ``total``."""
    whole = sum(weights.values())
    exact = {name: total * weight / whole for name, weight in weights.items()}
    found = {name: int(share) for name, share in exact.items()}
    rest = sorted(exact, key=lambda name: (found[name] - exact[name], name))
    for name in rest[: total - sum(found.values())]:
        found[name] += 1
    return found


def _picked(held: int, wanted: int, seed: str) -> list[tuple[int, int]]:
    """(place, how often it was taken before) of ``wanted`` records: all once, before any comes again."""
    picked: list[tuple[int, int]] = []
    for turn in range(-(-wanted // held) if held else 0):
        order = list(range(held))
        random.Random(f"{seed}/{turn}").shuffle(order)
        picked += [(index, turn) for index in order[: wanted - len(picked)]]
    return picked


def _named(row: dict[str, Any], name: str, turn: int) -> dict[str, Any]:
    """The record under an id that no other source's has, with the source's name where it brings none."""
    again = f"@{turn + 1}" if turn else ""
    row["id"] = f"{name}/{row['id']}{again}"
    row.setdefault("source", name)
    return row


def _pairs_of(source: MixSource, kind: str) -> tuple[str, Pairs[Any]]:
    """The name of the source's format, and its records or errors of the mixture's kind."""
    name, given = source.format or one(source.path), source.given or kind
    if name == OWN:
        pairs: Pairs[Any] = of_kind(no_duplicates(record_pairs(source.path)), given, Counter())
    else:
        chosen = choose(name, given)
        name = chosen.name
        pairs = unique_ids(chosen.pairs(source.path, **source.options))
    if source.given is not None:
        pairs = as_prompts(pairs, source.length_class)
    return name, existing(pairs, source.images) if source.images is not None else pairs


def _shelve(source: MixSource, kind: str, path: Path) -> Shelf:
    """Read a source once, into lines that can be reached by their place."""
    name, pairs = _pairs_of(source, kind)
    captions = read_captions(source.captions) if source.captions else None
    excluded = set() if source.exclude is None else _questions(source.exclude)
    starts, rejects = array("q"), Rejects()
    uncaptioned = left_out = 0
    file = path.open("w+b")
    for record in keep(pairs, max_bad=source.max_bad, rejects=rejects):
        if excluded and _question(record) in excluded:
            left_out += 1
            continue
        if captions is not None:
            known = with_captions(record, captions)
            uncaptioned += known is None
            record = known or record
        starts.append(file.tell())
        file.write(to_json(dump(_moved(record, source.image_prefix)), source.path).encode() + b"\n")
    if starts and uncaptioned == len(starts):
        rule = f"no caption for any of the {uncaptioned} records"
        raise DataError(rule, file=source.captions, mend="use the captions of these images (keys are names)")
    about = {
        "path": source.path,
        "sha256": _hash(Path(source.path)),
        "format": name,
        "records": len(starts),
        "bad": len(rejects.found),
        **source.model_dump(include={"given", "image_prefix", "repeat"}, exclude_defaults=True),
    }
    if source.options:
        about["options"] = {name: _told(value) for name, value in source.options.items()}
    if source.exclude is not None:
        about |= {"exclude": _told(source.exclude), "excluded": left_out}
    if captions is not None:
        about |= {"captions": _told(str(source.captions)), "without_captions": uncaptioned}
    return Shelf(file, starts, about)


def _moved(record: Any, prefix: str) -> Any:
    if not prefix or record.image is None or record.image.path is None:
        return record
    path = f"{prefix.rstrip('/')}/{record.image.path}"
    return record.model_copy(update={"image": Image(id=record.image.id, path=path)})


def _question(record: Any) -> int:
    """A hash of the picture's name and the first thing that is asked."""
    return hash((None if record.image is None else file_name(record.image), texts(record)[0][0]))


def _questions(path: str) -> set[int]:
    """Those of every record of a file, in whatever format. DataError where it has none."""
    name = one(path)
    pairs: Pairs[Any] = record_pairs(path) if name == OWN else choose(name).pairs(path)
    found = {_question(got) for _, got in pairs if isinstance(got, Example | Prompt | Preference)}
    if not found:
        raise DataError("no record in it to leave out", file=path, key="exclude", mend="check the file")
    return found


def _told(value: str) -> Any:
    """An option as the manifest has it: with the hash of the file that it names, if it names one."""
    return {"path": value, "sha256": _hash(Path(value))} if Path(value).is_file() else value


def _hash(path: Path) -> str | None:
    """sha256 of a file's bytes; of a folder, of its files' names and hashes."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(path)} {_hash(file)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as opened:
        while part := opened.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
