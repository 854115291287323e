"""Line and bar charts as inline SVG, drawn by hand: no script, no network, readable when narrow.

Colours are CSS variables of the page (``--s0`` .. ``--s7``), so one drawing serves light and dark;
dashes and marks tell series apart without colour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from evals.metrics import Interval

#: drawing units; the page scales the drawing, so text stays legible down to phone width
WIDTH, HEIGHT = 460, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 12, 42
_COLOURS = 8
_DASHES = ("", "7 4", "2 3", "9 3 2 3")

Point = tuple[float, float]
Value = float | Interval | None


def number(value: float) -> str:
    """A tick or tooltip label: short, without a trailing zero tail."""
    if value != 0 and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.1e}".replace("e+0", "e").replace("e-0", "e−").replace("e+", "e").replace("-", "−")
    text = f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return text.replace("-", "−")


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers (steps of 1, 2 or 5 times a power of ten) inside [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= 0.7 * rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def _span(values: Sequence[float], *, zero: bool = False) -> tuple[float, float]:
    """Axis limits around finite values: a little air, never empty, from 0 on if ``zero``."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        low, high = (0.0, 1.0) if zero else (low - 0.5, high + 0.5)
    air = 0.05 * (high - low)
    return (low if zero and low == 0 else low - air), (high if zero and high == 0 else high + air)


class _Frame:
    """Maps data to drawing units and holds what was drawn."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], bottom: float = _BOTTOM) -> None:
        self.x_range, self.y_range, self.bottom = x, y, bottom
        self.parts: list[Markup] = []

    def x(self, value: float) -> float:
        low, high = self.x_range
        return _LEFT + (value - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return HEIGHT - self.bottom - (value - low) / (high - low) * (HEIGHT - _TOP - self.bottom)

    def add(self, template: str, **values: object) -> None:
        """One element; values are escaped, floats rounded to a tenth."""
        shown = {k: f"{v:.1f}" if isinstance(v, float) else v for k, v in values.items()}
        self.parts.append(Markup(template).format(**shown))

    def text(self, x: float, y: float, text: str, anchor: str = "middle", css: str = "tick") -> None:
        self.add(
            '<text x="{x}" y="{y}" text-anchor="{a}" class="{c}">{t}</text>',
            x=x,
            y=y,
            a=anchor,
            c=css,
            t=text,
        )

    def y_axis(self, label: str) -> None:
        for value in ticks(*self.y_range):
            y = self.y(value)
            css = "zero" if value == 0 else "grid"
            self.add(
                '<line x1="{a}" x2="{b}" y1="{y}" y2="{y}" class="{c}"/>',
                a=float(_LEFT), b=float(WIDTH - _RIGHT), y=y, c=css,
            )  # fmt: skip
            self.text(_LEFT - 6.0, y + 4, number(value), "end")
        middle = (HEIGHT - self.bottom + _TOP) / 2
        self.add(
            '<text transform="translate(12 {y}) rotate(-90)" text-anchor="middle" class="label">{t}</text>',
            y=middle, t=label,
        )  # fmt: skip

    def svg(self, title: str) -> Markup:
        head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, title)
        return head + Markup("").join(self.parts) + Markup("</svg>")


def style(index: int) -> tuple[str, str]:
    """Colour class and dash pattern of the n-th series; no two of the first 32 look alike."""
    return f"s{index % _COLOURS}", _DASHES[index // _COLOURS % len(_DASHES)]


def curves(title: str, series: Mapping[str, Sequence[Point]], x_label: str, y_label: str) -> Markup:
    """Lines through (x, y) points; a point that is not finite breaks its line."""
    points = [p for line in series.values() for p in line if _finite(p)]
    frame = _Frame(_span([p[0] for p in points]), _span([p[1] for p in points]))
    frame.y_axis(y_label)
    for value in ticks(*frame.x_range):
        frame.text(frame.x(value), HEIGHT - _BOTTOM + 17.0, number(value))
    frame.text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 6.0, x_label, css="label")
    if not points:
        frame.text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT / 2, "no data yet", css="label")
    for index, (name, line) in enumerate(series.items()):
        css, dash = style(index)
        for run in _runs(line):
            path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in run)
            frame.add(
                '<polyline points="{p}" class="line {c}" stroke-dasharray="{d}"/>', p=path, c=css, d=dash
            )
        shown = [p for p in line if _finite(p)]
        # dots carry the exact values as tooltips; on long curves they would only be clutter
        for x, y in shown if len(shown) <= 40 else shown[-1:]:
            frame.add(
                '<circle cx="{x}" cy="{y}" r="2.6" class="dot {c}"><title>{t}</title></circle>',
                x=frame.x(x), y=frame.y(y), c=css, t=f"{name}: {number(x)}, {number(y)}",
            )  # fmt: skip
    return frame.svg(title)


def _finite(point: Point) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])


def _runs(line: Sequence[Point]) -> list[list[Point]]:
    runs: list[list[Point]] = [[]]
    for point in line:
        if _finite(point):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if len(run) > 1]


def bars(title: str, groups: Sequence[str], series: Mapping[str, Sequence[Value]], y_label: str) -> Markup:
    """Grouped bars from zero; an Interval gets its whisker, a missing value leaves its place empty.

    Raises ValueError where a series has not one value for each group.
    """
    for name, values in series.items():
        if len(values) != len(groups):
            raise ValueError(f"bars {title!r}: {name!r} has {len(values)} values for {len(groups)} groups")
    ends = [end for values in series.values() for value in values for end in _ends(value)]
    slot = (WIDTH - _LEFT - _RIGHT) / max(len(groups), 1)
    slanted = not all(_wrapped(group, slot) for group in groups)
    bottom = 76.0 if slanted else float(_BOTTOM)
    frame = _Frame((0.0, float(max(len(groups), 1))), _span(ends, zero=True), bottom)
    frame.y_axis(y_label)
    _group_labels(frame, groups, slot)
    width = min(38.0, 0.8 * slot / max(len(series), 1))
    for g, group in enumerate(groups):
        centre = frame.x(g + 0.5)
        for index, (name, values) in enumerate(series.items()):
            left = centre + (index - len(series) / 2) * width
            _bar(frame, left, width, values[g], f"{name}, {group}", style(index)[0])
    return frame.svg(title)


def _ends(value: Value) -> list[float]:
    found = [value.value, value.low, value.high] if isinstance(value, Interval) else [value]
    return [v for v in found if v is not None and math.isfinite(v)]


def _bar(frame: _Frame, left: float, width: float, value: Value, name: str, css: str) -> None:
    height = value.value if isinstance(value, Interval) else value
    if height is None or not math.isfinite(height):
        frame.text(left + width / 2, frame.y(0) - 4, "–")
        return
    top, bottom = sorted((frame.y(height), frame.y(0)))
    tip = f"{name}: {number(height)}"
    if isinstance(value, Interval) and math.isfinite(value.low) and math.isfinite(value.high):
        tip += f" [{number(value.low)}, {number(value.high)}], n = {value.n}"
    frame.add(
        '<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="1.5" class="bar {c}"><title>{t}</title></rect>',
        x=left + 1, y=top, w=max(width - 2, 1.0), h=bottom - top, c=css, t=tip,
    )  # fmt: skip
    if isinstance(value, Interval) and math.isfinite(value.low) and math.isfinite(value.high):
        middle = left + width / 2
        low, high, cap = frame.y(value.low), frame.y(value.high), min(4.0, width / 4)
        path = f"M{middle:.1f} {low:.1f}V{high:.1f}"
        path += "".join(f"M{middle - cap:.1f} {y:.1f}h{2 * cap:.1f}" for y in (low, high))
        frame.add('<path d="{d}" class="whisker"/>', d=path)


def _wrapped(name: str, slot: float) -> list[str] | None:
    """A group's name in at most two lines that fit the slot (about 6.6 units a letter), or None."""
    room = int(slot / 6.6)
    lines = [""]
    for word in name.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > room:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines if len(lines) <= 2 and all(len(line) <= room for line in lines) else None


def _group_labels(frame: _Frame, groups: Sequence[str], slot: float) -> None:
    """Names under their bars; slanted, all of them, where one would run into its neighbour's."""
    wrapped = [_wrapped(group, slot) for group in groups]
    for g, (group, lines) in enumerate(zip(groups, wrapped)):
        x = frame.x(g + 0.5)
        if all(wrapped) and lines:
            for k, line in enumerate(lines):
                frame.text(x, HEIGHT - frame.bottom + 16.0 + 14 * k, line)
            continue
        shown = group if len(group) <= 16 else group[:15] + "…"
        frame.add(
            '<text transform="translate({x} {y}) rotate(-35)" text-anchor="end" class="tick">{t}</text>',
            x=x + 5, y=HEIGHT - frame.bottom + 14.0, t=shown,
        )  # fmt: skip
