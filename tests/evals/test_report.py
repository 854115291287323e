from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from evals.charts import bars, curves, number, ticks
from evals.metrics import Interval
from evals.report import (
    Answer,
    Bars,
    Curves,
    Gallery,
    GalleryItem,
    Page,
    Status,
    Table,
    Text,
    format_number,
    render_report,
    write_report,
)

PNG = b"\x89PNG\r\n\x1a\n" + b"rest"
EVIL = "<script>alert('x')</script>&\"'"


class Collector(HTMLParser):
    """Every tag with its attributes, and the text outside of style."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def _parse(html: str) -> Collector:
    collector = Collector()
    collector.feed(html)
    return collector


def _everything(text: str) -> Page:
    return Page(
        text,
        [
            Text(text, title=text),
            Table(text, [text, text], [[text, text], [text, 0.5]], note=text),
            Curves(text, {text: [(0, 1), (1, 2)], "b": [(0, 0)]}, text, text, note=text),
            Bars(
                text, [text, "g"], {text: [0.5, Interval(0.2, 0.1, 0.3, 9)], "b": [None, 1]}, text, note=text
            ),
            Gallery(text, [GalleryItem(PNG, text, {text: Answer(text, [(0, 3)])}, text)], note=text),
        ],
        subtitle=text,
        status=Status(text, True, 1, 2, text),
        footer=text,
    )


def test_all_text_is_escaped_everywhere() -> None:
    found = _parse(render_report(_everything(EVIL)))
    tags = [tag for tag, _ in found.tags]
    assert "script" not in tags and not any(k.startswith("on") for _, attrs in found.tags for k in attrs)
    # the same page with harmless text has the very same elements: no text became markup
    assert tags == [tag for tag, _ in _parse(render_report(_everything("harmless"))).tags]
    assert "".join(found.texts).count("alert('x')") >= 20


def test_nothing_is_fetched_from_anywhere() -> None:
    html = render_report(_everything("text"))
    for _, attrs in _parse(html).tags:
        for key in ("src", "href"):
            assert attrs.get(key, "data:").startswith("data:")
    assert not re.search(r"https?://|url\(|@import", html)
    assert "default-src 'none'" in html


def test_refresh_only_while_running() -> None:
    def refreshes(status: Status | None) -> bool:
        html = render_report(Page("t", [], status=status))
        return any(a.get("http-equiv") == "refresh" for _, a in _parse(html).tags)

    assert refreshes(Status("training", running=True))
    assert not refreshes(Status("done", running=False))
    assert not refreshes(None)


@pytest.mark.parametrize(
    ("done", "total", "want"),
    [(1, 4, 25), (9, 4, 100), (0, 3, 0), (None, 3, None), (1, None, None), (1, 0, None)],
)
def test_percent(done: int | None, total: int | None, want: int | None) -> None:
    status = Status("x", True, done, total)
    assert status.percent == want
    assert ('class="track"' in render_report(Page("t", [], status=status))) == (want is not None)


def test_false_words_are_marked() -> None:
    answer = Answer("a dog and a cat", [(12, 15), (2, 5)])
    assert answer.pieces == [("a ", False), ("dog", True), (" and a ", False), ("cat", True)]
    html = render_report(Page("t", [Gallery("g", [GalleryItem(None, "q", {"m": answer, "n": Answer("")})])]))
    assert "a <mark>dog</mark> and a <mark>cat</mark></dd>" in html
    assert "(no answer)" in html and "<img" not in html


def test_overlapping_spans_lose_no_text() -> None:
    answer = Answer("abcdef", [(1, 3), (2, 5), (2, 3), (5, 6)])
    assert "".join(text for text, _ in answer.pieces) == "abcdef"
    assert "".join(text for text, wrong in answer.pieces if wrong) == "bcdef"
    with pytest.raises(ValueError, match="outside"):
        _ = Answer("abc", [(1, 4)]).pieces


def test_table_cells() -> None:
    interval = Interval(0.51234, 0.4, 0.6, 10)
    undefined = Interval(math.nan, math.nan, math.nan, 10)
    rows = [["x", interval, undefined, -0.5], ["y", 3, None, "text"]]
    table = Table("t", ["m", "a", "b", "c"], rows, muted_rows=frozenset({1}))
    html = render_report(Page("t", [table]))
    assert '0.512<span class="ci">[0.400, 0.600]</span>' in html
    assert '<td class="num">–</td>' in html and '<td class="num">−0.500</td>' in html
    assert '<td class="num">3</td>' in html and "<td>text</td>" in html
    assert html.count('class="muted"') == 1
    assert [table.is_numeric(i) for i in range(4)] == [False, True, True, False]


def test_bad_sections_are_named() -> None:
    with pytest.raises(ValueError, match="row 1 has 1 cells for 2 columns"):
        Table("t", ["a", "b"], [[1, 2], [1]])
    with pytest.raises(ValueError, match="reach beyond 1 rows"):
        Table("t", ["a"], [[1]], muted_rows=frozenset({1}))
    with pytest.raises(ValueError, match="neither PNG nor JPEG"):
        GalleryItem(b"GIF89a", "q", {})
    with pytest.raises(ValueError, match="1 values for 2 groups"):
        _ = Bars("b", ["x", "y"], {"s": [1.0]}).svg


def test_neighbouring_charts_stand_in_pairs() -> None:
    chart, text = Curves("c", {}), Text("t")
    page = Page("t", [chart, chart, chart, text, chart, text])
    assert [half for _, half in page.laid_out] == [True, True, False, False, False, False]


def test_curve_geometry() -> None:
    svg = str(curves("t", {"a": [(0, 0), (10, 1)]}, "x", "y"))
    (path,) = re.findall(r'polyline points="([^"]*)"', svg)
    (x0, y0), (x1, y1) = (tuple(map(float, p.split(","))) for p in path.split())
    assert x0 < x1 and y0 > y1  # larger values stand higher
    # 5 % of air on either side: the points span 1/1.1 of the drawing area
    assert x1 - x0 == pytest.approx((460 - 52 - 10) / 1.1, abs=0.2)
    assert y0 - y1 == pytest.approx((290 - 12 - 42) / 1.1, abs=0.2)


def test_a_point_that_is_not_finite_breaks_the_line() -> None:
    svg = str(curves("t", {"a": [(0, 0), (1, 1), (2, math.nan), (3, 1), (4, 2)]}, "x", "y"))
    assert svg.count("<polyline") == 2 and "nan" not in svg
    assert "no data yet" in curves("t", {}, "x", "y")


def test_bars_start_at_zero_and_scale() -> None:
    svg = str(bars("t", ["g", "h"], {"a": [1.0, -0.5], "b": [0.5, None]}, "y"))
    rects = re.findall(r'<rect x="[^"]*" y="([^"]*)" width="[^"]*" height="([^"]*)"', svg)
    (y1, h1), (y2, h2), (y3, h3) = sorted(((float(y), float(h)) for y, h in rects))
    assert h1 == pytest.approx(2 * h2, abs=0.3) and h2 == pytest.approx(h3, abs=0.3)
    assert y1 + h1 == pytest.approx(y2 + h2, abs=0.2) == pytest.approx(y3, abs=0.2)  # one base line


def test_bars_draw_a_whisker_for_an_interval_only() -> None:
    svg = bars("t", ["g"], {"a": [Interval(1, 0.5, 1.5, 3)], "b": [1.0]}, "y")
    assert svg.count('class="whisker"') == 1 and "n = 3" in svg


@pytest.mark.parametrize(
    ("low", "high", "want"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-0.2, 1, [-0.2, 0, 0.2, 0.4, 0.6, 0.8, 1]),
        (1, 60, [10, 20, 30, 40, 50, 60]),
        (3, 3, [3]),
    ],
)
def test_ticks_are_round(low: float, high: float, want: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(want)


def test_numbers() -> None:
    assert [number(v) for v in (0, 0.25, -2, 1500, 0.00012)] == ["0", "0.25", "−2", "1500", "1.2e−4"]
    assert [format_number(v) for v in (None, math.nan, 2, -1.0)] == ["–", "–", "2", "−1.000"]


def test_write_is_deterministic_and_leaves_no_part(tmp_path: Path) -> None:
    page = _everything("räksmörgås \ud800")
    write_report(tmp_path / "a.html", page)
    first = (tmp_path / "a.html").read_bytes()
    write_report(tmp_path / "a.html", page)
    assert (tmp_path / "a.html").read_bytes() == first and b"r\xc3\xa4ks" in first
    assert [p.name for p in tmp_path.iterdir()] == ["a.html"]
