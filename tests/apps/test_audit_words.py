"""What an audit's figures say in words."""

from __future__ import annotations

from typing import Any

import pytest

from apps import audit_page
from apps.audit_words import Finding, findings_of
from evals.report import Table, render_report


def figure(value: float, low: float | None = None, high: float | None = None, n: int = 50) -> dict[str, Any]:
    low, high = value - 0.1 if low is None else low, value + 0.1 if high is None else high
    return {"value": value, "low": low, "high": high, "n": n}


def moved(value: float, size: float = 0.5) -> dict[str, Any]:
    told = {"mean": figure(value / 2), "size": figure(size / 2), "relative": figure(value)}
    return told | {"relative_size": figure(size, size - 0.01, size + 0.01), "falls": figure(0.7),
                   "rises": figure(0.2), "n": 50, "tokens": 3.0}  # fmt: skip


def found_with(**changes: Any) -> dict[str, Any]:
    names = ("blank image", "other image", "other facts", "false sentence", "other response", "said twice")
    share = {"value": 0.66, "low": 0.6, "high": 0.72, "n": 400}
    found = {
        "reward_model": "m", "facts": ["captions"], "data": "d", "source": "captions", "seed": 0,
        "n": {"responses": 50, "conversations": 25, "images": 25}, "spread": figure(0.5),
        "changes": {name: moved(-0.5) for name in names}, "contrasts": {"false less true": moved(-0.5)},
        "orders": {"orders": 4, "sd": figure(0.1), "relative": figure(0.1), "changed": figure(0.02, 0, 0.05)},
        "length": {"correlation": figure(0.0), "within": figure(0.2), "tokens": 20.0},
        "agreement": {"target": "preferred", "all": share, "shorter": share, "equal": share, "longer": share,
                      "shorter_is_better": share,
                      "labelers": {"value": 0.69, "low": None, "high": None, "n": 0, "source": "thesis",
                                   "at_most": 0.81}},
    }  # fmt: skip
    return found | changes


def only(found: dict[str, Any], subject: str) -> Finding:
    return next(finding for finding in findings_of(found) if finding.subject == subject)


def test_a_sound_model_in_words() -> None:
    found = found_with()
    assert {v.subject: v.kind for v in findings_of(found)} == dict.fromkeys(
        ("choices", "image", "facts", "truth", "padding", "length", "lean", "response", "order of facts"),
        "good",
    )
    assert only(found, "choices").text == (
        "Agrees with 66 % [60, 72] of 400 choices; human labelers (thesis) agree on 69 %, "
        "with which no scores can be expected to reach more than 81 %. "
        "Better than chance; whether as good as a second labeler, these pairs do not tell."
    )
    assert only(found, "image").text == (
        "Looks at the image: another record's image moves the score by −0.50 spreads [−0.60, −0.40] "
        "(70 % [60, 80] fall), a blank one by −0.50 spreads [−0.60, −0.40]."
    )
    assert "correlate at +0.20 [+0.10, +0.30]" in only(found, "length").text


@pytest.mark.parametrize(
    ("path", "value", "subject", "kind", "begins"),
    [
        (("agreement", "all"), figure(0.55, 0.45, 0.65), "choices", "bad", "Agrees with 55 %"),
        (("agreement", "all"), figure(0.4, 0.35, 0.45), "choices", "bad", "Agrees with 40 %"),
        (("agreement", "all"), figure(0.62, 0.48, 0.75), "choices", "unclear", "Agrees with 62 %"),
        (("agreement", "longer"), figure(0.8, 0.75, 0.85), "lean", "bad", "Leans on length"),
        (("agreement", "shorter"), figure(0.8, 0.75, 0.85), "lean", "bad", "Leans on shortness"),
        (("agreement", "shorter"), figure(0.55, 0.4, 0.7), "lean", "unclear", "Whether it leans"),
        (("changes", "other image"), moved(0.05), "image", "unclear", "Sees the image, and does not"),
        (("changes", "other image"), moved(0.5), "image", "bad", "Prefers another record's image"),
        (("changes", "other facts"), moved(0.0), "facts", "unclear", "Reads the facts, and does not"),
        (("changes", "other facts"), moved(0.0, 0.01), "facts", "bad", "Does not read the facts"),
        (("changes", "false sentence"), moved(0.5), "padding", "bad", "A false sentence pays"),
        (("changes", "false sentence"), moved(0.0), "padding", "unclear", "A false sentence is free"),
        (("contrasts", "false less true"), moved(0.5), "truth", "bad", "Prefers false to true"),
        (("contrasts", "false less true"), moved(0.0), "truth", "unclear", "Does not tell false"),
        (("changes", "said twice"), moved(0.5), "length", "bad", "Likes length"),
        (("changes", "said twice"), moved(0.0), "length", "unclear", "Indifferent"),
        (("length", "within"), figure(-0.2), "length", "good", "Does not pay for repetition"),
        (("changes", "other response"), moved(0.1), "response", "bad", "Does not know which"),
        (("orders", "changed"), figure(0.2), "order of facts", "unclear", "The order of the facts matters"),
    ],
)  # fmt: skip
def test_what_is_amiss_is_said(
    path: tuple[str, str], value: Any, subject: str, kind: str, begins: str
) -> None:
    found = found_with()
    found[path[0]][path[1]] = value
    finding = only(found, subject)
    assert finding.kind == kind and finding.text.startswith(begins)
    others = [v for v in findings_of(found) if v.subject != subject]
    assert {v.kind for v in others} <= {"good", "unclear"}


THESIS = (0.69, None, None)


@pytest.mark.parametrize(
    ("own", "labelers", "told"),
    [
        ((0.62, 0.52, 0.71), THESIS, "whether as good as a second labeler, these pairs do not tell."),
        ((0.58, 0.54, 0.62), THESIS, "Better than chance, short of a second labeler."),
        ((0.7, 0.66, 0.74), THESIS, "whether as good as a second labeler, these pairs do not tell."),
        ((0.71, 0.68, 0.74), THESIS, "As good as a second labeler."),
        ((0.79, 0.75, 0.83), THESIS, "As good as a second labeler."),
        # four pairs with several annotators tell nothing of how they agree
        (
            (0.62, 0.58, 0.66),
            (0.5, 0.15, 0.85),
            "whether as good as a second labeler, these pairs do not tell.",
        ),
        (
            (0.71, 0.68, 0.74),
            (0.69, 0.61, 0.76),
            "whether as good as a second labeler, these pairs do not tell.",
        ),
        ((0.4, 0.36, 0.44), THESIS, "Worse than chance."),
    ],
)
def test_a_wide_interval_earns_no_praise(own: Any, labelers: Any, told: str) -> None:
    """62 of 100 reach from 52 to 71 %, which says little of whether a second labeler agrees more often."""
    found = found_with()
    found["agreement"]["all"] = figure(*own)
    found["agreement"]["labelers"] |= dict(zip(("value", "low", "high"), labelers))
    assert only(found, "choices").text.endswith(told)


def test_a_liking_for_repetition_is_none_for_length() -> None:
    found = found_with()
    found["changes"]["said twice"] = moved(0.5)
    found["length"]["within"] = figure(-0.2)
    assert only(found, "length").kind == "bad"
    assert only(found, "length").text == (
        "Pays for repetition: the same text twice moves the score by +0.50 spreads [+0.40, +0.60]. "
        "Within conversations, score and length correlate at −0.20 [−0.30, −0.10]."
    )


def test_what_was_not_measured_is_not_spoken_of() -> None:
    found = found_with(agreement=None, orders=None, facts=[], contrasts={}, changes={})
    assert [v.subject for v in findings_of(found)] == ["length"]
    assert [v.subject for v in findings_of(found_with(facts=[]))].count("facts") == 0
    page = audit_page.page_of(found, [], [], None, 4)
    assert not any(isinstance(s, Table) and s.title == "Agreement with choices" for s in page.sections)
    assert "<html" in render_report(page) and "Agreement with choices" not in audit_page.markdown_of(found)
