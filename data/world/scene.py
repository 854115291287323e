"""Scenes of the built-in world: what stands where, drawn from a skewed but fully known distribution.

A scene is a 3 x 3 grid of cells in one environment. Things that usually stand together do so on
purpose (``THEMES`` and ``PARTNERS``): a model that leans on that prior names what is not there,
which is the failure that this toolkit measures and mends.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from typing import Any

#: super-category -> its three objects (the twelve super-categories of COCO)
CATEGORIES: dict[str, tuple[str, str, str]] = {
    "accessory": ("backpack", "umbrella", "tie"),
    "animal": ("bird", "cat", "giraffe"),
    "appliance": ("oven", "refrigerator", "toaster"),
    "electronic": ("laptop", "phone", "tv"),
    "food": ("apple", "banana", "pizza"),
    "furniture": ("bed", "chair", "table"),
    "indoor": ("book", "clock", "vase"),
    "kitchen": ("bottle", "cup", "fork"),
    "outdoor": ("bench", "hydrant", "lamp"),
    "person": ("child", "man", "woman"),
    "sports": ("ball", "kite", "racket"),
    "vehicle": ("bicycle", "boat", "car"),
}
OBJECTS: tuple[str, ...] = tuple(name for group in CATEGORIES.values() for name in group)
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
ENVIRONMENTS = ("park", "street", "beach", "kitchen", "bedroom", "office")
CELLS = (
    "at the top left", "at the top", "at the top right",
    "on the left", "in the middle", "on the right",
    "at the bottom left", "at the bottom", "at the bottom right",
)  # fmt: skip
WORDS = ("OPEN", "STOP", "CAFE", "SALE", "EXIT", "ZOO", "BUS", "TAXI")

#: theme -> (environment, what usually stands there)
THEMES: dict[str, tuple[str, tuple[str, ...]]] = {
    "breakfast": ("kitchen", ("toaster", "cup", "apple", "banana", "table", "refrigerator")),
    "dinner": ("kitchen", ("pizza", "fork", "bottle", "oven", "table", "chair")),
    "work": ("office", ("laptop", "phone", "book", "tie", "chair", "clock")),
    "rest": ("bedroom", ("bed", "tv", "book", "cat", "vase", "clock")),
    "seaside": ("beach", ("boat", "umbrella", "woman", "child", "ball", "bird")),
    "play": ("park", ("ball", "kite", "racket", "child", "bench", "giraffe")),
    "traffic": ("street", ("car", "bicycle", "hydrant", "lamp", "man", "bench")),
    "travel": ("street", ("backpack", "man", "woman", "umbrella", "car", "phone")),
}

#: the thing that tempts -> the thing that usually comes with it
PARTNERS: dict[str, str] = {
    "pizza": "fork", "toaster": "cup", "laptop": "phone", "bed": "clock",
    "tv": "cat", "boat": "umbrella", "child": "ball", "giraffe": "bench",
    "car": "hydrant", "bicycle": "lamp", "backpack": "man", "table": "chair",
}  # fmt: skip

#: colours that a thing has half of the time; the other half is uniform
TYPICAL = {
    "banana": "yellow", "apple": "red", "hydrant": "red", "tv": "black", "refrigerator": "white",
    "pizza": "orange", "giraffe": "yellow", "bottle": "green", "car": "red", "boat": "blue",
}  # fmt: skip


@dataclass(frozen=True)
class Group:
    """One to three alike objects: name, colour, the cells they stand in, and how well they are seen."""

    name: str
    colour: str
    cells: tuple[int, ...]
    #: how much a caption writer notices it, 0..1
    salience: float = 1.0

    @property
    def count(self) -> int:
        return len(self.cells)


@dataclass(frozen=True)
class Scene:
    """A fully known picture. ``seed`` fixes the pixels (jitter, noise) as ``groups`` fixes the content."""

    id: str
    theme: str
    environment: str
    groups: tuple[Group, ...]
    seed: int
    #: (cell, word) of a board with legible text, if there is one
    text: tuple[int, str] | None = None
    difficulty: float = 0.5

    @property
    def objects(self) -> list[str]:
        return [g.name for g in self.groups]

    def group(self, name: str) -> Group | None:
        return next((g for g in self.groups if g.name == name), None)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Scene:
        groups = tuple(Group(g["name"], g["colour"], tuple(g["cells"]), g["salience"]) for g in row["groups"])
        text = tuple(row["text"]) if row["text"] else None
        return cls(row["id"], row["theme"], row["environment"], groups, row["seed"], text, row["difficulty"])


def told_order(group: Group) -> int:
    """The order in which a scene's things are told: reading order, by the first cell.

    A fixed order over names instead was tried and learned far worse: the words of one thing then come from
    patches anywhere in the picture.
    """
    return group.cells[0]


def _next_object(rng: random.Random, theme: str, chosen: list[str]) -> str:
    """A partner of something present (70 %), else one of the theme (80 %), else anything."""
    tempted = [PARTNERS[c] for c in chosen if c in PARTNERS and PARTNERS[c] not in chosen]
    if tempted and rng.random() < 0.7:
        return rng.choice(tempted)
    pool = THEMES[theme][1] if rng.random() < 0.8 else OBJECTS
    return rng.choice([name for name in pool if name not in chosen])


def sample_scene(seed: int, index: int, difficulty: float = 0.5) -> Scene:
    """The ``index``-th scene of the stream ``seed``; the same arguments give the same scene.

    ``difficulty`` 0..1 scales how faint, small, covered and noisy everything is drawn.
    """
    if not 0.0 <= difficulty <= 1.0:
        raise ValueError(f"difficulty is {difficulty}; it must lie between 0 and 1")
    rng = random.Random(f"scene/{seed}/{index}")
    theme = rng.choice(list(THEMES))
    names: list[str] = []
    for _ in range(rng.choices((2, 3, 4), (0.3, 0.4, 0.3))[0]):
        names.append(_next_object(rng, theme, names))
    cells = list(range(9))
    rng.shuffle(cells)
    groups = []
    for i, name in enumerate(names):
        most = len(cells) - (len(names) - i - 1)
        count = min(most, rng.choices((1, 2, 3), (0.75, 0.17, 0.08))[0])
        taken = tuple(sorted(cells.pop() for _ in range(count)))
        typical = TYPICAL.get(name)
        colour = typical if typical and rng.random() < 0.5 else rng.choice(COLOURS)
        salience = rng.choices((0.85, 0.5, 0.15), (0.55, 0.3, 0.15))[0]
        groups.append(Group(name, colour, taken, salience))
    groups.sort(key=told_order)
    text = (cells.pop(), rng.choice(WORDS)) if cells and rng.random() < 0.25 else None
    environment = THEMES[theme][0] if rng.random() < 0.85 else rng.choice(ENVIRONMENTS)
    return Scene(
        f"w{seed}-{index:06d}", theme, environment, tuple(groups), rng.getrandbits(31), text, difficulty
    )


def jumble(scene: Scene) -> Scene:
    """The scene with other things in its places, drawn without regard to theme, partners or usual colours."""
    rng = random.Random(f"jumble/{scene.id}")
    names = rng.sample(OBJECTS, len(scene.groups))
    groups = [
        replace(g, name=n, colour=rng.choice(COLOURS)) for g, n in zip(scene.groups, names, strict=True)
    ]
    return replace(scene, groups=tuple(groups))
