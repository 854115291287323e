"""``make study-vision``: when do facts matter? The reward models' eyes are weakened, step by step.

The policy always sees the sharp picture; both reward models are trained on, and score, pictures that
went through a Gaussian blur. One SFT+ policy, one set of labels and one set of prompts a seed serve all
levels, so that the levels differ in nothing else. Protocol: PROTOCOL.md, second part.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apps.chain import STUDY, Scale, alone_in, chain, scale_of
from apps.gates import read_report
from apps.paired import descriptions
from apps.scheduler import Step, run_steps
from apps.studies.figures import FIGURES, number
from apps.studies.rlhf import clean_up, follower, of_seed, parse
from data.folders import claim
from data.jsonl import read_json, write_json, write_text
from evals.metrics import t_interval
from evals.report import Curves, Page, Section, Status, Table, Text, as_markdown, write_report

#: radius of the blur in pixels of the 96-pixel picture; an object is 20 to 30 pixels wide
LEVELS = (0.0, 2.0, 4.0)
ARMS = {"RLHF": "ppo", "Fact-RLHF": "ppo_fact"}
#: figures of a policy in the tables
SHOWN = (
    "halluc. rate, T=0.7",
    "CHAIR_i, T=0.7",
    "recall, T=0.7",
    "repeats, T=0.7",
    "words, T=0.7",
    "POPE F1",
)
#: figures of the arms' difference that claims are made from
CUT = {
    "hallucination_rate": "halluc. rate, T=0.7, cut to equal recall",
    "chair_i": "CHAIR_i, T=0.7, cut to equal recall",
}


# --- the work ---


def blur_pictures(root: str, radius: float) -> None:
    """``data/blur-<radius>/images``: the pictures that the reward models see at this level.

    Those are the pictures of the sampled pairs and of PPO's prompts.
    """
    from data.images import open_image
    from data.jsonl import read_records
    from data.schema import Prompt
    from data.world.draw import blur

    data = Path(root) / "data"
    target = data / f"blur-{radius:g}"
    for split in ("pairs", "prompts"):
        for record in read_records(data / f"{split}.jsonl", "prompt"):
            if isinstance(record, Prompt) and record.image and record.image.path:
                path = target / record.image.path
                path.parent.mkdir(parents=True, exist_ok=True)
                blur(open_image(record.image, data), radius).save(path, compress_level=1)
    (target / "DONE").touch()


def steps_of(root: Path, seeds: Sequence[int], levels: Sequence[float], scale: Scale) -> list[Step]:
    """A shared start for each seed, then reward models and PPO for each level."""
    steps: list[Step] = []
    for seed in seeds:
        folder = root / f"seed-{seed}"
        whole = [s for s in chain(folder, seed, scale) if s.name not in ("sft", "eval_sft")]
        own = [s for s in whole if not is_weakened(s.name)]
        for radius in levels:
            marker = folder / f"data/blur-{radius:g}/DONE"
            arguments = {"root": str(folder), "radius": radius}
            own.append(Step(f"blur-{radius:g}", blur_pictures, arguments, ("data",), marker))
            own += [at_level(s, folder, radius) for s in whole if is_weakened(s.name)]
        steps += of_seed(seed, [*own, clean_up(folder, own)])
    return steps


def is_weakened(name: str) -> bool:
    """Whether a step depends on what the reward models see."""
    return "reward" in name or "ppo" in name


def level_name(name: str, radius: float) -> str:
    """The run of a step at one level: its own where the step depends on it, the shared one else."""
    return f"blur-{radius:g}-{name}" if is_weakened(name) else name


def at_level(step: Step, folder: Path, radius: float) -> Step:
    """The same step with its own run directory and, for what the reward models see, the blurred pictures."""
    name, images = level_name(step.name, radius), str(folder / f"data/blur-{radius:g}")
    needs = (*(level_name(need, radius) for need in step.needs), f"blur-{radius:g}")
    arguments = dict(step.arguments)
    if "overrides" in arguments:
        stage, values = arguments["stage"], dict(arguments["overrides"])
        values["output"] = str(folder / name)
        if stage == "reward":
            values |= {"data.images": images, "eval_data.images": images}
        elif stage == "ppo":
            reward = level_name(Path(values["reward_model"]).name, radius)
            values |= {"reward_model": str(folder / reward), "reward_images": images}
        elif stage == "eval":
            policy = level_name(Path(values["model.adapter"]).parent.name, radius)
            values["model.adapter"] = str(folder / policy / "policy")
        arguments["overrides"] = values
    else:
        arguments |= {"reward": level_name(arguments["reward"], radius), "images": images}
    marker = step.marker and folder / name / step.marker.name
    return Step(name, step.run, arguments, needs, marker)


# --- the page ---


def read_levels(root: Path, seeds: Sequence[int], levels: Sequence[float]) -> list[dict[str, Any]]:
    """One row for each (seed, level, arm) that has been evaluated, and for each seed's SFT+ (no level)."""
    rows: list[dict[str, Any]] = []

    def add(folder: Path, run: str, **more: Any) -> None:
        path = folder / run / "results.json"
        if path.exists():
            benchmarks = read_json(path)["benchmarks"]
            rows.append(more | {name: figure(benchmarks) for name, figure in FIGURES.items()})

    for seed in seeds:
        folder = root / f"seed-{seed}"
        add(folder, "eval_sft_plus", seed=seed, blur=None, arm="SFT+", reward=None)
        for radius in levels:
            for label, arm in ARMS.items():
                report = read_report(folder, level_name(arm.replace("ppo", "reward"), radius))
                if report:
                    run = level_name(f"eval_{arm}", radius)
                    cut = equal_recall(folder, radius) if label == "Fact-RLHF" else None
                    add(folder, run, seed=seed, blur=radius, arm=label, reward=report, cut=cut)
    return rows


def equal_recall(folder: Path, radius: float) -> dict[str, float | None] | None:
    """Fact-RLHF − RLHF at T = 0.7, the longer descriptions cut; None before both are evaluated."""
    facts, plain = (level_name(f"eval_{ARMS[arm]}", radius) for arm in ("Fact-RLHF", "RLHF"))
    if not all((folder / run / "results.json").exists() for run in (facts, plain)):
        return None
    return _equal_recall(folder, facts, plain)


@functools.lru_cache(maxsize=64)
def _equal_recall(folder: Path, facts: str, plain: str) -> dict[str, float | None]:
    # what was said does not change any more, and the page is written every few seconds
    found = descriptions(folder, facts, plain)["t0.7"]["equal_recall"]
    return {figure: found[figure]["difference"]["value"] for figure in CUT}


def policies(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["blur"] is not None]


def sections_of(rows: Sequence[dict[str, Any]], levels: Sequence[float]) -> list[Section]:
    """A chart over the levels, the figures by level and arm, and the paired differences of the arms."""

    def at(arm: str, radius: float | None) -> dict[int, dict[str, Any]]:
        return {row["seed"]: row for row in rows if row["arm"] == arm and row["blur"] == radius}

    def mean(found: dict[int, dict[str, Any]], figure: str) -> Any:
        return t_interval(row[figure] for row in found.values())

    start = at("SFT+", None)
    cells: list[list[Any]] = [["SFT+, where all start", None, *(mean(start, figure) for figure in SHOWN)]]
    differences: list[list[Any]] = []
    for radius in levels:
        for arm in ARMS:
            found = at(arm, radius)
            right = (number(row["reward"]["hallucination"]["accuracy"]) for row in found.values())
            cells.append([f"blur {radius:g}, {arm}", t_interval(right), *(mean(found, f) for f in SHOWN)])
        facts, plain = at("Fact-RLHF", radius), at("RLHF", radius)
        both = sorted(facts.keys() & plain.keys())
        paired = [t_interval(facts[seed][f] - plain[seed][f] for seed in both) for f in SHOWN]
        cut = [t_interval(number(facts[seed]["cut"][f]) for seed in both) for f in CUT]
        differences.append([f"blur {radius:g}", len(both), *cut, *paired])
    lines = {arm: [(radius, mean(at(arm, radius), SHOWN[0]).value) for radius in levels] for arm in ARMS}
    accuracy = "RM accuracy, hallucination pairs"
    return [
        Curves("False objects against the reward models' blur", lines, "blur radius, pixels", SHOWN[0]),
        Table("Policies by the reward models' vision", ["level", accuracy, *SHOWN], cells),
        Table("Fact-RLHF − RLHF, paired by seed", ["level", "seeds", *CUT.values(), *SHOWN], differences),
    ]


def write_results(
    output: Path, rows: Sequence[dict[str, Any]], levels: Sequence[float], status: Status
) -> None:
    """``report.html``, ``tables.md`` and ``results.json`` of what has been evaluated so far."""
    intro = (
        "Both reward models see blurred pictures, the policy sharp ones. Protocol: apps/studies/PROTOCOL.md."
    )
    sections = sections_of(rows, levels) if rows else []
    page = Page("When facts matter", [Text(intro), *sections], "the built-in world", status)
    write_report(output / "report.html", page)
    tables = [section for section in sections if isinstance(section, Table)]
    write_text(output / "tables.md", "\n".join(map(as_markdown, tables)))
    write_json(output / "results.json", [{k: _writable(v) for k, v in row.items()} for row in rows])


def _writable(found: Any) -> Any:
    """None in NaN's place, which JSON does not know."""
    return None if isinstance(found, float) and math.isnan(found) else found


def main(argv: Sequence[str] | None = None) -> int:
    """Run or continue the study; returns the exit status."""
    args = parse("align study vision", argv, "runs/study-vision", seeds=2, first=200, levels=LEVELS)
    scale, wanted = scale_of(args.quick, STUDY, study="vision")
    claim(args.output, "study.json", wanted)
    levels = args.levels[:2] if args.quick else args.levels

    def write(status: Status) -> str:
        rows = read_levels(args.output, args.seeds, levels)
        write_results(args.output, rows, levels, status)
        return f"{len(policies(rows))} of {len(args.seeds) * len(levels) * len(ARMS)} policies"

    steps = steps_of(args.output, args.seeds, levels, scale)
    with alone_in(args.output):
        run_steps(steps, on_change=follower(write), every=15.0)
    print((args.output / "tables.md").read_text("utf-8"))
    return 0
