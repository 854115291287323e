"""CHAIR (Rohrbach et al. 2018) on COCO: which of 80 objects a description names, against those in the image.

The rules of the official scorer: lower case, singular forms, double words ("hot dog" is no dog), a young
or grown animal is the animal and not a person, then a list of synonyms. CHAIR_i is false mentions over all
mentions, CHAIR_s descriptions with a false one over all. The truth of an image is what its boxes say, and
what its captions name. The figures themselves are those of ``evals.objects``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.formats.base import need
from data.jsonl import DataError, Row, read_json, read_rows, read_text
from data.schema import Image
from evals.journal import content_hash, file_hash
from evals.nouns import singulars
from evals.objects import ObjectBenchmark
from evals.runner import EvalItem

#: COCO's 80 categories, and our own words for them; the official list can be given as a file
COCO: dict[str, str] = {
    "person": "man, woman, boy, girl, child, kid, baby, toddler, lady, guy, people, player, batter, pitcher, "
    "catcher, skier, snowboarder, skateboarder, surfer, rider, cyclist, pedestrian, passenger, driver, "
    "worker, officer, policeman, chef, waiter, waitress, male, female, adult, gentleman, individual, human",
    "bicycle": "bike",
    "car": "automobile, van, minivan, sedan, suv, taxi, cab, jeep",
    "motorcycle": "motorbike, motor bike, motor cycle, scooter, moped",
    "airplane": "plane, aeroplane, air plane, jet, aircraft, airliner, jetliner",
    "bus": "minibus, trolley",
    "train": "locomotive, tram, caboose",
    "truck": "pickup, lorry, firetruck",
    "boat": "ship, sailboat, ferry, canoe, kayak, rowboat, yacht, raft, gondola",
    "traffic light": "street light, traffic signal, stop light, streetlight, stoplight",
    "fire hydrant": "hydrant",
    "stop sign": "",
    "parking meter": "",
    "bench": "pew",
    "bird": "pigeon, seagull, gull, duck, goose, swan, parrot, owl, eagle, hawk, crow, sparrow, chicken, "
    "hen, rooster, penguin, ostrich, peacock, robin, dove, hummingbird, pelican, heron, crane",
    "cat": "kitten, kitty",
    "dog": "puppy, pup, poodle, bulldog, collie, terrier, retriever, husky, pug, dachshund, beagle, spaniel",
    "horse": "pony, colt, foal, stallion, mare, mustang",
    "sheep": "lamb, ram, ewe",
    "cow": "cattle, calf, bull, ox, heifer, steer, oxen",
    "elephant": "",
    "bear": "panda, cub, grizzly",
    "zebra": "",
    "giraffe": "",
    "backpack": "rucksack, knapsack",
    "umbrella": "parasol",
    "handbag": "purse, wallet",
    "tie": "necktie, bow tie, bowtie",
    "suitcase": "suit case, luggage, briefcase",
    "frisbee": "",
    "skis": "ski",
    "snowboard": "",
    "sports ball": "ball, baseball, football, basketball, volleyball, soccer ball, tennis ball",
    "kite": "",
    "baseball bat": "",
    "baseball glove": "mitt",
    "skateboard": "",
    "surfboard": "longboard, boogie board",
    "tennis racket": "racket, racquet, tennis racquet",
    "bottle": "",
    "wine glass": "wineglass, wine glas",
    "cup": "mug",
    "fork": "",
    "knife": "",
    "spoon": "",
    "bowl": "",
    "banana": "",
    "apple": "",
    "sandwich": "burger, hamburger, cheeseburger, sub",
    "orange": "",
    "broccoli": "",
    "carrot": "",
    "hot dog": "hotdog",
    "pizza": "",
    "donut": "doughnut, bagel",
    "cake": "cupcake, cheesecake, shortcake, pancake",
    "chair": "stool, seat, armchair, recliner",
    "couch": "sofa, loveseat, futon, settee",
    "potted plant": "houseplant, flowerpot, bonsai",
    "bed": "",
    "dining table": "table, desk",
    "toilet": "urinal, commode, toilet seat",
    "tv": "television, televison, monitor",
    "laptop": "computer, notebook, netbook, laptop computer, macbook",
    "mouse": "",
    "remote": "",
    "keyboard": "",
    "cell phone": "phone, cellphone, mobile phone, telephone, smartphone, iphone",
    "microwave": "",
    "oven": "stove, stove top oven",
    "toaster": "",
    "sink": "",
    "refrigerator": "fridge, freezer",
    "book": "",
    "clock": "",
    "vase": "",
    "scissors": "scissor",
    "teddy bear": "teddy, teddybear",
    "hair drier": "hairdryer, hair dryer",
    "toothbrush": "",
}

_YOUNG = ("baby", "adult")
_ANIMALS = (
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
    "animal",
    "cub",
)
_PASSENGERS = ("jet", "train")
#: pairs that hide the words they are made of, and stand for no object of their own
_HIDING = ("home plate", "train track")
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")


@dataclass(frozen=True)
class Vocabulary:
    """Objects and the words for them."""

    name: str
    #: word or pair of words -> object
    words: Mapping[str, str]

    @property
    def sha256(self) -> str:
        return content_hash(dict(self.words))

    def mentions(self, text: str) -> list[str]:
        """The objects that a text names, in order and with repeats."""
        plain = _WORD.findall(text.lower())
        if "toilet" in plain:
            # the official scorer's rule: a toilet's seat is no chair
            plain = [word for word in plain if word != "seat"]
        found: list[str] = []
        k = 0
        while k < len(plain):
            pair = next(self._pairs(*plain[k : k + 2]), None) if k + 1 < len(plain) else None
            word = pair or self._known(plain[k])
            k += 2 if pair else 1
            if word in self.words:
                found.append(self.words[word])
        return found

    def _pairs(self, first: str, second: str) -> Iterator[str]:
        """What two words together stand for; either may be a plural ("wine glasses", "babies elephants")."""
        for one in singulars(first):
            for two in singulars(second):
                young = one in _YOUNG and two in _ANIMALS
                if young or (one == "passenger" and two in _PASSENGERS):
                    yield two
                elif f"{one} {two}" in self.words or f"{one} {two}" in _HIDING:
                    yield f"{one} {two}"

    def _known(self, word: str) -> str:
        return next((form for form in (word, *singulars(word)) if form in self.words), word)


def vocabulary(rows: Iterable[Iterable[str]], name: str) -> Vocabulary:
    """From rows of words that mean the same, the object's name first."""
    words: dict[str, str] = {}
    for row in rows:
        first, *others = row
        words[first] = first
        for other in others:
            words[other] = first
    return Vocabulary(name, words)


def built_in() -> Vocabulary:
    """COCO's categories with our own synonyms."""
    rows = [[name, *(w.strip() for w in others.split(",") if w.strip())] for name, others in COCO.items()]
    return vocabulary(rows, "COCO, built-in synonyms")


def read_vocabulary(path: str | Path) -> Vocabulary:
    """The official ``synonyms.txt`` (an object a line, its words between commas) or one like it."""
    lines = read_text(path).splitlines()
    rows = [[w.strip().lower() for w in line.split(",") if w.strip()] for line in lines]
    rows = [row for row in rows if row]
    if not rows:
        raise DataError("no synonyms", file=str(path), mend="write one object a line: person, man, woman")
    return vocabulary(rows, f"{Path(path).name} {file_hash(path)[:12]}")


@dataclass(frozen=True)
class CocoImage:
    """One image: its file's name, and the objects in it."""

    file: str
    objects: frozenset[str]


def coco_truth(instances: str | Path, captions: str | Path | None, words: Vocabulary) -> dict[str, CocoImage]:
    """COCO's image ids (as text) with the objects that boxes and captions give.

    Args:
        instances: ``instances_val2014.json``; captions: ``captions_val2014.json`` (the official scorer
            uses both; None takes the boxes alone).

    Raises:
        DataError: a file without COCO's keys, or a category that the vocabulary does not know.
    """
    found: dict[int, set[str]] = {}
    files: dict[int, str] = {}
    whole = _coco(instances, ("images", "annotations", "categories"))
    names: dict[int, str] = {}
    for category in whole["categories"]:
        name = need(category, "name", str, "categories")
        if name not in words.words:
            rule = f"the vocabulary ({words.name}) has no {name!r}"
            raise DataError(rule, file=str(instances), key="categories", mend="add it to the synonyms")
        names[need(category, "id", int, "categories")] = words.words[name]
    for image in whole["images"]:
        number = need(image, "id", int, "images")
        files[number], found[number] = need(image, "file_name", str, "images"), set()
    for note in whole["annotations"]:
        kind = need(note, "category_id", int, "annotations")
        if kind not in names:
            rule = f"category {kind} is not among the categories"
            raise DataError(rule, file=str(instances), key="annotations", mend="give COCO's own file")
        found.setdefault(need(note, "image_id", int, "annotations"), set()).add(names[kind])
    if captions is not None:
        for note in _coco(captions, ("annotations",))["annotations"]:
            number = need(note, "image_id", int, "annotations")
            if number in found:
                found[number] |= set(words.mentions(need(note, "caption", str, "annotations")))
    return {str(number): CocoImage(file, frozenset(found[number])) for number, file in files.items()}


def boxes_truth(path: str | Path, words: Vocabulary) -> dict[str, CocoImage]:
    """The same from JSON lines of ``id``, ``image``, ``captions`` and ``instances`` (``category`` each)."""
    found: dict[str, CocoImage] = {}
    for row, value in read_rows(path):
        if isinstance(value, DataError):
            raise value
        try:
            name, image = str(need(value, "id", (str, int))), need(value, "image", str)
            boxes = [need(box, "category", str, "instances") for box in need(value, "instances", list)]
            unknown = [name for name in boxes if name not in words.words]
            if unknown:
                rule = f"the vocabulary ({words.name}) has no {unknown[0]!r}"
                raise DataError(rule, key="instances", mend="add it to the synonyms")
            told = words.mentions(". ".join(value.get("captions", [])))
        except DataError as error:
            raise row.locate(error) from None
        objects = frozenset(words.words[box] for box in boxes) | frozenset(told)
        # an answer's image_id is a number; COCO's files write it with leading zeros
        found[str(int(name)) if name.isdigit() else name] = CocoImage(image, objects)
    return found


#: what models are asked where a file of answers does not say
QUESTION = "Describe this image in detail."


def benchmark_of(
    truth: Mapping[str, CocoImage],
    words: Vocabulary,
    ids: Iterable[str] | None = None,
    **options: Any,
) -> ObjectBenchmark:
    """CHAIR over the images ``ids`` (all by default). DataError for an id that the truth does not have."""
    names = list(truth if ids is None else ids)
    unknown = [name for name in names if name not in truth]
    if unknown:
        rule = f"{len(unknown)} images have no annotation (first {unknown[0]!r})"
        raise DataError(rule, key="chair", mend="give the annotations of the split that they are from")
    items = tuple(EvalItem(n, Image(id=n, path=truth[n].file), QUESTION) for n in names)
    objects = {name: truth[name].objects for name in names}
    vocabulary = f"{words.name}, sha256 {words.sha256[:12]}"
    return ObjectBenchmark(items, objects, words.mentions, name="chair", vocabulary=vocabulary, **options)


def _coco(path: str | Path, keys: tuple[str, ...]) -> dict[str, Any]:
    whole = read_json(path)
    missing = [key for key in keys if not isinstance(whole, dict) or key not in whole]
    if missing:
        rule = f"not a COCO annotation file: no {missing[0]!r}"
        raise Row(str(path)).locate(DataError(rule, key=missing[0], mend="give COCO's own JSON"))
    return whole
