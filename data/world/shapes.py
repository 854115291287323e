"""The 36 drawings of the world, one small function each, on a 100 x 100 sheet.

Every drawing shows its object in one main colour with a dark outline and a few fixed accents, so
that shape alone tells what it is and the fill alone tells its colour.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from PIL import Image, ImageDraw

from data.world.pen import GREY, INK, PALE, PALETTE, RGB, SKIN, WOOD, Pen

SHEET = 160  # pixels of a sprite's side; drawn at twice that and reduced


def backpack(p: Pen) -> None:
    p.arc(36, 2, 64, 34, 180, 360, w=6)
    p.box(20, 16, 80, 94, r=20)
    p.box(30, 54, 70, 84, fill=p.d, r=6)
    p.line(30, 64, 70, 64)
    p.line(24, 40, 76, 40)


def umbrella(p: Pen) -> None:
    p.line(50, 10, 50, 88, w=6)
    p.arc(50, 76, 70, 96, 0, 180, w=6)
    p.pie(4, 8, 96, 98, 180, 360)
    for x in (34, 65):
        p.line(50, 9, x, 52, w=2.5)
    p.line(50, 2, 50, 10, w=5)


def tie(p: Pen) -> None:
    p.poly(38, 4, 62, 4, 57, 22, 43, 22, fill=p.d)
    p.poly(43, 22, 57, 22, 68, 76, 50, 97, 32, 76)
    p.line(41, 46, 60, 36, w=3)
    p.line(36, 66, 64, 52, w=3)


def bird(p: Pen) -> None:
    p.poly(6, 36, 32, 46, 20, 60)
    p.oval(18, 32, 74, 78)
    p.oval(56, 16, 88, 48)
    p.poly(86, 27, 99, 33, 86, 38, fill=(245, 160, 40))
    p.oval(71, 25, 78, 32, fill=INK)
    p.pie(26, 36, 60, 76, 20, 180, fill=p.d)
    p.line(40, 77, 40, 95)
    p.line(54, 77, 54, 95)


def cat(p: Pen) -> None:
    p.arc(60, 40, 98, 92, 250, 90, w=8, fill=INK)
    p.oval(26, 48, 78, 97)
    p.poly(14, 6, 38, 22, 18, 38)
    p.poly(74, 6, 50, 22, 70, 38)
    p.oval(12, 14, 76, 66)
    for x in (28, 52):
        p.oval(x, 32, x + 9, 43, fill=(190, 235, 90))
        p.line(x + 4.5, 34, x + 4.5, 41, w=3)
    p.poly(40, 47, 48, 47, 44, 53, fill=(245, 150, 165))
    for y in (48, 55):
        p.line(2, y, 28, 51, w=2)
        p.line(60, 51, 88, y, w=2)


def giraffe(p: Pen) -> None:
    for x in (26, 40, 60, 72):
        p.rod(x, 66, x, 97, w=4)
    p.box(20, 52, 78, 74, r=10)
    p.poly(60, 58, 72, 12, 82, 12, 78, 62)
    p.poly(68, 4, 84, 4, 99, 17, 94, 23, 70, 19)
    p.line(72, 5, 70, -2, w=4)
    for x, y in ((30, 56), (44, 60), (58, 56), (70, 40), (72, 26)):
        p.oval(x, y, x + 9, y + 9, fill=(125, 75, 35))
    p.line(20, 56, 10, 72)


def oven(p: Pen) -> None:
    p.box(10, 8, 90, 94, r=4)
    p.line(10, 32, 90, 32)
    for x in (20, 37, 54, 71):
        p.oval(x, 14, x + 11, 25, fill=PALE)
    p.box(22, 46, 78, 84, fill=(80, 60, 50), r=4)
    p.box(30, 62, 70, 78, fill=(255, 150, 60), r=4)
    p.rod(22, 39, 78, 39, w=2, fill=PALE)


def refrigerator(p: Pen) -> None:
    p.box(24, 2, 76, 95, r=6)
    p.line(24, 36, 76, 36, w=4)
    p.rod(66, 14, 66, 28, w=3, fill=GREY)
    p.rod(66, 46, 66, 70, w=3, fill=GREY)
    p.line(30, 95, 30, 99, w=6)
    p.line(70, 95, 70, 99, w=6)


def toaster(p: Pen) -> None:
    p.box(24, 14, 48, 50, fill=(214, 160, 90), r=7)
    p.box(54, 14, 78, 50, fill=(214, 160, 90), r=7)
    p.box(10, 38, 90, 90, r=14)
    p.line(90, 56, 98, 56, w=7)
    p.oval(64, 62, 80, 78, fill=PALE)
    p.line(18, 92, 28, 92, w=7)
    p.line(72, 92, 82, 92, w=7)


def laptop(p: Pen) -> None:
    p.box(16, 14, 84, 66, r=4)
    p.box(23, 21, 77, 59, fill=(170, 215, 250))
    p.poly(16, 68, 84, 68, 98, 88, 2, 88, fill=p.d)
    p.line(20, 75, 80, 75, w=2.5)
    p.line(15, 81, 85, 81, w=2.5)


def phone(p: Pen) -> None:
    p.box(30, 4, 70, 96, r=8)
    p.box(36, 16, 64, 78, fill=(170, 215, 250))
    p.oval(45, 82, 55, 92, fill=PALE)
    p.line(44, 10, 56, 10)


def tv(p: Pen) -> None:
    p.line(50, 20, 30, 2, w=4)
    p.line(50, 20, 70, 2, w=4)
    p.box(6, 20, 94, 82, r=8)
    p.box(14, 28, 72, 74, fill=(170, 215, 250), r=6)
    for y in (34, 48):
        p.oval(78, y, 88, y + 10, fill=PALE)
    p.line(24, 82, 18, 96, w=5)
    p.line(76, 82, 82, 96, w=5)


def apple(p: Pen) -> None:
    p.oval(10, 26, 60, 94)
    p.oval(40, 26, 90, 94)
    p.blot(28, 32, 72, 88)
    p.line(50, 34, 54, 8, w=5, fill=(100, 65, 35))
    p.poly(55, 20, 70, 6, 84, 12, 70, 24, fill=(90, 180, 70))


def banana(p: Pen) -> None:
    p.poly(12, 12, 22, 8, 30, 40, 52, 62, 92, 70, 95, 80, 66, 92, 34, 80, 14, 52)
    p.line(18, 30, 30, 60, 56, 78, 86, 78, w=2.5)
    p.poly(11, 4, 20, 2, 22, 10, 12, 13, fill=(100, 65, 35))


def pizza(p: Pen) -> None:
    p.poly(4, 22, 96, 22, 50, 97)
    p.rod(6, 18, 94, 18, w=10, fill=(190, 125, 60))
    for x, y in ((26, 32), (56, 34), (42, 58)):
        p.oval(x, y, x + 15, y + 15, fill=(185, 40, 40))
    for x, y in ((48, 30), (36, 48), (60, 54)):
        p.line(x, y, x + 6, y + 3, w=4, fill=(60, 130, 50))


def bed(p: Pen) -> None:
    p.box(4, 20, 16, 92, fill=WOOD, r=3)
    p.box(86, 44, 97, 92, fill=WOOD, r=3)
    p.box(10, 56, 92, 80, r=5)
    p.box(16, 42, 42, 60, fill=(252, 252, 252), r=7)
    p.box(40, 50, 92, 74, fill=p.d, r=5)


def chair(p: Pen) -> None:
    p.rod(28, 6, 28, 95, w=5)
    p.rod(72, 56, 72, 95, w=5)
    p.box(24, 8, 36, 56, r=3)
    p.box(22, 50, 80, 64, r=4)
    p.line(28, 80, 72, 80, w=4)


def table(p: Pen) -> None:
    p.box(14, 34, 26, 94, fill=p.d)
    p.box(74, 34, 86, 94, fill=p.d)
    p.box(2, 24, 98, 42, r=4)


def book(p: Pen) -> None:
    p.poly(50, 24, 4, 14, 4, 82, 50, 92)
    p.poly(50, 24, 96, 14, 96, 82, 50, 92)
    p.poly(50, 28, 12, 20, 12, 74, 50, 84, fill=(252, 250, 240))
    p.poly(50, 28, 88, 20, 88, 74, 50, 84, fill=(252, 250, 240))
    for y in (36, 48, 60):
        p.line(18, y - 4, 44, y + 3, w=2.5, fill=GREY)
        p.line(56, y + 3, 82, y - 4, w=2.5, fill=GREY)


def clock(p: Pen) -> None:
    p.oval(6, 6, 94, 94)
    p.oval(18, 18, 82, 82, fill=(250, 250, 245))
    p.line(50, 50, 50, 26, w=5)
    p.line(50, 50, 68, 58, w=5)
    for x0, y0, x1, y1 in ((50, 19, 50, 25), (50, 75, 50, 81), (19, 50, 25, 50), (75, 50, 81, 50)):
        p.line(x0, y0, x1, y1, w=4)


def vase(p: Pen) -> None:
    for x, c in ((32, (240, 90, 130)), (50, (250, 210, 60)), (68, (240, 90, 130))):
        p.line(50, 50, x, 18, w=3.5, fill=(50, 140, 60))
        p.oval(x - 9, 3 if x == 50 else 10, x + 9, 21 if x == 50 else 28, fill=c)
    p.poly(40, 44, 60, 44, 57, 54, 74, 70, 66, 97, 34, 97, 26, 70, 43, 54)
    p.line(28, 74, 72, 74)


def bottle(p: Pen) -> None:
    p.box(42, 2, 58, 14, fill=GREY, r=2)
    p.poly(43, 13, 57, 13, 58, 34, 70, 48, 70, 96, 30, 96, 30, 48, 42, 34)
    p.box(30, 58, 70, 80, fill=(250, 250, 245))


def cup(p: Pen) -> None:
    p.arc(58, 38, 96, 74, 250, 110, w=10)
    p.arc(61, 41, 93, 71, 250, 110, w=4, fill=p.c)
    p.poly(12, 26, 76, 26, 68, 94, 20, 94)
    p.oval(12, 18, 76, 36, fill=(95, 60, 40))
    p.arc(28, -6, 42, 16, 90, 270, w=2.5)
    p.arc(46, -6, 60, 16, 90, 270, w=2.5)


def fork(p: Pen) -> None:
    p.rod(50, 46, 50, 94, w=8)
    for x in (34, 50, 66):
        p.rod(x, 4, x, 36, w=4)
    p.box(30, 30, 70, 50, r=8)


def bench(p: Pen) -> None:
    for y in (24, 38):
        p.box(4, y, 96, y + 11, r=2)
    p.box(2, 56, 98, 68, r=2)
    for x in (14, 86):
        p.line(x, 24, x, 95, w=6)


def hydrant(p: Pen) -> None:
    p.oval(45, 2, 55, 14)
    p.pie(28, 10, 72, 54, 180, 360)
    p.box(32, 32, 68, 90)
    p.box(26, 28, 74, 38, r=3)
    p.box(16, 48, 34, 64, r=3)
    p.box(66, 48, 84, 64, r=3)
    p.oval(42, 48, 58, 64, fill=PALE)
    p.box(22, 86, 78, 97, r=2)


def lamp(p: Pen) -> None:
    p.box(46, 36, 54, 92, fill=GREY)
    p.box(32, 88, 68, 97, r=2)
    p.poly(32, 14, 68, 14, 60, 42, 40, 42, fill=(255, 240, 150))
    p.poly(24, 16, 50, 0, 76, 16)
    p.box(38, 40, 62, 47)


def _person(p: Pen, top: float, hair: RGB, skirt: bool, arms: bool = False) -> None:
    k = (98 - top) / 98

    def y(v: float) -> float:
        return top + v * k

    for x in (44, 57):
        p.rod(x, y(66), x, y(96), w=6, fill=SKIN if skirt else (70, 80, 110))
    if arms:
        p.rod(36, y(42), 16, y(24), w=5, fill=SKIN)
        p.rod(64, y(42), 84, y(24), w=5, fill=SKIN)
    else:
        p.rod(34, y(40), 24, y(64), w=5, fill=SKIN)
        p.rod(66, y(40), 76, y(64), w=5, fill=SKIN)
    if skirt:
        p.poly(38, y(34), 62, y(34), 78, y(80), 22, y(80))
    else:
        p.box(33, y(34), 68, y(70), r=5)
    p.oval(36, y(4), 65, y(4) + 29, fill=SKIN)
    p.pie(35, y(2), 66, y(2) + 30, 180, 360, fill=hair)


def child(p: Pen) -> None:
    _person(p, 30, (235, 170, 60), skirt=False, arms=True)
    p.poly(36, 36, 66, 36, 50, 14, fill=(250, 110, 160))


def man(p: Pen) -> None:
    _person(p, 0, (60, 42, 30), skirt=False)
    p.box(36, 2, 65, 10, fill=(60, 60, 66))
    p.line(28, 11, 73, 11, w=5)


def woman(p: Pen) -> None:
    p.oval(26, 4, 75, 50, fill=(120, 60, 30))
    _person(p, 0, (120, 60, 30), skirt=True)


def ball(p: Pen) -> None:
    p.oval(8, 8, 92, 92)
    p.arc(-32, 8, 42, 92, 304, 56)
    p.arc(58, 8, 132, 92, 124, 236)
    p.line(8, 50, 92, 50)


def kite(p: Pen) -> None:
    p.poly(60, 2, 92, 34, 44, 66, 28, 14)
    p.line(60, 2, 44, 66)
    p.line(28, 14, 92, 34)
    p.line(44, 66, 34, 76, 40, 84, 24, 97, w=3)
    p.poly(32, 70, 40, 80, 28, 82, fill=(250, 250, 250))
    p.poly(30, 84, 38, 92, 24, 94, fill=(250, 250, 250))


def racket(p: Pen) -> None:
    p.rod(42, 58, 16, 94, w=8)
    p.oval(30, 2, 92, 66)
    p.oval(40, 12, 82, 56, fill=(250, 250, 245))
    for v in (50, 61, 72):
        p.line(v, 13, v, 55, w=1.8)
        p.line(41, v - 27, 81, v - 27, w=1.8)


def bicycle(p: Pen) -> None:
    for x in (2, 58):
        p.arc(x, 50, x + 40, 90, 0, 360, w=7)
        p.oval(x + 17, 67, x + 23, 73, fill=INK)
    p.rod(22, 70, 40, 36, 68, 36, 78, 70, w=5)
    p.rod(40, 36, 50, 70, 68, 36, w=5)
    p.rod(22, 70, 50, 70, w=5)
    p.line(68, 36, 64, 20, 78, 20, w=5)
    p.line(32, 28, 48, 28, w=7)


def boat(p: Pen) -> None:
    p.line(50, 4, 50, 66, w=5)
    p.poly(54, 8, 90, 58, 54, 58, fill=(252, 252, 252))
    p.poly(46, 16, 46, 58, 16, 58, fill=PALE)
    p.poly(2, 66, 98, 66, 80, 94, 20, 94)


def car(p: Pen) -> None:
    p.poly(22, 46, 34, 22, 68, 22, 80, 46)
    p.poly(30, 46, 38, 28, 49, 28, 49, 46, fill=(190, 225, 250))
    p.poly(53, 46, 53, 28, 64, 28, 72, 46, fill=(190, 225, 250))
    p.box(3, 44, 97, 74, r=9)
    for x in (14, 62):
        p.oval(x, 62, x + 24, 86, fill=(50, 50, 56))
        p.oval(x + 8, 70, x + 16, 78, fill=PALE)
    p.oval(88, 50, 96, 58, fill=(255, 240, 150))


SHAPES: dict[str, Callable[[Pen], None]] = {
    f.__name__: f
    for f in (
        backpack, umbrella, tie, bird, cat, giraffe, oven, refrigerator, toaster, laptop, phone, tv,
        apple, banana, pizza, bed, chair, table, book, clock, vase, bottle, cup, fork, bench, hydrant,
        lamp, child, man, woman, ball, kite, racket, bicycle, boat, car,
    )
}  # fmt: skip


@lru_cache(maxsize=400)
def sprite(name: str, colour: str) -> Image.Image:
    """RGBA picture of one object, ``SHEET`` pixels square, transparent around it. Do not write to it."""
    side = SHEET * 2
    sheet = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    SHAPES[name](Pen(ImageDraw.Draw(sheet), PALETTE[colour], side / 100))
    return sheet.resize((SHEET, SHEET), Image.Resampling.LANCZOS)
