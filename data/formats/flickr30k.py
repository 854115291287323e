"""Flickr30k Entities -> Example: a caption that says where the things it names are.

A folder with ``Sentences/ID.txt``, five lines such as ``[/EN#283585/people Two young guys] look up .``,
and ``Annotations/ID.xml``, the boxes of each chain id (the number behind ``EN#``). Each picture, ID.jpg
under the image root, becomes one Example. Its answer is the sentence with the most phrases that have a box
(of several, the first), with the boxes behind each such phrase: ``Two young guys
[0.120,0.200,0.460,0.980;0.500,0.210,0.880,0.990] look up .``. A box is left, top, right, bottom as
shares of the picture's width and height, with three decimals; the boxes of one phrase stand in one pair of
brackets with ``;`` between them, in the order of the file. A picture none of whose phrases has a box keeps
its first sentence. The five sentences without markup are facts.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.files import read_text, whole_text
from data.formats.base import Format, build, named_image
from data.jsonl import DataError, Pairs, Row
from data.schema import Example, Facts, Message

SENTENCES, ANNOTATIONS = "Sentences", "Annotations"
SOURCE, TASK = "flickr30k", "grounded_caption"
REQUEST = (
    "Describe the picture in one sentence. Behind each thing that you name, say where it is: "
    "[left,top,right,bottom] as shares of the picture's width and height, several places separated by ';'."
)
#: sentences that each picture has
COUNT = 5

#: a phrase: its chain id, its kinds, its words
_PHRASE = re.compile(r"\[/EN#([0-9]+)((?:/[^\s/\[\]]+)+) ([^\[\]]+)\]")
_NUMBER = re.compile(r"-?[0-9]{1,9}")
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_XML_MEND = "restore the file from the data set"

#: chain id -> boxes as written in an answer
Boxes = dict[str, list[str]]


def pairs(path: str | Path) -> Pairs[Example]:
    """One Example, or the error at its file, for each picture of either folder, by id.

    Files with other endings, and those whose names begin with a dot, are no part of the data. Raises
    DataError where a folder is missing.
    """
    names = _names(Path(path) / SENTENCES, ".txt") | _names(Path(path) / ANNOTATIONS, ".xml")
    for name in sorted(names):
        yield _picture(Path(path), name)


def _names(folder: Path, ending: str) -> set[str]:
    if not folder.is_dir():
        rule = f"no folder {folder.name}"
        mend = f"give the folder that holds {SENTENCES} and {ANNOTATIONS}"
        raise DataError(rule, file=str(folder.parent), mend=mend)
    try:
        found = [entry.name for entry in folder.iterdir()]
    except OSError as error:
        rule = f"cannot be read ({error.strerror})"
        raise DataError(rule, file=str(folder), mend="check the permissions") from None
    return {name.removesuffix(ending) for name in found if name.endswith(ending) and name[0] != "."}


def _picture(folder: Path, name: str) -> tuple[Row, Example | DataError]:
    texts, places = folder / SENTENCES / f"{name}.txt", folder / ANNOTATIONS / f"{name}.xml"
    row = Row(str(texts), raw={"id": name})
    try:
        whole_text(name)
        for file, other in ((texts, places), (places, texts)):
            if not file.exists():
                row = Row(str(other), raw={"id": name})
                rule = f"the picture has no {file.parent.name}/{file.name}"
                raise DataError(rule, mend="add the file, or remove this one")
        row = Row(str(places), raw={"id": name})
        boxes = _boxes(read_text(places))
        row = Row(str(texts), raw={"id": name})
        sentences = list(_lines(read_text(texts)))
        for number, line in sentences:
            row = Row(str(texts), line=number, raw={"id": name, "sentence": line})
            _check_markup(line)
        row = Row(str(texts), raw={"id": name})
        return row, _example(name, [line for _, line in sentences], boxes)
    except DataError as error:
        # of its own an error knows only the line, of XML that does not parse
        row = Row(row.file, line=row.line if error.line is None else error.line, raw=row.raw)
        return row, row.locate(error)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """(number, text) of each line that is not blank."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line.strip()


def _check_markup(line: str) -> None:
    rest = _PHRASE.sub(" ", line)
    found = re.search(r"[\[\]]|/EN#", rest)
    if found:
        rule = f"markup that is no phrase, at {rest[found.start() : found.start() + 40]!r}"
        raise DataError(rule, key="sentence", mend="mark phrases as [/EN#number/kind words]")


def _example(name: str, sentences: list[str], boxes: Boxes) -> Example:
    if len(sentences) != COUNT:
        rule = f"{len(sentences)} sentences, where {COUNT} are needed"
        raise DataError(rule, key="sentence", mend="give one on each line")
    # max keeps the first of several
    best = max(sentences, key=lambda line: sum(chain in boxes for chain, _, _ in _PHRASE.findall(line)))

    def placed(phrase: re.Match[str]) -> str:
        chain, words = phrase[1], phrase[3]
        return f"{words} [{';'.join(boxes[chain])}]" if chain in boxes else words

    answer = _PHRASE.sub(placed, best)
    return build(
        Example,
        id=name,
        image=named_image(f"{name}.jpg"),
        messages=[Message(role="user", content=REQUEST), build(Message, role="assistant", content=answer)],
        task=TASK,
        facts=Facts(captions=[_PHRASE.sub(lambda phrase: phrase[3], line) for line in sentences]),
        source=SOURCE,
    )


def _boxes(text: str) -> Boxes:
    """The boxes of an annotation file's text, by chain id; ids without any are left out."""
    # entities may stand for themselves ten times over, so none is let in; the data set has none
    if re.search(r"<!(DOCTYPE|ENTITY)", text, re.IGNORECASE):
        raise DataError("XML with a DOCTYPE or an ENTITY is refused", mend="remove the declaration")
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        line, _ = error.position
        raise DataError(f"not valid XML ({error})", line=line, mend=_XML_MEND) from None
    size = root.find("size")
    if size is None:
        raise DataError("the element is missing", key="size", mend=_XML_MEND)
    width, height = (_number(size, side, "size") for side in ("width", "height"))
    if width < 1 or height < 1:
        rule = f"a picture of {width}x{height}"
        raise DataError(rule, key="size", mend="give its width and height in pixels")
    boxes: Boxes = {}
    for i, thing in enumerate(root.findall("object")):
        found = [_box(box, (width, height), f"object.{i}.bndbox") for box in thing.findall("bndbox")]
        if not found and thing.find("scene") is None and thing.find("nobndbox") is None:
            rule = "neither a box nor a word that there is none"
            raise DataError(rule, key=f"object.{i}", mend="add bndbox, scene or nobndbox")
        for chain in _chains(thing, f"object.{i}"):
            if found:
                boxes.setdefault(chain, []).extend(found)
    return boxes


def _chains(thing: ET.Element, key: str) -> list[str]:
    names = [(name.text or "").strip() for name in thing.findall("name")]
    if not names or not all(re.fullmatch("[0-9]+", name) for name in names):
        rule = f"chain ids {names}, where at least one number is needed"
        raise DataError(rule, key=f"{key}.name", mend=_XML_MEND)
    return names


def _number(parent: ET.Element, name: str, key: str) -> int:
    text = (parent.findtext(name) or "").strip()
    if not _NUMBER.fullmatch(text):
        rule = f"{text[:40]!r}, where a whole number is needed"
        raise DataError(rule, key=f"{key}.{name}", mend=_XML_MEND)
    return int(text)


def _box(box: ET.Element, size: tuple[int, int], key: str) -> str:
    """One box (pixels, of a picture of ``size``) as an answer has it."""
    left, top, right, bottom = sides = [_number(box, side, key) for side in _SIDES]
    width, height = size
    if left > right or top > bottom:
        rule = f"the box {sides} ends before it begins"
        raise DataError(rule, key=key, mend="give xmin <= xmax and ymin <= ymax")
    if left < 0 or top < 0 or right > width or bottom > height:
        rule = f"the box {sides} leaves the picture of {width}x{height}"
        raise DataError(rule, key=key, mend="correct the box, or the size")
    shares = (left / width, top / height, right / width, bottom / height)
    return ",".join(f"{share:.3f}" for share in shares)


FLICKR30K = Format(
    name="flickr30k",
    kind="example",
    doc="Flickr30k Entities, its folder: Sentences/ID.txt + Annotations/ID.xml -> captions with boxes",
    reader=pairs,
    holder="folder",
    needs=frozenset({ANNOTATIONS, SENTENCES}),
)


def read(path: str | Path, **policy: Any) -> list[Example]:
    """The pictures of a Flickr30k Entities folder; ``policy`` as in ``Format.read``."""
    return FLICKR30K.read(path, **policy)
