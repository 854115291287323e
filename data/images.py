"""Open images safely and bring them into one shape. No path leaves the image root. Needs no torch."""

from __future__ import annotations

import contextlib
import io
import struct
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

import numpy as np
from PIL import Image as Pil
from PIL import ImageOps, UnidentifiedImageError

from data.jsonl import DataError
from data.schema import Image

#: larger images are refused before decoding (Pillow's own warning level)
MAX_PIXELS = 89_478_485
#: larger downloads are refused
MAX_BYTES = 64 * 2**20

# what Pillow's decoders raise on damaged files
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


def image_path(image: Image, root: str | Path | None) -> Path:
    """The file of an image given by ``path``, which must stay inside ``root`` (links followed).

    Raises DataError when there is no root, the path is absolute or leaves the root, or no file is there.
    """
    path = image.path
    if path is None:
        raise DataError("the image has no path", key="image", mend="give a file relative to the image root")
    if root is None:
        raise DataError(
            f"{path!r} is relative to an image root, and none was given",
            key="image.path",
            mend="give the image root (images=DIR, or --images DIR)",
        )
    base = Path(root).resolve()
    outside = DataError(
        f"{path!r} leaves the image root {base}",
        key="image.path",
        mend="use a path below the root, or give the folder that holds the real file as root",
    )
    if not path or "\0" in path or PurePosixPath(path).is_absolute() or PureWindowsPath(path).drive:
        raise outside
    full = (base / path).resolve()
    if not full.is_relative_to(base):
        raise outside
    try:
        found = full.is_file()
    except OSError:  # a name longer than the file system allows
        found = False
    if not found:
        rule = f"no file {path!r} in {base}"
        raise DataError(rule, key="image.path", mend="check the name and the image root")
    return full


def image_bytes(image: Image, root: str | Path | None, *, allow_urls: bool = False) -> bytes:
    """The encoded bytes of an image, from wherever it is. Raises DataError when they cannot be had."""
    if image.data is not None:
        data = image.data
    elif image.url is not None:
        data = _download(image.url, allow_urls)
    else:
        path = image_path(image, root)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise _unreadable(image.path, error) from error
    if not data:
        raise DataError(f"image {image.id!r} is empty (0 bytes)", key="image", mend="fetch the file again")
    return data


def _unreadable(path: str | None, error: OSError) -> DataError:
    rule = f"{path!r} cannot be read ({error.strerror})"
    return DataError(rule, key="image.path", mend="check the file's permissions")


def _download(url: str, allowed: bool) -> bytes:
    if not allowed:
        mend = "download it into the image root and give its path"
        raise DataError(f"{url!r} is a URL, and URLs are not fetched here", key="image.url", mend=mend)
    if not url.startswith(("http://", "https://")):
        raise DataError(f"{url!r} is not an http(s) address", key="image.url", mend="use http(s) or a path")
    try:
        with urllib.request.urlopen(url, timeout=30) as reply:
            data = reply.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        rule = f"{url!r} cannot be fetched ({error})"
        raise DataError(rule, key="image.url", mend="check the address or give a path") from error
    if len(data) > MAX_BYTES:
        rule = f"{url!r} holds more than {MAX_BYTES} bytes"
        raise DataError(rule, key="image.url", mend="download and shrink it")
    return data


def check_image(image: Image, root: str | Path | None) -> None:
    """Raise DataError unless the image is there and begins as one that ``open_image`` takes; refuse URLs.

    Cheap enough for all of a run's images ahead of it: a file's header is read, no pixel is decoded. So
    damage behind the header passes.
    """
    if image.path is None:
        _header(io.BytesIO(image_bytes(image, root)), image.id, MAX_PIXELS)
        return
    try:
        file = image_path(image, root).open("rb")
    except OSError as error:
        raise _unreadable(image.path, error) from error
    with file:
        _header(file, image.path, MAX_PIXELS)


def open_image(
    image: Image,
    root: str | Path | None,
    *,
    allow_urls: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Pil.Image:
    """Decode an image: RGB, turned as its EXIF says, transparency over white, first frame.

    Raises DataError for a missing, outside, empty, truncated, unreadable or oversized image.
    """
    data = image_bytes(image, root, allow_urls=allow_urls)
    name = image.path or image.url or image.id
    picture = _header(io.BytesIO(data), name, max_pixels)
    with _decoding(name):
        picture.load()
    return _to_rgb(_upright(picture))


def _header(file: IO[bytes], name: str, max_pixels: int) -> Pil.Image:
    """The image in a file, its size checked, its pixels not decoded yet."""
    with _decoding(name):
        picture = Pil.open(file)
    width, height = picture.size
    if width < 1 or height < 1:
        raise DataError(f"{name!r} has no area ({width}x{height})", key="image", mend="replace the image")
    if width * height > max_pixels:
        rule = f"{name!r} is {width}x{height}, more than {max_pixels} pixels"
        raise DataError(rule, key="image", mend="shrink the image")
    return picture


@contextlib.contextmanager
def _decoding(name: str) -> Iterator[None]:
    try:
        yield
    except Pil.DecompressionBombError as error:
        raise DataError(f"{name!r} is too large ({error})", key="image", mend="shrink the image") from error
    except _DECODE_ERRORS as error:
        # Pillow names the open file here, by its address
        reason = "no known image format" if isinstance(error, UnidentifiedImageError) else error
        rule = f"{name!r} cannot be decoded ({reason})"
        raise DataError(rule, key="image", mend="replace the file; it is damaged or no image") from error


def _upright(picture: Pil.Image) -> Pil.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except _DECODE_ERRORS:
        return picture  # a damaged EXIF block says nothing about the pixels


def _to_rgb(picture: Pil.Image) -> Pil.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float64)
        # sixteen bits to eight; Pillow would clip everything above 255 to white
        scale = 257.0 if picture.mode.startswith("I;16") or values.max(initial=0) > 255 else 1.0
        return Pil.fromarray(np.clip(values / scale, 0, 255).round().astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        return Pil.alpha_composite(Pil.new("RGBA", layer.size, (255, 255, 255, 255)), layer).convert("RGB")
    return picture.convert("RGB")


def pad_square(img: Pil.Image, fill: tuple[int, int, int]) -> Pil.Image:
    """The image in the middle of a square of its longer side; ``fill`` is RGB in 0..255."""
    width, height = img.size
    side = max(width, height)
    if width == height:
        return img
    square = Pil.new(img.mode, (side, side), fill)
    square.paste(img, ((side - width) // 2, (side - height) // 2))
    return square
