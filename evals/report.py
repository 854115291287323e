"""One self-contained HTML file: tables, curves, bars, pictures with false words marked. No network.

Build a ``Page`` from the section types below and hand it to ``write_report``. All text is escaped; the
same page gives the same bytes. ``as_markdown`` gives a table for a paper or a README.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from data.jsonl import write_text
from evals import charts
from evals.metrics import Interval

#: what a table cell may hold; floats get ``digits`` decimals, None and NaN a dash, an Interval its bounds
Cell = str | int | float | Interval | None


@dataclass(frozen=True)
class Text:
    """Paragraphs, separated by blank lines."""

    body: str
    title: str = ""
    kind: str = field(default="text", init=False)

    @property
    def paragraphs(self) -> list[str]:
        return [part.strip() for part in self.body.split("\n\n") if part.strip()]


@dataclass(frozen=True)
class Table:
    """Rows of cells under column names; the first column names the row."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    #: indices of rows that are not ours (published figures), set apart in grey
    muted_rows: frozenset[int] = frozenset()
    digits: int = 3
    kind: str = field(default="table", init=False)

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                rule = f"row {index} has {len(row)} cells for {len(self.columns)} columns"
                raise ValueError(
                    f"table {self.title!r}: {rule}; give one cell for each column (None for none)"
                )
        if any(not 0 <= index < len(self.rows) for index in self.muted_rows):
            rule = f"muted_rows {sorted(self.muted_rows)} reach beyond {len(self.rows)} rows"
            raise ValueError(f"table {self.title!r}: {rule}; give 0-based indices of rows")

    def is_numeric(self, column: int) -> bool:
        """Whether a column is set flush right: it has numbers and no text below its head."""
        cells = [row[column] for row in self.rows]
        return column > 0 and bool(cells) and all(_is_number(cell) for cell in cells)


@dataclass(frozen=True)
class Curves:
    """Lines by series name, each a list of (x, y)."""

    title: str
    series: Mapping[str, Sequence[charts.Point]]
    x_label: str = "step"
    y_label: str = ""
    note: str = ""
    kind: str = field(default="chart", init=False)

    @property
    def svg(self) -> Markup:
        return charts.curves(self.title, self.series, self.x_label, self.y_label)


@dataclass(frozen=True)
class Bars:
    """Bars in groups; each series has one value (or Interval, or None) for each group."""

    title: str
    groups: Sequence[str]
    series: Mapping[str, Sequence[charts.Value]]
    y_label: str = ""
    note: str = ""
    kind: str = field(default="chart", init=False)

    @property
    def svg(self) -> Markup:
        return charts.bars(self.title, self.groups, self.series, self.y_label)


@dataclass(frozen=True)
class Answer:
    """A response with the spans (start, end) of its text that name what is not there."""

    text: str
    false: Sequence[tuple[int, int]] = ()
    #: what a rule or a judge says of it, and why; shown below it
    verdict: str = ""
    reason: str = ""

    @property
    def pieces(self) -> list[tuple[str, bool]]:
        """The text cut into (piece, is false). ValueError for a span outside the text."""
        pieces: list[tuple[str, bool]] = []
        at = 0
        for start, end in sorted(self.false):
            if not 0 <= start < end <= len(self.text):
                raise ValueError(f"span ({start}, {end}) is outside a text of {len(self.text)} characters")
            if end <= at:
                continue
            if start > at or not pieces:
                pieces.append((self.text[at:start], False))
                pieces.append((self.text[start:end], True))
            else:
                pieces.append((self.text[at:end], True))
            at = end
        pieces.append((self.text[at:], False))
        return [piece for piece in pieces if piece[0]]


@dataclass(frozen=True)
class GalleryItem:
    """One picture (PNG or JPEG bytes, or None), the question about it, and each model's answer by name."""

    image: bytes | None
    question: str
    answers: Mapping[str, Answer]
    #: what is true of the picture
    truth: str = ""
    #: one value for each of the gallery's ``filters``
    tags: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.image is not None and self._kind is None:
            raise ValueError("a gallery image is neither PNG nor JPEG; encode the picture as one of them")

    @property
    def _kind(self) -> str | None:
        heads = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg"}
        return next((kind for head, kind in heads.items() if (self.image or b"").startswith(head)), None)

    @property
    def data_uri(self) -> str:
        return f"data:image/{self._kind};base64," + base64.b64encode(self.image or b"").decode("ascii")

    @property
    def tags_json(self) -> str:
        return json.dumps(list(self.tags))


@dataclass(frozen=True)
class Gallery:
    """Pictures with questions and answers side by side.

    ``filters`` names what a reader may choose by; each item then has one tag for each.
    """

    title: str
    items: Sequence[GalleryItem]
    note: str = ""
    filters: Sequence[str] = ()
    kind: str = field(default="gallery", init=False)

    def __post_init__(self) -> None:
        if any(len(item.tags) != len(self.filters) for item in self.items):
            raise ValueError(f"gallery {self.title!r}: give each item one tag for each of {self.filters}")

    def choices(self, place: int) -> list[str]:
        """The values of a filter, as they first occur."""
        return list(dict.fromkeys(item.tags[place] for item in self.items))


@dataclass(frozen=True)
class Status:
    """What runs now. While ``running`` the page reloads itself every ``refresh`` seconds."""

    text: str
    running: bool = False
    #: steps done of ``total``; no bar without both
    done: int | None = None
    total: int | None = None
    #: e.g. time left; shown small
    detail: str = ""
    refresh: int = 3

    @property
    def percent(self) -> int | None:
        """0..100, or None without a total."""
        if self.done is None or not self.total:
            return None
        return max(0, min(100, round(100 * self.done / self.total)))


Section = Text | Table | Curves | Bars | Gallery


@dataclass(frozen=True)
class Page:
    """A report: a title, what runs now, and sections from top to bottom."""

    title: str
    sections: Sequence[Section]
    subtitle: str = ""
    status: Status | None = None
    footer: str = ""

    @property
    def laid_out(self) -> list[tuple[Section, bool]]:
        """Each section, and whether it takes half of the width: neighbouring charts stand in pairs."""
        laid: list[tuple[Section, bool]] = []
        waiting = False
        for section in self.sections:
            chart = isinstance(section, Curves | Bars)
            if waiting and chart:
                laid[-1] = (laid[-1][0], True)
            laid.append((section, waiting and chart))
            waiting = chart and not waiting
        return laid

    @property
    def script(self) -> str:
        """The page's script: filters for its galleries, or none."""
        filtered = any(isinstance(section, Gallery) and section.filters for section in self.sections)
        return _SCRIPT if filtered else ""

    @property
    def script_source(self) -> str:
        """The content security policy's source for exactly this script."""
        digest = hashlib.sha256(self.script.encode()).digest()
        return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def format_number(value: float | int | None, digits: int = 3) -> str:
    """Fixed decimals with a real minus sign; whole numbers as they are; a dash for None and NaN."""
    if value is None or not math.isfinite(value):
        return "–"
    text = str(value) if isinstance(value, int) else f"{value:.{digits}f}"
    return text.replace("-", "−")


def _is_number(cell: Cell) -> bool:
    return cell is None or isinstance(cell, int | float | Interval)


def _is_interval(cell: Cell) -> bool:
    return isinstance(cell, Interval) and math.isfinite(cell.low) and math.isfinite(cell.high)


_SCRIPT = (Path(__file__).parent / "report.js").read_text("utf-8")
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters["number"] = format_number
_ENVIRONMENT.tests["numeric"] = _is_number
_ENVIRONMENT.tests["interval"] = _is_interval
_ENVIRONMENT.tests["estimate"] = lambda cell: isinstance(cell, Interval)


def render_report(page: Page) -> str:
    """The page as HTML text. Lone surrogates, which UTF-8 cannot hold, become question marks."""
    html = _ENVIRONMENT.get_template("report.html.jinja").render(page=page, style=charts.style)
    return html.encode("utf-8", "replace").decode("utf-8")


def write_report(path: str | Path, page: Page) -> None:
    """Write the page to ``path``, atomically: a browser that reloads sees the old or the new one, whole."""
    write_text(path, render_report(page))


def as_markdown(table: Table) -> str:
    """A table with its title as Markdown; an interval of fewer items than the most says how many.

    Muted rows are set in italics and called published.
    """
    intervals = [cell for row in table.rows for cell in row if isinstance(cell, Interval)]
    most = max((cell.n for cell in intervals), default=0)

    def text_of(cell: Cell) -> str:
        if cell is None:
            return ""
        if isinstance(cell, Interval):
            if not cell.n:
                return "–"
            text = f"{cell.value:.{table.digits}f}"
            if math.isfinite(cell.low):
                text += f" [{cell.low:.{table.digits}f}, {cell.high:.{table.digits}f}]"
            return text if cell.n == most else f"{text} (n = {cell.n})"
        if isinstance(cell, float):
            return f"{cell:.{table.digits}f}"
        return " ".join(str(cell).split()).replace("|", "\\|")

    def row_of(place: int, row: Sequence[Cell]) -> str:
        cells = [text_of(cell) for cell in row]
        if place in table.muted_rows:
            cells = [f"*{cell}*" if cell else "" for cell in [f"{cells[0]} (published)", *cells[1:]]]
        return "| " + " | ".join(cells) + " |"

    lines = [row_of(place, row) for place, row in enumerate((table.columns, *table.rows), start=-1)]
    lines.insert(1, "|" + " --- |" * len(table.columns))
    note = f"\n{table.note}\n" if table.note else ""
    return f"**{table.title}**\n\n" + "\n".join(lines) + f"\n{note}"
