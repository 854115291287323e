"""Scene -> picture. The same scene gives the same pixels; any size can be asked for."""

from __future__ import annotations

import random
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from data.world.pen import PALETTE, RGB
from data.world.scene import COLOURS, OBJECTS, Scene
from data.world.shapes import sprite

#: side of the picture that the world's models see, pixels
SIDE = 96

_BYTES = np.arange(256)

#: environment -> (upper tone, lower tone, share of the height that is upper)
GROUNDS: dict[str, tuple[RGB, RGB, float]] = {
    "park": ((176, 219, 245), (156, 206, 128), 0.45),
    "street": ((205, 212, 222), (150, 152, 160), 0.55),
    "beach": ((120, 196, 235), (240, 222, 168), 0.5),
    "kitchen": ((250, 236, 205), (206, 160, 122), 0.68),
    "bedroom": ((214, 202, 236), (170, 138, 160), 0.66),
    "office": ((224, 232, 228), (128, 158, 160), 0.7),
}


@lru_cache(maxsize=64)
def _ground(environment: str, side: int) -> Image.Image:
    upper, lower, share = GROUNDS[environment]
    picture = Image.new("RGB", (side, side), upper)
    draw = ImageDraw.Draw(picture)
    horizon = round(side * share)
    draw.rectangle((0, horizon, side, side), lower)
    draw.line((0, horizon, side, horizon), tuple(v * 8 // 10 for v in lower), max(1, side // 96))
    unit = side / 96
    if environment == "park":
        draw.ellipse((78 * unit, 4 * unit, 92 * unit, 18 * unit), (255, 240, 170))
    elif environment == "street":
        for x in range(2, 96, 20):
            draw.rectangle((x * unit, 84 * unit, (x + 10) * unit, 87 * unit), (235, 235, 225))
    elif environment == "beach":
        draw.rectangle((0, horizon - 10 * unit, side, horizon), (70, 150, 205))
    elif environment == "kitchen":
        for x in range(0, 96, 16):
            draw.line((x * unit, horizon, x * unit, side), (186, 140, 104), max(1, round(unit)))
    elif environment == "bedroom":
        for x in range(8, 96, 16):
            draw.line((x * unit, 0, x * unit, horizon), (204, 190, 228), max(1, round(2 * unit)))
    else:
        draw.rectangle((60 * unit, 6 * unit, 90 * unit, 30 * unit), (190, 222, 240), (150, 165, 165))
    return picture


def _board(word: str, side: int) -> Image.Image:
    """A signboard as wide as a cell with one legible word."""
    big = side * 4
    board = Image.new("RGBA", (big, big), (0, 0, 0, 0))
    draw = ImageDraw.Draw(board)
    draw.rectangle((big * 0.46, big * 0.6, big * 0.54, big), (90, 70, 55))
    draw.rounded_rectangle(
        (0, big * 0.22, big - 1, big * 0.68), big // 16, (252, 250, 240), (30, 30, 36), big // 24
    )
    font = ImageFont.load_default(size=big * (0.34 if len(word) == 4 else 0.4))
    draw.text((big / 2, big * 0.45), word, (30, 30, 36), font, anchor="mm", stroke_width=max(1, big // 64))
    return board.resize((side, side), Image.Resampling.LANCZOS)


def draw_scene(scene: Scene, side: int = SIDE, *, clean: bool = False) -> Image.Image:
    """RGB picture of ``side`` x ``side`` pixels.

    ``scene.difficulty`` d makes objects fainter (opacity down to 1 - 0.55 d), smaller (down to 62 %
    at d = 1), partly covered (chance 0.3 d) and adds pixel noise (sigma 30 d of 255).
    ``clean`` draws the same scene without any of that, for people to look at.
    """
    rng = random.Random(f"draw/{scene.seed}")
    d = 0.0 if clean else scene.difficulty
    picture = _ground(scene.environment, side).copy()
    cell = side / 3
    for group in scene.groups:
        for where in group.cells:
            size, fade, cover = rng.random(), rng.random(), rng.random()
            jitter = (rng.uniform(-1, 1), rng.uniform(-1, 1))
            shade = rng.randrange(3)
            width = round(cell * (0.95 - (0.06 + 0.38 * d) * size))
            art = sprite(group.name, group.colour).resize((width, width), Image.Resampling.BILINEAR)
            alpha = 1 - 0.55 * d * fade
            if alpha < 1:
                art.putalpha(art.getchannel("A").point((_BYTES * alpha).astype(int).tolist()))
            room = (cell - width) / 2
            x = round((where % 3) * cell + room * (1 + jitter[0]))
            y = round((where // 3) * cell + room * (1 + jitter[1]))
            picture.paste(art, (x, y), art)
            if cover < 0.3 * d:
                upper, lower, _ = GROUNDS[scene.environment]
                tone = tuple(v - 12 * (shade + 1) for v in (lower if where // 3 > 1 else upper))
                draw = ImageDraw.Draw(picture)
                draw.rounded_rectangle((x, y + width * 0.5, x + width, y + width), width // 6, tone)
    if scene.text:
        where, word = scene.text
        board = _board(word, round(cell * 0.97))
        picture.paste(board, (round((where % 3) * cell), round((where // 3) * cell)), board)
    if d > 0:
        noise = np.random.default_rng(scene.seed).normal(0, 30 * d, (side, side, 3))
        picture = Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))
    return picture


def blur(picture: Image.Image, radius: float) -> Image.Image:
    """Gaussian blur in pixels: the weak eyes of the vision study."""
    return picture.filter(ImageFilter.GaussianBlur(radius)) if radius > 0 else picture


def contact_sheet(side: int = 64) -> Image.Image:
    """All objects (rows) in all colours (columns), with names: for a person to check the drawings."""
    label = 84
    sheet = Image.new("RGB", (2 * (label + side * len(COLOURS)), side * len(OBJECTS) // 2), (236, 238, 242))
    draw = ImageDraw.Draw(sheet)
    for i, name in enumerate(OBJECTS):
        left, top = (i % 2) * (label + side * len(COLOURS)), (i // 2) * side
        draw.text((left + 6, top + side // 2 - 6), name, (30, 30, 36), ImageFont.load_default(size=13))
        for j, colour in enumerate(PALETTE):
            art = sprite(name, colour).resize((side - 6, side - 6), Image.Resampling.LANCZOS)
            sheet.paste(art, (left + label + j * side + 3, top + 3), art)
    return sheet
