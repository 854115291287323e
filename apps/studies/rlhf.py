"""``make study-rlhf``: SFT, SFT+, RLHF and Fact-RLHF over paired seeds, by the protocol in PROTOCOL.md.

Everything is resumable: a finished step is never run again, and the page and the JSON are rewritten
whenever a seed ends. Failures (a reward model under the gate, a policy that fell silent or left the
reference by more than ``max_kl``) are counted and stay in the figures unless the protocol says otherwise.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from apps.chain import QUICK, Progress, Scale, Step, chain, run_steps
from apps.demo import MODELS, PUBLISHED
from apps.gates import passes, read_report
from data.jsonl import read_json, write_json, write_text
from data.world.build import read_scenes
from data.world.language import mentioned
from evals.metrics import Interval
from evals.objects import ObjectBenchmark
from evals.report import Bars, Page, Section, Status, Table, Text, write_report
from evals.runner import EvalItem

#: two-sided 95 % quantiles of Student's t, by degrees of freedom
_T95 = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
#: under this recall a policy counts as silent
SILENT = 0.1

FIGURES: dict[str, Callable[[dict[str, Any]], float]] = {
    "POPE F1": lambda b: b["pope"]["overall"]["official"]["f1"]["value"],
    "POPE yes-rate": lambda b: float(np.mean([s["official"]["yes_ratio"]["value"] for s in b["pope"]["splits"].values()])),
    "MMHal-style score": lambda b: b["mmhal"]["score"]["value"],
    "halluc. rate, T=0.7": lambda b: b["describe@0.7"]["hallucination_rate"]["value"],
    "CHAIR_i, T=0.7": lambda b: b["describe@0.7"]["chair_i"]["value"],
    "recall, T=0.7": lambda b: b["describe@0.7"]["recall"]["value"],
    "repeats, T=0.7": lambda b: b["describe@0.7"]["repeats"]["value"],
    "words, T=0.7": lambda b: b["describe@0.7"]["words"]["value"],
    "halluc. rate, greedy": lambda b: b["describe"]["hallucination_rate"]["value"],
    "CHAIR_i, greedy": lambda b: b["describe"]["chair_i"]["value"],
    "recall, greedy": lambda b: b["describe"]["recall"]["value"],
}


def over_seeds(values: Iterable[float]) -> Interval:
    """Mean of one value a seed with Student's t interval (95 %); no interval from a single seed."""
    x = np.asarray([v for v in values if math.isfinite(v)], float)
    if not len(x):
        return Interval(math.nan, math.nan, math.nan, 0)
    half = _T95[len(x) - 1] * x.std(ddof=1) / math.sqrt(len(x)) if 1 < len(x) <= len(_T95) else math.nan
    return Interval(float(x.mean()), float(x.mean() - half), float(x.mean() + half), len(x))


@dataclass(frozen=True)
class Seed:
    """What one finished seed says."""

    seed: int
    benchmarks: dict[str, dict[str, Any]]
    rewards: dict[str, dict[str, Any]]
    #: (a, b) -> decoding -> figures at matched recall, a minus b
    matched: dict[str, dict[str, Any]]
    failures: list[str]


def steps_of(root: Path, seeds: Sequence[int], scale: Scale) -> list[Step]:
    """The chains of all seeds as one graph; a seed's pictures are deleted when it has been evaluated."""
    steps = []
    for seed in seeds:
        folder = root / f"seed-{seed}"
        own = chain(folder, seed, scale)
        own.append(Step("clean", drop_pictures, {"root": str(folder)}, tuple(s.name for s in own)))
        done = (folder / "data/CLEAN").exists()
        steps += [
            replace(s, name=f"{seed}/{s.name}", needs=tuple(f"{seed}/{n}" for n in s.needs)) for s in own if not done
        ]
    return steps


def drop_pictures(root: str) -> None:
    """Delete a seed's pictures and models (results, metrics and adapters stay)."""
    folder = Path(root)
    shutil.rmtree(folder / "data/images", ignore_errors=True)
    for heavy in folder.glob("*/checkpoints"):
        shutil.rmtree(heavy, ignore_errors=True)
    (folder / "data/CLEAN").touch()


def read_seed(folder: Path, seed: int) -> Seed | None:
    """A seed's figures, or None before all of its models are evaluated."""
    paths = {name: folder / run / "results.json" for name, run in MODELS.items()}
    rewards = {r: rep for r in ("reward", "reward_fact") if (rep := read_report(folder, r))}
    if not all(p.exists() for p in paths.values()) or len(rewards) < 2:
        return None
    benchmarks = {name: read_json(p)["benchmarks"] for name, p in paths.items()}
    pairs = (("Fact-RLHF", "RLHF"), ("RLHF", "SFT+"), ("Fact-RLHF", "SFT+"))
    matched = {f"{a} − {b}": compare(folder, a, b) for a, b in pairs}
    failures = [f"{name} reward model under the gate" for name, rep in rewards.items() if not passes(rep)]
    for name, run in (("RLHF", "ppo"), ("Fact-RLHF", "ppo_fact")):
        if benchmarks[name]["describe@0.7"]["recall"]["value"] < SILENT:
            failures.append(f"{name} fell silent")
        if (folder / run / "STOPPED").exists():
            failures.append(f"{name} stopped at max_kl")
    return Seed(seed, benchmarks, rewards, matched, failures)


def compare(folder: Path, a: str, b: str) -> dict[str, Any]:
    """a minus b on the descriptions, paired by picture: greedy and at T = 0.7, also at matched recall."""
    cache = folder / "compare" / f"{MODELS[a]}-{MODELS[b]}.json"
    if cache.exists():
        return read_json(cache)
    scenes = read_scenes(folder / "data")
    found = {}
    for how in ("t0", "t0.7"):
        said = {m: _descriptions(folder / MODELS[m] / how / "responses.jsonl") for m in (a, b)}
        items = tuple(EvalItem(i, _image(i), "") for i in said[a])
        truth = {i.image.id: scenes[i.image.id].objects for i in items}
        found[how] = ObjectBenchmark(items, truth, mentioned).compare(said[a], said[b])
    write_json(cache, found)
    return found


def _image(item: str) -> Any:
    from data.schema import Image

    name = item.split("/")[-1]
    return Image(id=name, path=f"images/{name}.png")


def _descriptions(path: Path) -> dict[str, str]:
    rows = (json.loads(line) for line in path.read_text("utf-8").splitlines())
    return {r["id"]: r["response"] for r in rows if r["benchmark"] == "describe"}


# --- the page ---


def tables(seeds: Sequence[Seed]) -> list[Section]:
    """The study's tables; every cell is a mean over seeds with its interval."""
    rows: list[list[Any]] = [
        [name, *(over_seeds(f(s.benchmarks[name]) for s in seeds) for f in FIGURES.values())] for name in MODELS
    ]
    rows += [[f"{n}, thesis 7B", f"{f1:.1f} %", *[None] * (len(FIGURES) - 1)] for n, (f1, _) in PUBLISHED.items()]
    muted = frozenset(range(len(MODELS), len(rows)))
    main = Table("The four models", ["model", *FIGURES], rows, f"{len(seeds)} seeds, t intervals.", muted)
    differences: list[list[Any]] = []
    for pair in seeds[0].matched:
        for how, word in (("t0.7", "T = 0.7"), ("t0", "greedy")):
            found = [s.matched[pair][how] for s in seeds]
            raw = [over_seeds(f["differences"][k]["value"] for f in found) for k in ("hallucination_rate", "chair_i", "recall")]
            fair = [
                over_seeds(_number(f["matched_recall"][k]["difference"]["value"]) for f in found)
                for k in ("hallucination_rate", "chair_i")
            ]
            differences.append([pair, word, *raw, *fair])
    columns = ["difference", "decoding", "halluc. rate", "CHAIR_i", "recall", "halluc. rate, matched recall", "CHAIR_i, matched recall"]
    paired = Table("Paired differences (primary outcome: Fact-RLHF − RLHF, T = 0.7, at matched recall)", columns, differences)
    return [main, paired, reward_table(seeds)]


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def reward_table(seeds: Sequence[Seed]) -> Table:
    rows: list[list[Any]] = []
    for name, word in (("reward", "plain"), ("reward_fact", "fact-augmented")):
        reports = [s.rewards[name] for s in seeds]
        cells = [over_seeds(r[kind]["accuracy"] for r in reports) for kind in ("noisy", "clean", "hallucination")]
        more = [over_seeds(_number(r["hallucination"][k]) for r in reports) for k in ("equal_length_accuracy", "shorter_accuracy")]
        length = over_seeds(_number(r["clean"]["length_correlation"]) for r in reports)
        rows.append([word, *cells, *more, length, f"{sum(map(passes, reports))} of {len(reports)}"])
    columns = ["reward model", "noisy", "clean", "pairs that differ in hallucination", "same, equal length",
               "'shorter wins'", "score ~ length", "pass the gate"]  # fmt: skip
    return Table("Reward models on held-out pairs", columns, rows)


def build_page(title: str, seeds: Sequence[Seed], status: Status | None) -> Page:
    sections: list[Section] = [Text("The protocol was written before the first run: apps/studies/PROTOCOL.md.")]
    if seeds:
        sections += tables(seeds)
        groups = list(MODELS)
        bars = {
            k: [over_seeds(FIGURES[k](s.benchmarks[m]) for s in seeds) for m in groups]
            for k in ("halluc. rate, T=0.7", "halluc. rate, greedy", "recall, T=0.7")
        }
        sections.append(Bars("Descriptions", groups, bars, "share"))
        failures = [f"seed {s.seed}: {f}" for s in seeds for f in s.failures]
        sections.append(Text("\n\n".join(failures) or "None.", title="Failures (counted, not removed)"))
    return Page(title, sections, "the built-in world", status)


def as_markdown(table: Table) -> str:
    """A table for the README: means with intervals."""

    def cell(value: Any) -> str:
        if isinstance(value, Interval):
            return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]" if math.isfinite(value.low) else f"{value.value:.3f}"
        return "" if value is None else str(value) if not isinstance(value, float) else f"{value:.3f}"

    lines = ["| " + " | ".join(table.columns) + " |", "|" + " --- |" * len(table.columns)]
    return "\n".join(lines + ["| " + " | ".join(map(cell, row)) + " |" for row in table.rows]) + "\n"


def write_results(output: Path, seeds: Sequence[Seed], status: Status | None) -> None:
    write_report(output / "report.html", build_page("RLHF against Fact-RLHF over paired seeds", seeds, status))
    if seeds:
        found = tables(seeds)
        text = "\n".join(f"**{t.title}**\n\n{as_markdown(t)}" for t in found if isinstance(t, Table))
        write_text(output / "tables.md", text)
        rows: list[Mapping[str, Any]] = [s.__dict__ for s in seeds]
        write_json(output / "results.json", list(rows))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="align study rlhf", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/study-rlhf"))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first", type=int, default=100, help="the first seed; no seed of the calibration is used")
    parser.add_argument("--quick", action="store_true", help="a miniature, to see that it runs")
    args = parser.parse_args(argv)
    seeds = list(range(args.first, args.first + args.seeds))
    steps = steps_of(args.output, seeds, QUICK if args.quick else Scale())
    start = time.monotonic()
    seen: set[int] = set()

    def follow(state: Progress) -> None:
        ready = [s for seed in seeds if (s := read_seed(args.output / f"seed-{seed}", seed))] if _changed(state, seen) else None
        if ready is None:
            return
        left = len(state.done) < len(state.steps)
        status = Status(f"{len(ready)} of {len(seeds)} seeds", left, len(ready), len(seeds), f"{(time.monotonic() - start) / 60:.0f} minutes")
        write_results(args.output, ready, status)
        print(f"{(time.monotonic() - start) / 60:5.1f} min  {len(ready)} of {len(seeds)} seeds", flush=True)

    run_steps(steps, on_change=follow, every=15.0)
    ready = [s for seed in seeds if (s := read_seed(args.output / f"seed-{seed}", seed))]
    write_results(args.output, ready, None)
    print((args.output / "tables.md").read_text("utf-8"))
    return 0


def _changed(state: Progress, seen: set[int]) -> bool:
    """Whether more evaluations have ended since the last look."""
    ended = sum("eval" in name or "report" in name for name in state.done)
    fresh = ended not in seen
    seen.add(ended)
    return fresh
