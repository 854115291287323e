"""COCO's annotation files (Lin et al. 2014; Chen et al. 2015): captions, and which things are in a picture.

Each is one JSON object: ``images`` (``{"id", "file_name"}``), ``annotations`` of them (``{"image_id",
"caption"}`` in a captions file, ``{"image_id", "category_id"}`` and a polygon in an instances file) and,
beside instances, ``categories`` (``{"id", "name"}``). The keys may stand in any order. What belongs to an
image is gathered under its id; polygons and boxes are read past.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeAlias

from data.formats.base import Format, build, named_image, need
from data.jsonl import DataError, Pairs, Row
from data.rows import read_members
from data.schema import Example, Facts, Message, Prompt

Id: TypeAlias = int | str

SOURCE = "coco"
#: asked of a picture; its id says which
CAPTION_REQUESTS = (
    "Describe this picture in one sentence.",
    "Write a short caption for this picture.",
    "In a single sentence, what does this picture show?",
    "Sum up in one sentence what can be seen here.",
)
OBJECT_REQUESTS = (
    "Which things are in this picture?",
    "What objects can you see in this picture?",
    "Name the things that this picture shows.",
)


def members(
    path: str | Path, arrays: Collection[str], values: Collection[str] = ()
) -> Iterator[tuple[str, str, Row, Any]]:
    """(top-level key, key of the element, place, object or error) of each element of some of a file's arrays.

    The ``values`` of other top-level keys come as they are. Raises DataError where the file is no JSON
    object, or a key of ``arrays`` holds no list.
    """
    for key, row, value in read_members(path):
        if key is None:
            mend = f"give an object with the keys {', '.join(arrays)}"
            raise DataError("the file is not one JSON object", file=str(path), mend=mend)
        if key in values:
            yield key, key, row, value
        if key not in arrays:
            continue
        if row.index is None:
            raise DataError("not a list", file=str(path), key=key, mend="give a list of objects")
        where = f"{key}.{row.index}"
        if isinstance(value, DataError):
            value.key = f"{where}.{value.key}" if value.key else where
        elif not isinstance(value, dict):
            rule = "not an object"
            value = row.locate(DataError(rule, key=where, mend="give an object with named keys"))
        yield key, where, row, value


def need_text(value: dict[str, Any], key: str, where: str = "") -> str:
    """A text without the white space around it. Raises DataError where nothing else is there."""
    text = need(value, key, str, where).strip()
    if not text:
        raise DataError("the text is empty", key=f"{where}.{key}" if where else key, mend="fill it in")
    return text


@dataclass
class _File:
    """What one annotation file says of each image."""

    path: str
    #: the key of an annotation that counts
    what: Literal["caption", "category_id"]
    #: id -> its index in "images", and its file name; None where that was told as wrong
    images: dict[Id, tuple[int, str | None]] = field(default_factory=dict)
    #: image id -> the index in "annotations", and the caption or category id, of each of its annotations
    told: dict[Id, list[tuple[int, Any]]] = field(default_factory=dict)
    #: category id -> name
    names: dict[int, str] = field(default_factory=dict)

    def read(self) -> Iterator[tuple[Row, DataError]]:
        """Take the file in; yields what is wrong. Raises DataError where a whole part of it is missing."""
        take: dict[str, Callable[[dict[str, Any], str, int], None]]
        take = {"images": self._image, "annotations": self._annotation}
        if self.what == "category_id":
            take["categories"] = self._category
        met = set()
        for key, where, row, value in members(self.path, take):
            met.add(key)
            if isinstance(value, DataError):
                yield row, value
                continue
            try:
                take[key](value, where, row.number)
            except DataError as error:
                yield row, row.locate(error)
        for key in take:
            if key not in met:
                mend = "give a whole captions or instances file; a test split has no annotations"
                raise DataError("there are none", file=self.path, key=key, mend=mend)
        yield from self._strays()

    def _image(self, value: dict[str, Any], where: str, index: int) -> None:
        number = need(value, "id", (int, str), where)
        if number in self.images:
            rule = f"image {number!r} stands at images.{self.images[number][0]} already"
            raise DataError(rule, key=f"{where}.id", mend="keep one")
        # known even if its name is wrong, so that its annotations are not told as wrong too
        self.images[number] = (index, None)
        name = need(value, "file_name", str, where)
        named_image(name, f"{where}.file_name")
        self.images[number] = (index, name)

    def _annotation(self, value: dict[str, Any], where: str, index: int) -> None:
        number = need(value, "image_id", (int, str), where)
        caption = self.what == "caption"
        found = need_text(value, "caption", where) if caption else need(value, "category_id", int, where)
        self.told.setdefault(number, []).append((index, found))

    def _category(self, value: dict[str, Any], where: str, index: int) -> None:
        number, name = need(value, "id", int, where), need_text(value, "name", where)
        if number in self.names:
            rule = f"category {number} is {self.names[number]!r} already"
            raise DataError(rule, key=f"{where}.id", mend="keep one")
        self.names[number] = name

    def _strays(self) -> Iterator[tuple[Row, DataError]]:
        """Annotations of what the file does not list: told at the end, because keys come in any order."""
        for number, told in self.told.items():
            for index, found in told:
                if number not in self.images:
                    key, rule = "image_id", f"image {number!r} is not among the images"
                elif self.what == "category_id" and found not in self.names:
                    key, rule = "category_id", f"category {found} is not among the categories"
                else:
                    continue
                row = Row(self.path, index=index, raw={"image_id": number, self.what: found})
                error = DataError(rule, key=f"annotations.{index}.{key}", mend="correct the number")
                yield row, row.locate(error)

    def captions(self, number: Id) -> list[str]:
        """An image's captions, each once, in the file's order."""
        return list(dict.fromkeys(caption for _, caption in self.told.get(number, ())))

    def objects(self, number: Id) -> list[str]:
        """The names of the things in an image, each once, in the order of their categories' ids."""
        found = sorted({category for _, category in self.told.get(number, ())})
        return list(dict.fromkeys(self.names[category] for category in found if category in self.names))


def wording(requests: Sequence[str], name: str) -> str:
    """One of several requests, always the same for a name."""
    return requests[int.from_bytes(sha256(name.encode()).digest()[:8], "big") % len(requests)]


def _by_image(file: _File, make: Callable[[Id, str, str], Any]) -> Pairs[Any]:
    """What ``make`` says of (id, file name, key in the file) of each image, in the file's order."""
    for number, (index, name) in file.images.items():
        if name is None:
            continue
        row = Row(file.path, index=index, raw={"id": number, "file_name": name})
        try:
            made = make(number, name, f"images.{index}")
        except DataError as error:
            made = row.locate(error)
        yield row, made


def _captioned(
    record: Callable[[str, str, Facts], Example | Prompt],
) -> Callable[..., Pairs[Example | Prompt]]:
    """A reader of captions files (and instances of the same images) that makes one ``record`` an image."""

    def reader(path: str | Path, instances: str | Path | None = None) -> Pairs[Example | Prompt]:
        captions = _File(str(path), "caption")
        yield from captions.read()
        things = None if instances is None else _File(str(instances), "category_id")
        if things is not None:
            yield from things.read()

        def make(number: Id, name: str, key: str) -> Example | Prompt:
            texts = captions.captions(number)
            if not texts:
                mend = "add an annotation with its caption, or leave the image out"
                raise DataError(f"image {number!r} has no caption", key=key, mend=mend)
            if things is None:
                return record(str(number), name, Facts(captions=texts))
            if number not in things.images:
                mend = "take the captions and the instances of the same split"
                raise DataError(f"image {number!r} is not in {things.path}", key=f"{key}.id", mend=mend)
            return record(str(number), name, Facts(captions=texts, objects=things.objects(number)))

        yield from _by_image(captions, make)

    return reader


def _example(name: str, file_name: str, facts: Facts) -> Example:
    turns = [
        build(Message, role="user", content=wording(CAPTION_REQUESTS, name)),
        build(Message, role="assistant", content=facts.captions[0]),
    ]
    image = named_image(file_name)
    return build(Example, id=name, image=image, messages=turns, task="caption", facts=facts, source=SOURCE)


def _prompt(name: str, file_name: str, facts: Facts, requests: Sequence[str] = CAPTION_REQUESTS) -> Prompt:
    question = wording(requests, name)
    image = named_image(file_name)
    return build(Prompt, id=name, image=image, question=question, facts=facts, source=SOURCE)


def _instances(path: str | Path) -> Pairs[Prompt]:
    things = _File(str(path), "category_id")
    yield from things.read()

    def make(number: Id, name: str, key: str) -> Prompt:
        return _prompt(str(number), name, Facts(objects=things.objects(number)), OBJECT_REQUESTS)

    yield from _by_image(things, make)


def read_facts(captions: str | Path | None, instances: str | Path | None = None) -> dict[str, Facts]:
    """File name -> captions and things of every image in the files; empty facts where they say nothing.

    Raises:
        DataError: the first bad record, or no file.
    """
    if captions is None and instances is None:
        raise DataError("no file is given", key="captions", mend="name the captions or the instances")
    found: dict[str, Facts] = {}
    files = [_File(str(captions), "caption")] if captions is not None else []
    files += [_File(str(instances), "category_id")] if instances is not None else []
    for file in files:
        for _, error in file.read():
            raise error
        for number, (_, name) in file.images.items():
            facts = found.setdefault(str(name), Facts())
            if file.what == "caption":
                held, new = facts.captions, file.captions(number)
            else:
                held, new = facts.objects, file.objects(number)
            # two images may be one file
            held += [text for text in new if text not in held]
    return found


_OPTIONS = {"instances": "the instances file of the same split, whose things become facts"}

CAPTIONS = Format(
    name="coco",
    kind="example",
    doc="COCO captions: one request a picture, answered by its first caption; all captions are facts",
    reader=_captioned(_example),
    family="coco",
    holder="object",
    needs=frozenset({"annotations.caption"}),
    keys=frozenset({"images", "annotations", "categories"}),
    options=_OPTIONS,
)

PROMPTS = Format(
    name="coco_prompts",
    kind="prompt",
    doc="COCO captions as prompts: a request for a caption, with all captions as facts",
    reader=_captioned(_prompt),
    family="coco",
    holder="object",
    needs=CAPTIONS.needs,
    keys=CAPTIONS.keys,
    options=_OPTIONS,
)

INSTANCES = Format(
    name="coco_instances",
    kind="prompt",
    doc="COCO instances: a question for the things in a picture, with their names as facts",
    reader=_instances,
    family="coco",
    holder="object",
    needs=frozenset({"annotations.category_id"}),
    keys=CAPTIONS.keys,
)


def read(path: str | Path, instances: str | Path | None = None, **policy: Any) -> list[Example]:
    """All images of a captions file as examples; ``policy`` as in ``Format.read``."""
    options = {} if instances is None else {"instances": str(instances)}
    return CAPTIONS.read(path, options=options, **policy)
