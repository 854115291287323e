"""The colours of the world and the pen that its drawings are made with."""

from __future__ import annotations

from PIL import ImageDraw

RGB = tuple[int, int, int]
PALETTE: dict[str, RGB] = {
    "red": (222, 45, 48),
    "orange": (248, 140, 30),
    "yellow": (250, 215, 50),
    "green": (50, 165, 75),
    "blue": (45, 105, 220),
    "purple": (150, 70, 190),
    "white": (246, 246, 246),
    "black": (52, 52, 58),
}
INK: RGB = (28, 28, 34)
SKIN: RGB = (243, 196, 160)
GREY: RGB = (150, 154, 162)
PALE: RGB = (225, 230, 238)
WOOD: RGB = (150, 98, 52)


class Pen:
    """Draws in sheet units (0..100) with an outline; ``c`` is the main colour, ``d`` a darker one."""

    def __init__(self, draw: ImageDraw.ImageDraw, colour: RGB, scale: float) -> None:
        self._draw, self._s = draw, scale
        self.c = colour
        self.d: RGB = (colour[0] * 7 // 10, colour[1] * 7 // 10, colour[2] * 7 // 10)
        self.w = max(1, round(3.2 * scale))

    def _p(self, xy: tuple[float, ...]) -> list[float]:
        return [v * self._s for v in xy]

    def box(self, *xy: float, fill: RGB | None = None, r: float = 0) -> None:
        self._draw.rounded_rectangle(self._p(xy), r * self._s, fill or self.c, INK, self.w)

    def oval(self, *xy: float, fill: RGB | None = None) -> None:
        self._draw.ellipse(self._p(xy), fill or self.c, INK, self.w)

    def poly(self, *xy: float, fill: RGB | None = None) -> None:
        points = self._p(xy)
        self._draw.polygon(points, fill or self.c)
        self._draw.line([*points, *points[:4]], INK, self.w, joint="curve")

    def line(self, *xy: float, w: float = 3.2, fill: RGB = INK) -> None:
        self._draw.line(self._p(xy), fill, max(1, round(w * self._s)), joint="curve")

    def rod(self, *xy: float, w: float = 7, fill: RGB | None = None) -> None:
        """A thick coloured line with an outline."""
        self.line(*xy, w=w + 6)
        self.line(*xy, w=w, fill=fill or self.c)

    def arc(self, x0: float, y0: float, x1: float, y1: float, a: float, b: float, w: float = 3.2,
            fill: RGB = INK) -> None:  # fmt: skip
        self._draw.arc(self._p((x0, y0, x1, y1)), a, b, fill, max(1, round(w * self._s)))

    def pie(
        self, x0: float, y0: float, x1: float, y1: float, a: float, b: float, fill: RGB | None = None
    ) -> None:
        self._draw.pieslice(self._p((x0, y0, x1, y1)), a, b, fill or self.c, INK, self.w)

    def blot(self, *xy: float) -> None:
        """An oval of the main colour without an outline: joins what lies below it."""
        self._draw.ellipse(self._p(xy), self.c)
