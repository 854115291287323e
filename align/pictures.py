"""The images of a batch, each opened and encoded once however many samples show it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from align.generate import grid_features
from align.models.lmm import Lmm, is_llava
from align.render import ImageInput, Renderer
from data.images import open_image
from data.schema import Image


def open_pictures(images: Sequence[Image | None], root: str | Path | None) -> list[ImageInput]:
    """Decode the images, in order; equal records share one picture, None stays None.

    Raises DataError for an image that cannot be read.
    """
    keys = [None if i is None else (i.id, i.path, i.url, i.data) for i in images]
    opened: dict[tuple[str | bytes | None, ...], ImageInput] = {}
    for key, image in zip(keys, images):
        if key is not None and image is not None and key not in opened:
            opened[key] = open_image(image, root)
    return [None if key is None else opened[key] for key in keys]


def encode_pictures(lmm: Lmm, renderer: Renderer, pictures: Sequence[ImageInput]) -> list[ImageInput]:
    """The vision tower's features (N, D) in each picture's place, computed once for each distinct picture.

    For a model that cannot take features (any but LLaVA) the pictures come back as they are.
    """
    if not is_llava(lmm.model):
        return list(pictures)
    distinct = {id(p): p for p in pictures if p is not None}
    features = grid_features(lmm, renderer, list(distinct.values()))
    of = dict(zip(distinct, features, strict=True))
    return [None if p is None else of[id(p)] for p in pictures]
