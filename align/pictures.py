"""The images of a batch, each opened and encoded once however many samples show it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from PIL import Image as PILImage

from align.generate import grid_features
from align.models.lmm import Lmm, is_llava
from align.render import ImageInput, Renderer
from data.images import open_image
from data.jsonl import DataError
from data.schema import Image

PictureKey: TypeAlias = tuple[str | bytes | None, ...]


def picture_key(image: Image) -> PictureKey:
    """What tells pictures apart. An id alone may not: foreign rows of other bytes may bring the same path."""
    return image.id, image.path, image.url, image.data


def open_picture(image: Image, root: str | Path | None, record: str | None) -> PILImage.Image:
    """Decode an image. The DataError for one that cannot be read names the ``record`` that shows it."""
    try:
        return open_image(image, root)
    except DataError as error:
        if record is None:
            raise
        raise DataError(f"{error.rule}, in record {record!r}", key=error.key, mend=error.mend) from error


def open_pictures(
    images: Sequence[Image | None], root: str | Path | None, records: Sequence[str] | None = None
) -> list[ImageInput]:
    """Decode the images, in order; equal ones share one picture, None stays None.

    Raises DataError for an image that cannot be read; with ``records``, the ids of the records that the
    images belong to, it names the first that shows it.
    """
    keys = [None if image is None else picture_key(image) for image in images]
    opened: dict[PictureKey, ImageInput] = {}
    for at, (key, image) in enumerate(zip(keys, images)):
        if key is not None and image is not None and key not in opened:
            opened[key] = open_picture(image, root, None if records is None else records[at])
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
