"""Pictures made small, for pages that carry them inside."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image as Pil

from data.images import open_image
from data.jsonl import DataError
from data.schema import Image


def thumbnail(image: Image, root: str | Path | None, side: int) -> bytes | None:
    """The picture within ``side`` × ``side`` pixels; None where it cannot be had. Nothing is fetched.

    PNG where it fits half of that as it is (drawings stay sharp), else JPEG.
    """
    try:
        opened = open_image(image, root)
    except DataError:
        return None
    kind = "PNG" if max(opened.size) <= side // 2 else "JPEG"
    opened.thumbnail((side, side), Pil.Resampling.LANCZOS)
    buffer = io.BytesIO()
    opened.save(buffer, kind, **({"quality": 80} if kind == "JPEG" else {}))
    return buffer.getvalue()
