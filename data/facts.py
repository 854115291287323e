"""Captions for facts, by image: LLaVA-RLHF's image_to_caption.json, or COCO's captions file."""

from __future__ import annotations

from pathlib import Path

from data.detect import detect
from data.formats import coco
from data.formats.llava_rlhf import read_captions as read_image_to_caption


def read_captions(path: str | Path) -> dict[str, list[str]]:
    """Image name -> captions, whichever of the two the file is. Raises DataError naming what is wrong."""
    if any(found.name == coco.CAPTIONS.name for found in detect(path)):
        return {name: facts.captions for name, facts in coco.read_facts(path).items()}
    return read_image_to_caption(path)
