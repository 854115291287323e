"""``make study-rlhf``: SFT, SFT+, RLHF, Fact-RLHF, DPO, GRPO and best-of-n over paired seeds (PROTOCOL.md).

Everything is resumable: a finished step is never run again, and the page and the JSON are rewritten
whenever a seed ends. Failures (a reward model under the gate, a policy that fell silent or left the
reference by more than ``max_kl``) are counted and stay in the figures; where there are some, further tables
leave out the seeds that hold them.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from apps.chain import STUDY, Chain, Scale, alone_in, chain, scale_of
from apps.demo import PUBLISHED, REWARDS, status_of
from apps.gates import passes, read_report
from apps.paired import DECODING, MODELS, SIBLINGS, descriptions
from apps.scheduler import Progress, Step, run_steps
from apps.siblings import siblings
from apps.studies.figures import FIGURES, figure_of, number, value
from data.folders import claim
from data.jsonl import read_json, write_json, write_text
from evals.metrics import Interval, t_interval
from evals.report import Bars, Page, Section, Status, Table, Text, as_markdown, write_report

#: under this recall (descriptions, T = 0.7) a policy counts as silent
SILENT = 0.1
#: compared models, the first minus the second
PAIRS = (
    ("Fact-RLHF", "RLHF"),
    ("RLHF", "SFT+"),
    ("Fact-RLHF", "SFT+"),
    *((name, "SFT+") for name in SIBLINGS),
    *(("Fact-RLHF", name) for name in SIBLINGS),
)
#: model -> the step that evaluated it
EVALUATED = MODELS | SIBLINGS


@dataclass(frozen=True)
class Seed:
    """What one finished seed says."""

    seed: int
    #: model -> the benchmarks of its evaluation
    benchmarks: dict[str, dict[str, Any]]
    #: reward model -> ``apps.gates.measure``
    rewards: dict[str, dict[str, Any]]
    #: "a − b" -> decoding's folder -> ``ObjectBenchmark.compare``
    matched: dict[str, dict[str, Any]]
    failures: list[str]


# --- the work ---


def steps_of(root: Path, seeds: Sequence[int], scale: Scale) -> list[Step]:
    """The chains of all seeds as one graph; a seed's pictures are deleted when it has been evaluated."""
    steps = []
    for seed in seeds:
        folder = root / f"seed-{seed}"
        own = chain(folder, seed, scale) + siblings(Chain(folder, seed, scale))
        evaluated = tuple(EVALUATED.values())
        own.append(Step("compare", compare_all, {"root": str(folder)}, evaluated, folder / "compare.json"))
        steps += of_seed(seed, [*own, clean_up(folder, own)])
    return steps


def of_seed(seed: int, steps: Sequence[Step]) -> list[Step]:
    """The same steps under names of their own, to stand in one graph with other seeds."""
    return [
        replace(step, name=f"{seed}/{step.name}", needs=tuple(f"{seed}/{need}" for need in step.needs))
        for step in steps
    ]


def clean_up(folder: Path, after: Sequence[Step]) -> Step:
    """The last step of a seed: see :func:`drop_pictures`."""
    needs = tuple(step.name for step in after)
    return Step("clean", drop_pictures, {"root": str(folder)}, needs, folder / "data/CLEAN")


def drop_pictures(root: str) -> None:
    """Delete a seed's pictures and training checkpoints; results, metrics, scenes and models stay."""
    folder = Path(root)
    heavy = [*folder.glob("data/images"), *folder.glob("data/*/images")]
    for path in [*heavy, *folder.glob("*/checkpoints"), *folder.glob("*/trainer")]:
        shutil.rmtree(path)
    (folder / "data/CLEAN").touch()


def compare_all(root: str) -> None:
    """Write ``compare.json``: each of ``PAIRS`` compared on the descriptions, by decoding."""
    folder = Path(root)
    found = {f"{a} − {b}": descriptions(folder, a, b) for a, b in PAIRS}
    write_json(folder / "compare.json", found)


def read_seed(folder: Path, seed: int) -> Seed | None:
    """A seed's figures, or None before all of its models are evaluated and compared."""
    paths = {name: folder / run / "results.json" for name, run in EVALUATED.items()}
    rewards = {name: report for name in REWARDS if (report := read_report(folder, name))}
    compared = folder / "compare.json"
    if not all(path.exists() for path in (*paths.values(), compared)) or len(rewards) < len(REWARDS):
        return None
    benchmarks = {name: read_json(path)["benchmarks"] for name, path in paths.items()}
    failures = failures_of(folder, benchmarks, rewards)
    return Seed(seed, benchmarks, rewards, read_json(compared), failures)


def failures_of(
    folder: Path, benchmarks: dict[str, dict[str, Any]], rewards: dict[str, dict[str, Any]]
) -> list[str]:
    """What the protocol counts as a failure in this seed."""
    found = [
        f"{REWARDS[n]} reward model under the gate" for n, report in rewards.items() if not passes(report)
    ]
    for name in ("RLHF", "Fact-RLHF", *SIBLINGS):
        if not FIGURES["recall, T=0.7"](benchmarks[name]) >= SILENT:
            found.append(f"{name} fell silent")
    for name, run in (("RLHF", "ppo"), ("Fact-RLHF", "ppo_fact")):
        stopped = read_json(folder / run / "result.json")["stopped"]
        if stopped is not None:
            found.append(f"{name} stopped at max_kl ({stopped})")
    return found


# --- the page ---


def tables(seeds: Sequence[Seed]) -> list[Table]:
    """The study's tables; where seeds hold failures, the main ones once more without those."""
    found = [model_table(seeds), difference_table(seeds), reward_table(seeds)]
    sound = [seed for seed in seeds if not seed.failures]
    if sound and len(sound) < len(seeds):
        left = f" without the {count(len(seeds) - len(sound))} with a failure"
        for table in (model_table(sound), difference_table(sound)):
            found.append(replace(table, title=table.title + left))
    return found


def count(seeds: int) -> str:
    return f"{seeds} seed" if seeds == 1 else f"{seeds} seeds"


def model_table(seeds: Sequence[Seed]) -> Table:
    """Every figure of the models: a mean over seeds with its interval."""
    rows: list[list[Any]] = [
        [name, *(_mean(figure_of(figure, s.benchmarks[name]) for s in seeds) for figure in FIGURES)]
        for name in EVALUATED
    ]
    for name, (f1, score) in PUBLISHED.items():
        known = {"POPE F1": f"{f1:.1f} %", "MMHal-style score": f"{score:.1f}"}
        rows.append([f"{name}, thesis 7B", *(known.get(figure) for figure in FIGURES)])
    note = (
        f"{count(len(seeds))}; means with Student's t intervals (95 %). The thesis's: Table 9.5, real images."
    )
    muted = frozenset(range(len(EVALUATED), len(rows)))
    return Table("The models", ["model", *FIGURES], rows, note, muted)


def _mean(values: Iterable[float]) -> Interval | None:
    """None where no seed has a value."""
    found = t_interval(values)
    return found if found.n else None


def difference_table(seeds: Sequence[Seed]) -> Table:
    """Paired differences on the descriptions: raw, cut to equal recall, and at matched recall."""
    raw, fair = ("hallucination_rate", "chair_i", "recall"), ("hallucination_rate", "chair_i")
    rows: list[list[Any]] = []
    for a, b in PAIRS:
        for word, how in DECODING.items():
            found = [f for s in seeds if (f := s.matched[f"{a} − {b}"].get(how)) is not None]
            if not found:
                continue
            cells = [t_interval(value(f["differences"][figure]) for f in found) for figure in raw]
            for way in ("equal_recall", "matched_recall"):
                cells += [t_interval(value(f[way][figure]["difference"]) for f in found) for figure in fair]
            rows.append([f"{a} − {b}", word, *cells])
    columns = ["difference", "decoding", "halluc. rate", "CHAIR_i", "recall",
               "halluc. rate, cut to equal recall", "CHAIR_i, cut to equal recall",
               "halluc. rate, matched recall", "CHAIR_i, matched recall"]  # fmt: skip
    note = (
        "The protocol's primary outcome is Fact-RLHF − RLHF at T = 0.7 and matched recall, whose strata "
        "favour the model that says less (amendment 1); what is claimed, is claimed from the columns cut to "
        "equal recall. Where 0 lies in an interval, nothing is shown."
    )
    return Table("Paired differences", columns, rows, note)


def reward_table(seeds: Sequence[Seed]) -> Table:
    """The reward models on choices that they were not trained on."""
    rows: list[list[Any]] = []
    for name, word in REWARDS.items():
        reports = [seed.rewards[name] for seed in seeds]
        cells = [
            t_interval(number(report[kind][figure]) for report in reports)
            for kind, figure in (
                ("noisy", "accuracy"),
                ("clean", "accuracy"),
                ("hallucination", "accuracy"),
                ("hallucination", "equal_length_accuracy"),
                ("hallucination", "shorter_accuracy"),
                ("clean", "length_correlation"),
            )
        ]
        rows.append([word, *cells, f"{sum(map(passes, reports))} of {len(reports)}"])
    columns = ["reward model", "noisy", "clean", "pairs that differ in hallucination", "same, equal length",
               "'shorter wins'", "score ~ length", "pass the gate"]  # fmt: skip
    return Table("Reward models on held-out pairs", columns, rows)


def build_page(seeds: Sequence[Seed], status: Status) -> Page:
    """The study's page for the seeds that are done."""
    sections: list[Section] = [
        Text("The protocol was written before the first run: apps/studies/PROTOCOL.md.")
    ]
    if seeds:
        sections += tables(seeds)
        bars = {
            figure: [_mean(figure_of(figure, s.benchmarks[name]) for s in seeds) for name in EVALUATED]
            for figure in ("halluc. rate, T=0.7", "halluc. rate, greedy", "recall, T=0.7")
        }
        sections.append(Bars("Descriptions", list(EVALUATED), bars, "share"))
        failures = [f"seed {seed.seed}: {failure}" for seed in seeds for failure in seed.failures]
        sections.append(Text("\n\n".join(failures) or "None.", title="Failures (counted, not removed)"))
    return Page("RLHF against Fact-RLHF over paired seeds", sections, "the built-in world", status)


def write_results(output: Path, seeds: Sequence[Seed], status: Status) -> None:
    """``report.html``; with a finished seed also ``tables.md`` and ``results.json``."""
    write_report(output / "report.html", build_page(seeds, status))
    if seeds:
        write_text(output / "tables.md", "\n".join(map(as_markdown, tables(seeds))))
        write_json(output / "results.json", [asdict(seed) for seed in seeds])


# --- the command ---


def parse(
    prog: str,
    argv: Sequence[str] | None,
    output: str,
    seeds: int,
    first: int,
    levels: Sequence[float] | None = None,
) -> argparse.Namespace:
    """The options that the studies share; ``seeds`` becomes the list of seeds. ``levels``: a sweep's own."""
    parser = argparse.ArgumentParser(prog=prog)
    parser.add_argument("--output", type=Path, default=Path(output), help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=seeds, help="how many; default: %(default)s")
    parser.add_argument("--first", type=int, default=first, help="the first seed; default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a miniature, to see that it runs")
    if levels is not None:
        words = f"levels of the sweep; default: {' '.join(f'{level:g}' for level in levels)}"
        parser.add_argument("--levels", type=float, nargs="+", default=list(levels), help=words)
    args = parser.parse_args(argv)
    if args.seeds < 1:
        parser.error(f"--seeds {args.seeds}: at least one seed is needed")
    args.seeds = list(range(args.first, args.first + args.seeds))
    return args


def follower(write: Callable[[Status], str]) -> Callable[[Progress], None]:
    """Rewrites a study's page whenever steps have ended. ``write`` returns how far it is, as a word."""
    start = time.monotonic()
    seen: set[tuple[int, bool]] = set()

    def follow(state: Progress) -> None:
        now = len(state.done), state.ended
        if now in seen:
            return
        seen.add(now)
        minutes = (time.monotonic() - start) / 60
        far = write(status_of(state, f"{minutes:.0f} minutes"))
        print(f"{minutes:5.1f} min  {len(state.done)} of {len(state.steps)} steps, {far}", flush=True)

    return follow


def main(argv: Sequence[str] | None = None) -> int:
    """Run or continue the study; returns the exit status."""
    args = parse("align study rlhf", argv, "runs/study-rlhf", seeds=8, first=100)
    scale, wanted = scale_of(args.quick, STUDY, study="rlhf")
    claim(args.output, "study.json", wanted)

    def write(status: Status) -> str:
        read = (read_seed(args.output / f"seed-{seed}", seed) for seed in args.seeds)
        ready = [seed for seed in read if seed is not None]
        write_results(args.output, ready, status)
        return f"{len(ready)} of {len(args.seeds)} seeds"

    with alone_in(args.output):
        run_steps(steps_of(args.output, args.seeds, scale), on_change=follower(write), every=15.0)
    print((args.output / "tables.md").read_text("utf-8"))
    return 0
