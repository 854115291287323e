"""POPE questions from any set of images whose objects are known (Li et al. 2023, section 4).

Three objects that are there and three that are not, an image. Absent ones are drawn at random, or are the
most frequent ones (popular), or those that most often stand beside the present ones (adversarial); both are
counted over the images given, as POPE counts them over its own.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from data.formats.pope import SPLITS, PopeItem
from data.jsonl import DataError


def question(name: str) -> str:
    """POPE's own wording."""
    return f"Is there {'an' if name[:1].lower() in tuple('aeiou') else 'a'} {name} in the image?"


def sample(
    objects: Mapping[str, Sequence[str]],
    vocabulary: Sequence[str] | None = None,
    *,
    rng: random.Random,
    each: int = 3,
    ask: Callable[[str], str] = question,
) -> dict[str, list[PopeItem]]:
    """The three splits' questions, ``each`` of either label an image, yes and no by turns.

    Args:
        objects: image file -> the distinct objects in it. ``vocabulary``: what an absent object is drawn
            from; by default every object of any image.

    Raises:
        DataError: an image with fewer than ``each`` objects, or with fewer absent ones.
    """
    frequency = Counter(name for names in objects.values() for name in names)
    words = list(vocabulary) if vocabulary is not None else sorted(frequency)
    together: dict[str, Counter[str]] = {name: Counter() for name in {*words, *frequency}}
    for names in objects.values():
        for name in names:
            together[name].update(other for other in names if other != name)
    found: dict[str, list[PopeItem]] = {split: [] for split in SPLITS}
    for image, names in objects.items():
        missing = [word for word in words if word not in names]
        if len(names) < each or len(missing) < each:
            rule = f"{image!r} has {len(names)} objects, and {len(missing)} others are known"
            mend = f"leave out images with fewer than {each} of either"
            raise DataError(rule, key="objects", mend=mend)
        present = rng.sample(list(names), each)
        near = Counter({word: sum(together[name][word] for name in names) for word in missing})
        negatives = {
            "random": rng.sample(missing, each),
            "popular": sorted(missing, key=lambda word: (-frequency[word], word))[:each],
            "adversarial": sorted(missing, key=lambda word: (-near[word], word))[:each],
        }
        for split, items in found.items():
            for yes, no in zip(present, negatives[split], strict=True):
                for name, label in ((yes, "yes"), (no, "no")):
                    number = len(items) + 1
                    row = {"question_id": number, "image": image, "text": ask(name), "label": label}
                    items.append(PopeItem.model_validate(row))
    return found
