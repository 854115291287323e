"""``make study-vision``: when do facts matter? The reward models' eyes are weakened, step by step.

The policy always sees the sharp picture; both reward models are trained on, and score, pictures that
went through a Gaussian blur. One SFT+ policy, one set of labels and one set of prompts a seed serve all
levels, so that the levels differ in nothing else. Protocol: PROTOCOL.md, second part.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from apps.chain import QUICK, Progress, Scale, Step, chain, run_steps
from apps.gates import read_report
from apps.studies.rlhf import FIGURES, as_markdown, drop_pictures, over_seeds
from data.jsonl import read_json, write_json, write_text
from evals.report import Curves, Page, Section, Status, Table, Text, write_report

#: radius of the blur in pixels of the 96-pixel picture; an object is 20 to 30 pixels wide
LEVELS = (0.0, 1.0, 2.0, 4.0)
ARMS = {"RLHF": "ppo", "Fact-RLHF": "ppo_fact"}


def blur_pictures(root: str, radius: float) -> None:
    """``data/blur-<radius>/images``: the pictures that the reward models see at this level."""
    from PIL import Image

    from data.world.draw import blur

    source = Path(root) / "data/images"
    target = Path(root) / f"data/blur-{radius:g}/images"
    if (target.parent / "DONE").exists():
        return
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*.png")):
        if path.name.startswith(("w", "W")):
            blur(Image.open(path), radius).save(target / path.name, compress_level=1)
    (target.parent / "DONE").touch()


def steps_of(root: Path, seeds: Sequence[int], levels: Sequence[float], scale: Scale) -> list[Step]:
    """A shared start for each seed, then reward models and PPO for each level."""
    steps: list[Step] = []
    for seed in seeds:
        folder = root / f"seed-{seed}"
        if (folder / "data/CLEAN").exists():
            continue
        own = [s for s in chain(folder, seed, scale) if not s.name.startswith(("eval_sft", "sft"))
               or s.name in ("sft_plus", "eval_sft_plus")]  # fmt: skip
        shared = [s for s in own if "reward" not in s.name and "ppo" not in s.name]
        arms = [s for s in own if s not in shared]
        for radius in levels:
            shared.append(Step(f"blur-{radius:g}", blur_pictures, {"root": str(folder), "radius": radius}, ("data",)))
            shared += [at_level(s, folder, radius) for s in arms]
        shared.append(Step("clean", drop_pictures, {"root": str(folder)}, tuple(s.name for s in shared)))
        steps += [replace(s, name=f"{seed}/{s.name}", needs=tuple(f"{seed}/{n}" for n in s.needs)) for s in shared]
    return steps


def at_level(step: Step, folder: Path, radius: float) -> Step:
    """The same step with its own run directory and, for what the reward models see, the blurred pictures."""
    prefix, images = f"blur-{radius:g}-", str(folder / f"data/blur-{radius:g}")

    def moved(name: str) -> str:
        return prefix + name if "reward" in name or "ppo" in name else name

    needs = (*(moved(n) for n in step.needs), f"blur-{radius:g}")
    arguments = dict(step.arguments)
    if "overrides" in arguments:
        values: dict[str, Any] = dict(arguments["overrides"])
        values["output"] = str(folder / moved(step.name))
        if arguments["stage"] == "reward":
            values |= {"data.images": images, "eval_data.images": images}
        if arguments["stage"] == "ppo":
            values |= {"reward_model": str(folder / moved(Path(values["reward_model"]).name)), "reward_images": images}
        if arguments["stage"] == "eval":
            values["model.adapter"] = str(folder / moved(Path(values["model.adapter"]).parent.name) / "policy")
        arguments["overrides"] = values
    else:
        arguments |= {"reward": moved(arguments["reward"]), "images": images}
    return Step(moved(step.name), step.run, arguments, needs)


def read_levels(root: Path, seeds: Sequence[int], levels: Sequence[float]) -> list[dict[str, Any]]:
    """One row for each (seed, level, arm) that has been evaluated."""
    rows = []
    for seed in seeds:
        folder = root / f"seed-{seed}"
        for radius in levels:
            for label, arm in ARMS.items():
                path = folder / f"blur-{radius:g}-eval_{arm}" / "results.json"
                report = read_report(folder, f"blur-{radius:g}-{arm.replace('ppo', 'reward')}")
                if path.exists() and report:
                    figures = {k: f(read_json(path)["benchmarks"]) for k, f in FIGURES.items()}
                    rows.append({"seed": seed, "blur": radius, "arm": label, "reward": report, **figures})
    return rows


def sections_of(rows: Sequence[dict[str, Any]], levels: Sequence[float]) -> list[Section]:
    keys = ("halluc. rate, T=0.7", "CHAIR_i, T=0.7", "recall, T=0.7", "repeats, T=0.7", "words, T=0.7", "POPE F1")
    cells: list[list[Any]] = []
    differences: list[list[Any]] = []
    for radius in levels:
        arms = {arm: {r["seed"]: r for r in rows if r["blur"] == radius and r["arm"] == arm} for arm in ARMS}
        for arm, found in arms.items():
            accuracy = over_seeds(r["reward"]["hallucination"]["accuracy"] for r in found.values())
            cells.append([f"blur {radius:g}, {arm}", accuracy, *(over_seeds(r[k] for r in found.values()) for k in keys)])
        both = sorted(set(arms["RLHF"]) & set(arms["Fact-RLHF"]))
        differences.append([f"blur {radius:g}", len(both), *(
            over_seeds(arms["Fact-RLHF"][s][k] - arms["RLHF"][s][k] for s in both) for k in keys)])  # fmt: skip
    lines = {
        arm: [(radius, over_seeds(r[keys[0]] for r in rows if r["arm"] == arm and r["blur"] == radius).value) for radius in levels]
        for arm in ARMS
    }
    return [
        Curves("False objects against the reward models' blur", lines, "blur radius, pixels", keys[0]),
        Table("Policies by the reward models' vision", ["level", "RM accuracy, hallucination pairs", *keys], cells),
        Table("Fact-RLHF − RLHF, paired by seed", ["level", "seeds", *keys], differences),
    ]


def write_results(output: Path, rows: Sequence[dict[str, Any]], levels: Sequence[float], status: Status | None) -> None:
    intro = Text("Both reward models see blurred pictures, the policy sharp ones. Protocol: apps/studies/PROTOCOL.md.")
    sections = sections_of(rows, levels) if rows else []
    write_report(output / "report.html", Page("When facts matter", [intro, *sections], "the built-in world", status))
    tables = [s for s in sections if isinstance(s, Table)]
    write_text(output / "tables.md", "\n".join(f"**{t.title}**\n\n{as_markdown(t)}" for t in tables))
    write_json(output / "results.json", list(rows))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="align study vision", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/study-vision"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="a miniature, to see that it runs")
    args = parser.parse_args(argv)
    seeds = list(range(args.first, args.first + args.seeds))
    levels = LEVELS[:2] if args.quick else LEVELS
    start = time.monotonic()
    shown = -1

    def follow(state: Progress) -> None:
        nonlocal shown
        rows = read_levels(args.output, seeds, levels)
        if len(rows) == shown:
            return
        shown = len(rows)
        total = len(seeds) * len(levels) * len(ARMS)
        minutes = (time.monotonic() - start) / 60
        write_results(args.output, rows, levels, Status(f"{shown} of {total} policies", True, shown, total, f"{minutes:.0f} minutes"))
        print(f"{minutes:5.1f} min  {shown} of {total} policies", flush=True)

    run_steps(steps_of(args.output, seeds, levels, QUICK if args.quick else Scale()), on_change=follow, every=15.0)
    write_results(args.output, read_levels(args.output, seeds, levels), levels, None)
    print((args.output / "tables.md").read_text("utf-8"))
    return 0

