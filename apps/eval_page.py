"""The page of evaluations: models side by side for each benchmark, and what the figures rest on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from evals import answers, published
from evals.metrics import Interval, interval_from
from evals.mmhal import TYPES
from evals.report import Bars, Cell, Page, Section, Table, Text

#: model -> its figures of one benchmark
Found = Mapping[str, Mapping[str, Any]]
RULES = ("official", "strict")
TITLES = {"pope": "POPE", "mmhal": "MMHal", "describe": "Free descriptions", "chair": "CHAIR",
          "amber": "AMBER", "llava_bench": "LLaVA-Bench", "mmbench": "MMBench"}  # fmt: skip
_GREY = "Published rows: the thesis's {} (other models, on the benchmark's own pictures)."

#: benchmark -> name of its main figure, where it stands, what makes it a share of 1, published values of it
MAIN: dict[str, tuple[str, tuple[str, ...], float, Mapping[str, float]]] = {
    "pope": ("POPE F1", ("overall", "official", "f1"), 1.0,
             {name: splits["overall"][1] / 100 for name, splits in published.POPE.items()}),
    "mmhal": ("MMHal score, 0-6", ("official", "score"), 1.0,
              {name: found[0] for name, found in published.MMHAL.items()}),
    "describe": ("with a false object", ("hallucination_rate",), 1.0, {}),
    "chair": ("CHAIR_i", ("chair_i",), 1.0, {}),
    "amber": ("AMBER F1", ("discriminative", "official", "all", "f1"), 0.01, {}),
    "llava_bench": ("LLaVA-Bench", ("official", "relative"), 0.01,
                    {name: value / 100 for name, value in published.LLAVA_BENCH.items()}),
    "mmbench": ("MMBench", ("official", "circular"), 1.0,
                {name: value / 100 for name, value in published.MMBENCH.items()}),
}  # fmt: skip


def page_of(
    models: Found, sections: Sequence[Section] = (), decoding: Mapping[str, str] | None = None
) -> Page:
    """Tables of every benchmark of the models (name -> ``results.json``'s benchmarks), then ``sections``.

    ``decoding``: model -> how its answers were drawn, where that is known.
    """
    subtitle = next(iter(models)) if len(models) == 1 else f"{len(models)} models"
    drawn = "".join(f"\n{name}: {how}." for name, how in (decoding or {}).items())
    footer = f"Intervals: 95 % bootstrap over images.{drawn}"
    return Page("Evaluation", [*sections_of(models), *sections], subtitle, footer=footer)


def sections_of(models: Found) -> list[Section]:
    """The tables and charts: of all benchmarks at a glance, then of each, then of the files of answers."""
    keys = list(dict.fromkeys(key for benchmarks in models.values() for key in benchmarks))
    sections: list[Section] = [overview(models, keys)] if len(keys) > 1 else []
    for key in keys:
        found = {name: benchmarks[key] for name, benchmarks in models.items() if key in benchmarks}
        silent = {name: text for name, one in found.items() if (text := silence(one))}
        rated = {name: one for name, one in found.items() if name not in silent}
        if rated:
            sections += LAYOUTS[key.split("@")[0]](title_of(key), rated)
        if silent:
            text = "\n\n".join(f"{name}: {text}" for name, text in silent.items())
            sections.append(Text(text, title=title_of(key)))
    return sections + answers_tables(models)


def title_of(key: str) -> str:
    """What the page calls a benchmark: "describe@0.7" is "Free descriptions, T = 0.7"."""
    name, *temperature = key.split("@")
    return ", T = ".join([TITLES[name], *temperature])


def silence(found: Mapping[str, Any]) -> str:
    """Why a benchmark has no figures; empty where it has some."""
    if found.get("n") == 0:
        return "No answer fits an item of the benchmark."
    if "judge" in found and found["judge"] is None:
        return (
            "The questions were answered, and the answers were not rated: no judge was given. Rate them "
            f"(MMHal's stand in mmhal_responses.json), then evaluate with verdicts=FILE. {provenance(found)}"
        )
    return ""


def overview(models: Found, keys: Sequence[str]) -> Table:
    """Each benchmark's main figure by the official rule."""
    shown = [key for key in keys if key.split("@")[0] in MAIN]
    rows: list[list[Cell]] = []
    for name, benchmarks in models.items():
        cells: list[Cell] = []
        for key in shown:
            _, path, unit, _ = MAIN[key.split("@")[0]]
            cells.append(_scaled(figure(benchmarks.get(key), *path), unit))
        rows.append([name, *cells])
    ours = len(rows)
    known = [name for name in published.FAMILY if any(name in MAIN[key.split("@")[0]][3] for key in shown)]
    for name in known:
        rows.append([name, *(MAIN[key.split("@")[0]][3].get(name) for key in shown)])
    suffixes = (f" ({key})" if keys.count(key.split("@")[0]) and "@" in key else "" for key in shown)
    columns = ["model", *(MAIN[key.split("@")[0]][0] + suffix for key, suffix in zip(shown, suffixes))]
    note = _GREY.format("Tables 9.3, 9.4, H.1 and H.2") if known else ""
    if "MMHal score, 0-6" in columns:
        note += " Its Table 9.5 gives LLaVA 7B an MMHal score of 1.3."
    note += "".join({_next_token({name: b[key] for name, b in models.items() if key in b}): None
                     for key in shown})  # fmt: skip
    return Table("Overview (official rules)", columns, rows, note, frozenset(range(ours, len(rows))))


def headlines(benchmarks: Mapping[str, Any]) -> list[str]:
    """Each benchmark's main figure in a line, or why it has none; for the terminal."""
    lines = []
    for key, one in benchmarks.items():
        label, path, unit, _ = MAIN[key.split("@")[0]]
        found = _scaled(figure(one, *path), unit)
        if found is None:
            # AMBER without its questions has another main figure
            told = silence(one).split(".")[0] or "see the page"
        else:
            told = f"{label} {found.value:.3f} [{found.low:.3f}, {found.high:.3f}], n = {found.n}"
        lines.append(f"{title_of(key)}: {told}")
    return lines


# --- one layout for each benchmark ---


def pope_sections(title: str, found: Found) -> list[Section]:
    """All splits together, where there are several, then each split under both rules."""
    names = list(dict.fromkeys(split for one in found.values() for split in one["splits"]))
    several = {name: one for name, one in found.items() if len(one["splits"]) > 1}
    sections: list[Section] = [_pope_overall(title, several)] if several else []
    return sections + [_pope_split(title, split, found) for split in names]


def _pope_overall(title: str, found: Found) -> Table:
    rows: list[list[Cell]] = []
    for name, one in found.items():
        ratios = [split["official"]["yes_ratio"]["value"] for split in one["splits"].values()]
        both = (figure(one, "overall", rule, "f1") for rule in RULES)
        splits = len(one["splits"])
        rows.append([name, splits, one["overall"]["n"], *both, sum(ratios) / len(ratios)])
    ours = len(rows)
    for name, known in published.POPE.items():
        _, f1, yes = known["overall"]
        rows.append([name, 3, None, f1 / 100, None, yes / 100])
    columns = ["model", "splits", "n", "F1 (official)", "F1 (strict)", "yes-rate (official)"]
    what = 'F1: mean of the splits\'; positive class "yes".'
    note = f"{what} {_GREY.format('Table H.2')}{_next_token(found)}"
    return Table(f"{title}: all splits", columns, rows, note, frozenset(range(ours, len(rows))))


def _pope_split(title: str, split: str, found: Found) -> Table:
    figures = ("accuracy", "precision", "recall", "f1", "yes_ratio")
    scored = any("next_token" in one for one in found.values())
    rows: list[list[Cell]] = []
    notes = {}
    for name, one in found.items():
        if split not in one["splits"]:
            continue
        of = one["splits"][split]
        for rule in RULES:
            cells = [figure(of, rule, key) for key in figures]
            ranked = [figure(one, "next_token", split, "auroc")] if scored else []
            rows.append([name, rule, of["n"], *cells, *ranked, of[rule]["counts"]["unparsed"]])
        notes[name] = pope_provenance(of)
    ours = len(rows)
    for name, splits in published.POPE.items():
        if split in splits:
            accuracy, f1, yes = splits[split]
            known = (accuracy and accuracy / 100, None, None, f1 / 100, yes / 100)
            rows.append([name, "official", None, *known, *[None] * (2 if scored else 1)])
    auroc = ["AUROC"] if scored else []
    columns = ["model", "rule", "n", "accuracy", "precision", "recall", "F1", "yes-rate", *auroc, "unparsed"]
    return Table(f"{title}: {split}", columns, rows, _note(notes), frozenset(range(ours, len(rows))))


def mmhal_sections(title: str, found: Found) -> list[Section]:
    """The score and the share of hallucinations under both rules; the score by question type."""
    repeated = any("repeats" in one["official"] for one in found.values())
    rows: list[list[Cell]] = []
    for name, one in found.items():
        for rule in RULES:
            cells = (figure(one, rule, key) for key in ("score", "hallucination_rate"))
            counts = [len(one[rule]["unrated"]), len(one["unjudged"]), len(one["steering"])]
            spread = [figure(one, rule, "repeats", "interval")] if repeated else []
            rows.append([name, rule, one["n"], *cells, *spread, *counts])
    ours = len(rows)
    rows += [
        [name, "official", 96, score, rate, *[None] * (4 if repeated else 3)]
        for name, (score, rate, _) in published.MMHAL.items()
    ]
    repeats = ["score over repeats"] if repeated else []
    columns = ["model", "rule", "n", "score, 0-6", "hallucination rate", *repeats, "unrated", "no verdict",
               "steering"]  # fmt: skip
    note = (
        "Unrated: the judge's words hold no readable rating (official: counted as 0; strict: left out). "
        "Steering: the response itself holds a rating, worth a look. "
    )
    muted = frozenset(range(ours, len(rows)))
    sections: list[Section] = [Table(title, columns, rows, note + _note(_told(found)), muted)]
    kinds = _ordered([kind for one in found.values() for kind in one["official"]["by_type"]], TYPES)
    scores = {
        name: [figure(one, "official", "by_type", kind, "score") for kind in kinds]
        for name, one in found.items()
    }
    sections.append(Bars(f"{title}: score by question type", kinds, _values(scores), "official rule, 0-6"))
    by_type: list[list[Cell]] = [[name, *cells] for name, cells in scores.items()]
    if set(kinds) <= set(TYPES):
        by_type += [
            [name, *(dict(zip(TYPES, of_type))[kind] for kind in kinds)]
            for name, (_, _, of_type) in published.MMHAL.items()
        ]
    muted = frozenset(range(len(scores), len(by_type)))
    columns = ["model", *kinds]
    note = _GREY.format("Table H.1") if muted else ""
    return [*sections, Table(f"{title}: score by question type (official)", columns, by_type, note, muted)]


def object_sections(title: str, found: Found) -> list[Section]:
    """What free descriptions name: CHAIR's two figures with recall and length beside them."""
    figures = ("hallucination_rate", "chair_i", "recall", "repeats", "words", "mentions")
    rows: list[list[Cell]] = [
        [name, one["n"], *(figure(one, key) for key in figures)] for name, one in found.items()
    ]
    columns = ["model", "n", "with a false object (CHAIR_s)", "CHAIR_i", "recall", "repeats", "words",
               "mentions"]  # fmt: skip
    note = "Repeats, words and mentions: a description. "
    return [Table(title, columns, rows, note + _note(_told(found)))]


def amber_sections(title: str, found: Found) -> list[Section]:
    """Percent, as AMBER's own scorer: free descriptions, and yes/no questions by group."""
    sections: list[Section] = []
    for half, figures in (("generative", ("chair", "cover", "hal", "cog")), ("discriminative", ())):
        halves = {name: one for name, one in found.items() if half in one}
        if not halves:
            continue
        if figures:
            rows: list[list[Cell]] = [
                [name, rule, one[half]["n"], *(figure(one, half, rule, key) for key in figures)]
                for name, one in halves.items()
                for rule in RULES
            ]
            columns = ["model", "rule", "n", "CHAIR, %", "Cover, %", "Hal, %", "Cog, %"]
        else:
            scored = any("next_token" in one for one in halves.values())
            rows = [row for name, one in halves.items() for row in _amber_groups(name, one, scored)]
            columns = ["model", "questions", "rule", "n", "accuracy, %", "precision, %", "recall, %", "F1, %",
                       *(["AUROC, %"] if scored else []), "unparsed"]  # fmt: skip
        note = _note(_told(halves)) + (_next_token(halves) if half == "discriminative" else "")
        sections.append(Table(f"{title}: {half}", columns, rows, note, digits=1))
    return sections


def _amber_groups(name: str, one: Mapping[str, Any], scored: bool) -> Iterator[list[Cell]]:
    found = one["discriminative"]
    groups = [key for key, one in found["official"].items() if isinstance(one, Mapping)]
    for group in groups:
        for rule in RULES:
            cells = [figure(found, rule, group, key) for key in ("accuracy", "precision", "recall", "f1")]
            n = cells[0].n if isinstance(cells[0], Interval) else None
            ranked = [_scaled(figure(one, "next_token", group, "auroc"), 100.0)] if scored else []
            unparsed = found[rule]["unparsed"] if group == "all" else None
            yield [name, group, rule, n, *cells, *ranked, unparsed]


def llava_bench_sections(title: str, found: Found) -> list[Section]:
    """Relative score in percent, of all questions and by category."""
    repeated = any("repeats" in one["official"] for one in found.values())
    kinds = list(dict.fromkeys(
        kind for one in found.values() for rule in RULES for kind in one[rule]["by_category"]
    ))  # fmt: skip
    rows: list[list[Cell]] = []
    for name, one in found.items():
        for rule in RULES:
            by_kind = (figure(one, rule, "by_category", kind, "relative") for kind in kinds)
            spread = [figure(one, rule, "repeats", "interval")] if repeated else []
            counts = [len(one[rule]["unrated"]), len(one["unjudged"])]
            rows.append([name, rule, one["n"], figure(one, rule, "relative"), *by_kind, *spread, *counts])
    ours = len(rows)
    blank: list[Cell] = [None] * (len(kinds) + (3 if repeated else 2))
    rows += [[name, "official", None, value, *blank] for name, value in published.LLAVA_BENCH.items()]
    percent = [f"{kind}, %" for kind in ("relative", *kinds, *(["over repeats"] if repeated else []))]
    columns = ["model", "rule", "n", *percent, "unrated", "no verdict"]
    note = f"{_note(_told(found))} {_GREY.format('Table 9.3')}"
    return [Table(title, columns, rows, note, frozenset(range(ours, len(rows))), digits=1)]


def mmbench_sections(title: str, found: Found) -> list[Section]:
    """Right under every rotation of the options, and in the file's own order alone."""
    rows: list[list[Cell]] = []
    for name, one in found.items():
        for rule in RULES:
            cells = (figure(one, rule, key) for key in ("circular", "vanilla"))
            rows.append([name, rule, one["n"], *cells, one[rule]["unparsed"]])
    ours = len(rows)
    rows += [[name, "official", None, value / 100, None, None] for name, value in published.MMBENCH.items()]
    columns = ["model", "rule", "n", "CircularEval", "file's order", "unparsed"]
    note = f"{_note(_told(found))} {_GREY.format('Table 9.4')}"
    sections: list[Section] = [Table(title, columns, rows, note, frozenset(range(ours, len(rows))))]
    kinds = list(dict.fromkeys(kind for one in found.values() for kind in one["official"]["by_category"]))
    if kinds:
        by_kind: list[list[Cell]] = [
            [kind, *(figure(one, "official", "by_category", kind, "circular") for one in found.values())]
            for kind in kinds
        ]
        sections.append(Table(f"{title}: CircularEval by category (official)", ["category", *found], by_kind))
    return sections


LAYOUTS: dict[str, Callable[[str, Found], list[Section]]] = {
    "pope": pope_sections,
    "mmhal": mmhal_sections,
    "describe": object_sections,
    "chair": object_sections,
    "amber": amber_sections,
    "llava_bench": llava_bench_sections,
    "mmbench": mmbench_sections,
}


def answers_tables(models: Found) -> list[Section]:
    """What is missing, or did not fit in files of answers; nothing where neither can be."""
    rows: list[list[Cell]] = [
        [name, key, told["answered"], *(told[kind]["n"] for kind in answers.TROUBLES)]
        for name, benchmarks in models.items()
        for key, one in benchmarks.items()
        if (told := one.get("answers"))
    ]
    kinds = [kind.replace("_", " ") for kind in answers.TROUBLES]
    note = "The figures are of the items that have one answer; results.json names the first of each kind."
    columns = ["model", "benchmark", "answered", *kinds]
    return [Table("Answers that are missing or do not fit", columns, rows, note)] if rows else []


# --- cells and notes ---


def figure(found: Mapping[str, Any] | None, *path: str) -> Interval | None:
    """The interval that stands at a path of nested results; None where there is none."""
    at: Any = found
    for key in path:
        if not isinstance(at, Mapping):
            return None
        at = at.get(key)
    return interval_from(at) if isinstance(at, dict) and "value" in at else None


def _scaled(found: Interval | None, unit: float) -> Interval | None:
    if found is None or unit == 1.0:
        return found
    return replace(found, value=found.value * unit, low=found.low * unit, high=found.high * unit)


def _values(found: Mapping[str, Sequence[Interval | None]]) -> dict[str, list[float | Interval | None]]:
    return {name: list(values) for name, values in found.items()}


def _ordered(found: Sequence[str], order: Sequence[str]) -> list[str]:
    """Each once, known ones in their order, others after them."""
    names = dict.fromkeys(found)
    return [name for name in order if name in names] + [name for name in names if name not in order]


def _told(found: Found) -> dict[str, str]:
    return {name: provenance(one) for name, one in found.items()}


def _note(told: Mapping[str, str]) -> str:
    """One text for all models where it is the same, else each model's."""
    if len(set(told.values())) == 1:
        return next(iter(told.values()))
    return " ".join(f"{name}: {text}" for name, text in told.items())


def _next_token(found: Found) -> str:
    """Says of which models the answers were not generated; empty where all were."""
    names = [name for name, one in found.items() if "next_token" in one]
    whose = f" of {', '.join(names)}" if len(names) < len(found) else ""
    told = f" Answers{whose}: the likelier of yes and no as the first token, not generated."
    return told if names else ""


def pope_provenance(split: Mapping[str, Any]) -> str:
    """Of which file a split's figures are; several random files are in circulation."""
    known = published.POPE_FILES.get(split["sha256"])
    what = f", the {known}" if known else ""
    return f"{split['images']} images; file sha256 {split['sha256']}{what}."


def provenance(found: Mapping[str, Any]) -> str:
    """Of which questions a benchmark's figures are, and who or what judged."""
    told = [f"questions and truth sha256 {found['sha256']}"]
    for key, label in (("judge", "judge"), ("vocabulary", "vocabulary"), ("nouns", "nouns by")):
        if found.get(key):
            told.append(f"{label} {found[key]}")
    if prompt := found.get("prompt"):
        told.append(f"prompt (for a judge that reads one) {prompt['name']}, sha256 {prompt['sha256']}")
    text = "; ".join(told)
    return f"{text[0].upper()}{text[1:]}."


def intervals(found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every figure with an interval inside nested results, with its path as a label."""
    for key, value in found.items():
        if isinstance(value, dict):
            label = f"{prefix}{key}".replace("_", " ")
            if {"value", "low", "high", "n"} <= value.keys():
                yield label, value
            else:
                yield from intervals(value, f"{prefix}{key}, ")
