"""An annotation project's figures as lines of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from apps.annotate.accounts import OpenInvitation
from apps.annotate.results import LabelerRow

_FIGURES = {
    "raw": "agreement",
    "cohen_kappa_mean": "Cohen's kappa, mean",
    "fleiss_kappa": "Fleiss' kappa",
    "krippendorff_alpha": "Krippendorff's alpha",
    "krippendorff_alpha_ordinal": "the same, ordered",
}
_QUESTIONS = {"preferred": "the better response", "hallucination": "fewer hallucinations (A, tie, B)"}


def stats(
    overview: Mapping[str, Any],
    agreement: Mapping[str, Any],
    bias: Mapping[str, Any],
    labelers: Sequence[LabelerRow],
) -> list[str]:
    """Everything ``align annotate stats`` prints."""
    lines = [
        f"pairs: {overview['pairs_done']} of {overview['pairs']} have all their votes, or a decision",
        f"votes: {overview['votes']} of {overview['votes_wanted']} wanted, {overview['gold_votes']} on gold "
        f"items, {overview['skips']} skips, {overview['undone']} undone, {overview['adjudicated']} decided",
        f"last day: {overview['votes_last_day']} votes of {overview['labelers_last_day']} labelers",
    ]
    for kind, times in overview["seconds"].items():
        if times is not None:
            spread = f"{times['median']:.1f} s ({times['low']:.1f} to {times['high']:.1f})"
            lines.append(f"time a vote, {kind}: median {spread}")
    if (spread := overview["labels_per_labeler"]) is not None:
        least, median, most = (f"{spread[key]:g}" for key in ("least", "median", "most"))
        lines.append(f"votes a labeler: {least} to {most}, median {median}, of {spread['labelers']} labelers")
    lines.append(
        f"agreement on {agreement['pairs']} pairs with two votes or more ({agreement['votes']} votes):"
    )
    for question, title in _QUESTIONS.items():
        lines.append(f"  {title}")
        lines += [f"    {_FIGURES[name]:22} {figure(found)}" for name, found in agreement[question].items()]
    for name, title in (
        ("chose_a", "chose the response shown as A"),
        ("chose_longer", "chose the longer one"),
    ):
        lines.append(f"{title}: {figure(bias['preferred'][name])}")
    return lines + users(labelers)


def figure(found: Mapping[str, Any]) -> str:
    """A value with its interval, or why there is none."""
    if found["value"] is None:
        return f"undefined ({found.get('undefined') or 'nothing to measure'})"
    if found["low"] is None:
        return f"{found['value']:.3f} (n {found['n']})"
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}] (n {found['n']})"


def users(labelers: Sequence[LabelerRow]) -> list[str]:
    """A table of the accounts."""
    head = ("name", "role", "test", "votes", "skips", "seconds", "gold", "agrees", "chose A", "longer")
    rows: list[tuple[str, ...]] = [head]
    for row in labelers:
        role = f"{row.role}, out" if row.disabled else row.role
        seconds = row.seconds_server if row.seconds_browser is None else row.seconds_browser
        shares = (row.gold_right, row.agreement, row.chose_a, row.chose_longer)
        told = ["–" if share["value"] is None else f"{share['value']:.2f}" for share in shares]
        counts = (str(row.votes), str(row.skips), "–" if seconds is None else f"{seconds:.1f}")
        rows.append((row.name, role, row.qualification or "–", *counts, *told))
    return _columns(rows)


def invitations(found: Sequence[OpenInvitation]) -> list[str]:
    """A table of the invitations that are open."""
    if not found:
        return ["no invitation is open"]
    rows = [("id", "role", "uses left", "made", "until")]
    rows += [(one.id, one.role, str(one.uses_left), _when(one.created), _when(one.expires)) for one in found]
    return _columns(rows)


def _when(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M} UTC"


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows]
