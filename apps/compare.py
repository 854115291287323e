"""``align eval compare``: two evaluated models on the items that both answered, joined by id."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from apps.eval_page import intervals
from apps.eval_runs import Part, answered, check_version, read_run
from data.jsonl import DataError, write_json
from data.schema import Verdict
from evals import metrics
from evals.metrics import interval_from
from evals.report import Cell, Page, Section, Table, Text, format_number, write_report
from evals.runner import Benchmark

#: changed items shown on the page; the JSON has all
SHOWN = 50


def run(first: Path, second: Path, output: Path) -> Path:
    """Write ``compare.json`` and ``compare.html``: first minus second, benchmark by benchmark.

    Raises:
        DataError: a folder without a finished evaluation, nothing that both answered, or two versions of a
            benchmark's questions.
    """
    a, b = read_run(first), read_run(second)
    found: dict[str, Any] = {}
    for name, suffix, benchmark in answered(a):
        if suffix in b.parts and benchmark.name in b.parts[suffix].responses:
            check_version(name, a, b)
            found[name] = compare(benchmark, a.parts[suffix], b.parts[suffix])
    if not found:
        mend = f"{first} has {', '.join(a.benchmarks)}; {second} has {', '.join(b.benchmarks)}"
        raise DataError("the two share no benchmark", file=str(second), mend=mend)
    whole: dict[str, Any] = {"first": a.name, "second": b.name}
    drawn = [run.results.get("decoding") for run in (a, b)]
    if drawn[0] != drawn[1]:
        # not a reason to stop: an endpoint's decoding, or a file's, may not be known
        whole["decoding"] = dict(zip(("first", "second"), drawn, strict=True))
    whole["benchmarks"] = found
    write_json(output / "compare.json", whole)
    write_report(output / "compare.html", page_of(whole))
    return output


def compare(benchmark: Benchmark, a: Part, b: Part) -> dict[str, Any]:
    """One benchmark: paired figures by rule, and the items whose verdict changed."""
    said_a, said_b = a.responses[benchmark.name], b.responses[benchmark.name]
    both = said_a.keys() & said_b.keys()
    kept = benchmark.only(both)
    ids = [item.id for item in kept.items]
    answers = [{name: said[name] for name in ids} for said in (said_a, said_b)]
    questions = [(item.id, item.question) for item in kept.items]
    result: dict[str, Any] = {"n": len(ids), "only_first": len(said_a.keys() - both),
                              "only_second": len(said_b.keys() - both)}  # fmt: skip
    by_rule = getattr(kept, "compare", None)
    judges = sorted(judge for judge, found in a.verdicts.items() if any(q in found for q in questions))
    if by_rule is None:
        # rated by a judge: its words are compared, as each rule reads them
        result["by_judge"] = {
            judge: {
                rule: _rated(_both(judge, questions, a, b), parse)
                for rule, parse in getattr(kept, "ratings", {}).items()
            }
            for judge in judges
        }
    elif len(judges) > 1:
        rules = [judge.removeprefix(f"{benchmark.name}/") for judge in judges]
        result["by_rule"] = {rule: by_rule(*answers, rule=rule) for rule in rules}
    else:
        result |= by_rule(*answers)
    result["changed"] = {judge: list(changed(_both(judge, questions, a, b))) for judge in judges}
    return result


def _both(
    judge: str, questions: Sequence[tuple[str, str]], a: Part, b: Part
) -> list[tuple[Verdict, Verdict]]:
    """The judge's verdicts on the questions that it judged in both runs."""
    one, two = a.verdicts.get(judge, {}), b.verdicts.get(judge, {})
    return [(one[q], two[q]) for q in questions if q in one and q in two]


def _rated(both: Sequence[tuple[Verdict, Verdict]], parse: Callable[[str], float | None]) -> dict[str, Any]:
    read = [(parse(x.reason or ""), parse(y.reason or ""), x.image or x.id) for x, y in both]
    scores = [(one, two, image) for one, two, image in read if one is not None and two is not None]
    found: dict[str, Any] = {"n": len(scores), "unrated": len(both) - len(scores)}
    if not scores:
        return found
    first, second, images = zip(*scores, strict=True)
    columns = (metrics.mean_columns(first), metrics.mean_columns(second))
    difference = metrics.paired_difference(*columns, statistic=metrics.ratio, clusters=images)
    return found | {"score": difference.as_dict()}


def changed(both: Sequence[tuple[Verdict, Verdict]]) -> Iterator[dict[str, Any]]:
    """Items that the two runs' verdicts score differently, with both answers."""
    for one, two in both:
        if one.score != two.score:
            yield {
                "id": one.id,
                "question": one.question,
                "first": {"response": one.response, "label": one.label, "score": one.score},
                "second": {"response": two.response, "label": two.label, "score": two.score},
            }


# --- the page ---


def page_of(whole: Mapping[str, Any]) -> Page:
    """A table of differences and one of changed items for each benchmark."""
    sections: list[Section] = []
    for name, found in whole["benchmarks"].items():
        figures = {key: value for key, value in found.items() if key != "changed"}
        rows: list[list[Cell]] = [[label, interval_from(f), f["n"]] for label, f in intervals(figures)]
        alone = f"{found['only_first']} and {found['only_second']} items were answered by one of them alone."
        note = f"{whole['first']} − {whole['second']}, {found['n']} items that both answered; {alone}"
        for rule, test in tests_in(found):
            note += f" McNemar's test{rule}: {test['only_a']} items only the first gets right, "
            note += f"{test['only_b']} only the second, p = {test['p']:.3g}."
        sections.append(Table(name, ["difference", "value", "n"], rows, note))
        for judge, items in found["changed"].items():
            if not items:
                sections.append(
                    Text(f"No verdict of {judge} changed.", title=f"{name}: changed items ({judge})")
                )
                continue
            cells: list[list[Cell]] = [
                [item["id"], item["question"], *(_told(item[side]) for side in ("first", "second"))]
                for item in items[:SHOWN]
            ]
            columns = ["id", "question", whole["first"], whole["second"]]
            title = f"{name}: {len(items)} changed items ({judge})"
            more = f"The first {SHOWN}; compare.json has all." if len(items) > SHOWN else ""
            sections.append(Table(title, columns, cells, more))
    title = f"{whole['first']} against {whole['second']}"
    footer = "Intervals: 95 % paired bootstrap. Where 0 lies in one, nothing is shown."
    if decoding := whole.get("decoding"):
        drawn = "; ".join(f"{whole[side]}: {how or 'not known'}" for side, how in decoding.items())
        sections.insert(0, Text(f"The two were not decoded alike. {drawn}.", title="Decoding"))
    return Page(title, sections, footer=footer)


def in_short(whole: Mapping[str, Any]) -> list[str]:
    """A line a benchmark: the first difference of its table on the page, with its interval."""
    lines = []
    for name, found in whole["benchmarks"].items():
        figures = {key: value for key, value in found.items() if key != "changed"}
        label, first = next(intervals(figures), (None, None))
        if label is None or first is None or not first["n"]:
            lines.append(f"{name}: nothing to compare")
            continue
        value, low, high = (format_number(first[key], 3) for key in ("value", "low", "high"))
        difference = f"{whole['first']} − {whole['second']} = {value} [{low}, {high}]"
        lines.append(f"{name}, {label}: {difference}, n = {first['n']}")
    return lines


def tests_in(found: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(of which rule, McNemar's test) of one benchmark's comparison."""
    if "mcnemar" in found:
        return [("", found["mcnemar"])]
    rules = found.get("by_rule", {})
    return [(f" ({rule})", one["mcnemar"]) for rule, one in rules.items() if "mcnemar" in one]


def _told(side: Mapping[str, Any]) -> str:
    return f"{side['response']} [{side['label']}]"
