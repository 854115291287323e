"""Open images safely and bring them into one shape. No path leaves the image root. Needs no torch."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

import numpy as np
from PIL import Image as Pil
from PIL import UnidentifiedImageError

from data.jsonl import DataError
from data.schema import Image
from data.urls import MAX_BYTES as MAX_BYTES
from data.urls import fetch

#: larger images are refused before decoding (Pillow's own warning level)
MAX_PIXELS = 89_478_485

# what Pillow's decoders raise on damaged files
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,  # TIFF without a width
    ArithmeticError,  # JPEG 2000 with lengths beyond the machine's
    RuntimeError,  # AVIF, and DDS of an unknown kind
    struct.error,
    zlib.error,
)
#: Pillow hands these to another program (Ghostscript), which is no way to treat a stranger's file
_FOREIGN_DECODERS = {"EPS"}
_ORIENTATION = 0x0112
#: how to turn a picture whose EXIF orientation is the key
_TURNS = {
    2: Pil.Transpose.FLIP_LEFT_RIGHT,
    3: Pil.Transpose.ROTATE_180,
    4: Pil.Transpose.FLIP_TOP_BOTTOM,
    5: Pil.Transpose.TRANSPOSE,
    6: Pil.Transpose.ROTATE_270,
    7: Pil.Transpose.TRANSVERSE,
    8: Pil.Transpose.ROTATE_90,
}
#: those that swap width and height
_SIDEWAYS = {5, 6, 7, 8}
#: formats whose further pictures are frames in time; those of others are pages, or views
_ANIMATED = {"GIF", "PNG", "WEBP", "AVIF", "FLI"}


@dataclass(frozen=True)
class ImageInfo:
    """What an image's header says of it."""

    #: in pixels, upright
    width: int
    height: int
    #: Pillow's names ("JPEG", "PNG"; "RGB", "P") of what is in the file
    format: str
    mode: str
    #: what ``open_image`` does to it that may surprise
    notes: tuple[str, ...]


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
    missing = f"no file {path!r} in {base}"
    try:
        full = (base / path).resolve()
    except (RuntimeError, OSError, UnicodeError) as error:  # a ring of links, or no file's name
        raise DataError(missing, key="image.path", mend="check the name and the image root") from error
    if not full.is_relative_to(base):
        raise outside
    try:
        found = full.is_file()
    except OSError:  # a name longer than the file system allows
        found = False
    if not found:
        raise DataError(missing, key="image.path", mend="check the name and the image root")
    return full


def image_bytes(
    image: Image,
    root: str | Path | None,
    *,
    allow_urls: bool = False,
    cache: str | Path | None = None,
) -> bytes:
    """The encoded bytes of an image, from wherever it is. Raises DataError when they cannot be had.

    A URL is fetched only with ``allow_urls``, and kept in the folder ``cache``, if there is one
    (``data.urls.fetch``).
    """
    with _encoded(image, root, allow_urls, cache) as file:
        try:
            return file.read()
        except OSError as error:
            raise _unreadable(image.path, error) from error


@contextlib.contextmanager
def _encoded(
    image: Image, root: str | Path | None, allow_urls: bool, cache: str | Path | None
) -> Iterator[IO[bytes]]:
    """The encoded image as a file, of which no more is read than is asked for."""
    if image.path is not None:
        try:
            file: IO[bytes] = image_path(image, root).open("rb")
        except OSError as error:
            raise _unreadable(image.path, error) from error
    elif image.url is not None:
        file = io.BytesIO(_fetched(image.url, allow_urls, cache))
    else:
        file = io.BytesIO(image.data or b"")
    with file:
        if file.seek(0, os.SEEK_END) == 0:
            raise _empty(image.id)
        file.seek(0)
        yield file


def _empty(name: str) -> DataError:
    return DataError(f"image {name!r} is empty (0 bytes)", key="image", mend="fetch the file again")


def _unreadable(path: str | None, error: OSError) -> DataError:
    rule = f"{path!r} cannot be read ({error.strerror})"
    return DataError(rule, key="image.path", mend="check the file's permissions")


def _fetched(url: str, allowed: bool, cache: str | Path | None) -> bytes:
    if not allowed:
        mend = "download it into the image root and give its path"
        raise DataError(f"{url!r} is a URL, and URLs are not fetched here", key="image.url", mend=mend)

    def check(data: bytes) -> None:
        if not data:
            raise _empty(url)
        _header(io.BytesIO(data), url, MAX_PIXELS)

    return fetch(url, check, cache)


def _name(image: Image) -> str:
    return image.path or image.url or image.id


def check_image(
    image: Image,
    root: str | Path | None,
    *,
    allow_urls: bool = False,
    cache: str | Path | None = None,
) -> None:
    """Raise DataError unless the image is there and begins as one that ``open_image`` takes.

    Cheap enough for all of a run's images ahead of it: a file's header is read, no pixel is decoded. So
    damage behind the header passes. URLs are refused unless ``allow_urls``.
    """
    with _encoded(image, root, allow_urls, cache) as file:
        _header(file, _name(image), MAX_PIXELS)


def inspect_image(
    image: Image,
    root: str | Path | None,
    *,
    allow_urls: bool = False,
    cache: str | Path | None = None,
) -> ImageInfo:
    """Size, format and oddities of an image, from its header. Raises DataError as ``check_image`` does."""
    name = _name(image)
    with _encoded(image, root, allow_urls, cache) as file:
        picture = _header(file, name, MAX_PIXELS)
        with _decoding(name):
            if picture.format == "PNG" and "exif" not in picture.info and (late := _late_exif(file)):
                picture.info["exif"] = late
            width, height = picture.size
            if picture.format == "TIFF":  # of which some versions of Pillow give the upright size
                width, height = (int(picture.tag_v2[tag]) for tag in (256, 257))  # type: ignore[attr-defined]
            orientation = _orientation(picture)
            if orientation in _SIDEWAYS:
                width, height = height, width
            notes = [
                _frames_note(picture),
                "turned by EXIF" if orientation in _TURNS else "",
                "16 bits a channel" if _is_deep(picture) else "",
                "transparent: laid on white" if picture.has_transparency_data else "",
            ]
            return ImageInfo(width, height, picture.format or "", picture.mode, tuple(filter(None, notes)))


def _frames_note(picture: Pil.Image) -> str:
    try:
        count = getattr(picture, "n_frames", 1)
    except _DECODE_ERRORS:
        return "the frames behind the first are damaged, the first is used"
    if count < 2 or picture.format == "PSD":  # whose frames are its layers
        return ""
    if picture.format in _ANIMATED:
        return f"animated: {count} frames, the first is used"
    return f"{count} pictures in one file, the first is used"


def _late_exif(file: IO[bytes]) -> bytes:
    """The EXIF block of a PNG file, which may stand behind the pixels, as Pillow's info has it, or b""."""
    before = file.tell()
    found = kind = b""
    file.seek(8)
    while kind not in (b"eXIf", b"IEND") and len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            found = b"Exif\0\0" + file.read(length)
        file.seek(length + 4, os.SEEK_CUR)
    file.seek(before)
    return found


def content_hash(
    image: Image,
    root: str | Path | None,
    *,
    allow_urls: bool = False,
    cache: str | Path | None = None,
) -> str:
    """SHA-256 of the encoded bytes, in hex: equal for copies of a file. Raises DataError for no image."""
    data = image_bytes(image, root, allow_urls=allow_urls, cache=cache)
    _header(io.BytesIO(data), _name(image), MAX_PIXELS)
    return hashlib.sha256(data).hexdigest()


def pixel_hash(
    image: Image,
    root: str | Path | None,
    *,
    allow_urls: bool = False,
    cache: str | Path | None = None,
) -> str:
    """SHA-256 of the size and the upright RGB pixels, in hex: equal for copies in any lossless format."""
    picture = open_image(image, root, allow_urls=allow_urls, cache=cache)
    found = hashlib.sha256(b"%dx%d\n" % picture.size)
    found.update(picture.tobytes())
    return found.hexdigest()


def open_image(
    image: Image,
    root: str | Path | None,
    *,
    allow_urls: bool = False,
    max_pixels: int = MAX_PIXELS,
    cache: str | Path | None = None,
) -> Pil.Image:
    """Decode an image: RGB, turned as its EXIF says, transparency over white, first frame.

    Raises DataError for a missing, outside, empty, truncated, unreadable or oversized image.
    """
    data = image_bytes(image, root, allow_urls=allow_urls, cache=cache)
    name = _name(image)
    picture = _header(io.BytesIO(data), name, max_pixels)
    with _decoding(name):
        deep = _is_deep(picture)
        picture.load()
        turn = _TURNS.get(_orientation(picture))
        rgb = _to_rgb(picture, deep)
        return rgb if turn is None else rgb.transpose(turn)


def _header(file: IO[bytes], name: str, max_pixels: int) -> Pil.Image:
    """The image in a file, its size checked, its pixels not decoded yet."""
    with _decoding(name):
        picture = Pil.open(file)
    if picture.format in _FOREIGN_DECODERS:
        rule = f"{name!r} is {picture.format}, which is not read here"
        raise DataError(rule, key="image", mend="save it as PNG or JPEG")
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
    except (Pil.DecompressionBombError, Pil.DecompressionBombWarning) as error:
        raise DataError(f"{name!r} is too large ({error})", key="image", mend="shrink the image") from error
    except _DECODE_ERRORS as error:
        # Pillow names the open file here, by its address
        reason = "no known image format" if isinstance(error, UnidentifiedImageError) else error
        rule = f"{name!r} cannot be decoded ({reason})"
        raise DataError(rule, key="image", mend="replace the file; it is damaged or no image") from error


def _orientation(picture: Pil.Image) -> int:
    """EXIF's orientation, 1..8; of a PNG, what was read so far (Pillow would decode it for the rest)."""
    try:
        found = Pil.Image.getexif(picture).get(_ORIENTATION)
    except _DECODE_ERRORS:
        return 1  # a damaged EXIF block says nothing about the pixels
    return found if isinstance(found, int) and found in _TURNS else 1


def _is_deep(picture: Pil.Image) -> bool:
    """Whether a picture that is not decoded yet has sixteen bits a channel ("BGR;16" are 16 a pixel)."""
    layout = str(getattr(picture, "tile", ""))
    return picture.mode.startswith("I;16") or re.search(r"(?<!BGR);16[BLN]?['\"]", layout) is not None


def _to_rgb(picture: Pil.Image, deep: bool) -> Pil.Image:
    through = picture.info.get("transparency")
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.nan_to_num(np.asarray(picture, dtype=np.float64))
        # sixteen bits to eight; Pillow would clip everything above 255 to white
        scale = 257.0 if deep or values.max(initial=0) > 255 else 1.0
        grey = np.clip(values / scale, 0, 255).round().astype(np.uint8)
        if isinstance(through, int):
            grey[values == through] = 255
        return Pil.fromarray(grey).convert("RGB")
    if deep and isinstance(through, tuple):
        # Pillow brings the pixels to eight bits, by their upper byte, but not the transparent colour
        picture.info["transparency"] = tuple(value >> 8 for value in through)
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
