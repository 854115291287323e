"""The page of one evaluation: a table for each benchmark, and what its figures rest on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from evals.metrics import interval_from
from evals.report import Cell, Page, Table, Text


def page_of(results: Mapping[str, Any]) -> Page:
    """A table for each benchmark: every figure that has an interval, and where they come from."""
    sections = [section_of(name, found) for name, found in results["benchmarks"].items()]
    return Page("Evaluation", sections, results["model"], footer="Intervals: 95 % bootstrap over images.")


def section_of(name: str, found: Mapping[str, Any]) -> Table | Text:
    """One benchmark's figures with their provenance; words where there are none for want of a judge."""
    if "judge" in found and found["judge"] is None:
        told = (
            "The questions were answered, and the answers were not rated: no judge was given. Rate "
            "mmhal_responses.json, then evaluate with verdicts=FILE."
        )
        return Text(f"{told}\n\n{provenance(found)}", title=name)
    rows: list[list[Cell]] = [
        [label, interval_from(figure), figure["n"]] for label, figure in intervals(found)
    ]
    return Table(name, ["figure", "value", "n"], rows, provenance(found))


def provenance(found: Mapping[str, Any]) -> str:
    """Of which questions a benchmark's figures are, and what nobody could read: for the table's note."""
    if "splits" in found:
        splits = (
            f"{name}: n = {split['n']} on {split['images']} images, "
            f"{split['strict']['counts']['unparsed']} unparsed (strict rule), file sha256 {split['sha256']}"
            for name, split in found["splits"].items()
        )
        return f"{'; '.join(splits)}."
    if "judge" not in found:
        return f"n = {found['n']}; questions and truth sha256 {found['sha256']}."
    asked = f"n = {found['n']}; file sha256 {found['sha256']}."
    if found["judge"] is None:
        return asked
    prompt = found["prompt"]
    judged = f"Judge: {found['judge']}; prompt (for a judge that reads one): {prompt['name']}, sha256 "
    counts = [
        f"without a readable rating: {len(found['official']['unrated'])} (official rule, counted as 0), "
        f"{len(found['strict']['unrated'])} (strict rule, left out)",
        f"without any verdict: {len(found['unjudged'])}",
    ]
    if "steering" in found:
        counts.append(f"responses that themselves hold a rating: {len(found['steering'])}")
    return f"{asked} {judged}{prompt['sha256']}. Answers {'; '.join(counts)}."


def intervals(found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every figure with an interval inside nested results, with its path as a label."""
    for key, value in found.items():
        if isinstance(value, dict):
            label = f"{prefix}{key}".replace("_", " ")
            if {"value", "low", "high", "n"} <= value.keys():
                yield label, value
            else:
                yield from intervals(value, f"{prefix}{key}, ")
