"""A pair's picture as bytes for a browser: no path but the record's own, none outside the image root."""

from __future__ import annotations

import hashlib
import io
from functools import lru_cache
from pathlib import Path

from apps.annotate.errors import not_found
from apps.annotate.results import Picture
from data.errors import DataError
from data.images import image_bytes, image_path, inspect_image, open_image
from data.schema import Image

#: Pillow's name -> what a browser shows as it is; anything else is sent as PNG
_SHOWN = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "AVIF": "image/avif",
}


def picture_of(image: Image | None, root: Path | None) -> Picture:
    """The picture, with the type that its own header tells, whatever its file is called.

    Raises:
        Refused: there is none, it leaves the image root (links followed), or it cannot be shown (404).
    """
    if image is None:
        raise not_found("this pair has no picture")
    try:
        data = image_bytes(image, root)
        plain = Image(id=image.id, data=data)
        kind = inspect_image(plain, None).format
        if kind not in _SHOWN:
            data, kind = _as_png(plain), "PNG"
    except DataError:
        # the message would tell a labeler the path
        raise not_found("the picture cannot be shown; skip the pair and say so") from None
    return Picture(data, _SHOWN[kind], etag_of(image, root))


def _as_png(image: Image) -> bytes:
    file = io.BytesIO()
    open_image(image, None).save(file, format="PNG")
    return file.getvalue()


def etag_of(image: Image, root: Path | None) -> str:
    """A name for the picture's present contents, without reading them: from a file's size and time."""
    if image.data is not None:
        return _hash(image.data)
    try:
        stat = image_path(image, root).stat()
    except (DataError, OSError):
        raise not_found("the picture cannot be shown; skip the pair and say so") from None
    return _hash(f"{image.path}/{stat.st_size}/{stat.st_mtime_ns}".encode())


@lru_cache(maxsize=1024)
def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
