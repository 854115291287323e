"""``align demo``: the whole chain on the built-in world, with a page that shows it while it goes."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from apps.chain import QUICK, Progress, Scale, chain, run_steps
from apps.gates import read_report
from data.jsonl import read_json, write_json
from data.world.annotators import false_objects
from data.world.build import read_scenes
from data.world.draw import draw_scene
from data.world.language import mentioned
from data.world.scene import Scene
from evals.metrics import interval_from
from evals.objects import false_spans
from evals.report import Answer, Curves, Gallery, GalleryItem, Page, Section, Status, Table, Text, write_report

MODELS = {"SFT": "eval_sft", "SFT+": "eval_sft_plus", "RLHF": "eval_ppo", "Fact-RLHF": "eval_ppo_fact"}
#: Table 9.5 (7B; RLHF with the 13B reward model): POPE F1 and MMHal score
PUBLISHED = {"SFT": (76.0, 1.3), "SFT+": (82.7, 1.8), "RLHF": (82.7, 1.8), "Fact-RLHF": (81.5, 2.1)}
LABELS = {
    "data": "drawing the world", "sft": "SFT", "sft_plus": "SFT+", "samples": "sampling responses",
    "labels": "simulated labelers", "reward": "reward model", "reward_fact": "fact-augmented reward model",
    "ppo": "PPO (RLHF)", "ppo_fact": "PPO (Fact-RLHF)",
}  # fmt: skip


def run(output: Path, seed: int = 0, quick: bool = False, scale: Scale | None = None) -> Path:
    """Run or continue the demo under ``output``; returns the page's path."""
    scale = scale or (QUICK if quick else Scale())
    check_settings(output, seed, scale)
    steps = chain(output, seed, scale)
    start = time.monotonic()
    page = output / "report.html"
    shown: list[str] = []

    def follow(state: Progress) -> None:
        write_report(page, build_page(output, state, time.monotonic() - start))
        for name in sorted(state.running | state.done):
            word = f"{'done' if name in state.done else 'start'} {name}"
            if word not in shown:
                shown.append(word)
                print(f"{time.monotonic() - start:5.0f} s  {word}", flush=True)

    print(f"the page: {page}", flush=True)
    run_steps(steps, on_change=follow)
    print(summary(output))
    return page


def check_settings(output: Path, seed: int, scale: Scale) -> None:
    """A demo folder belongs to one seed and one size; ValueError with the mend otherwise."""
    from dataclasses import asdict

    wanted = {"seed": seed, **asdict(scale)}
    path = output / "demo.json"
    if path.exists() and (found := read_json(path)) != wanted:
        keys = sorted(k for k in wanted if wanted[k] != found.get(k))
        raise DemoError(f"{output}: belongs to a demo with other {', '.join(keys)}; choose another --output or delete it")
    write_json(path, wanted)


class DemoError(ValueError):
    """A demo that cannot go on; the text says why."""


# --- the page ---


def results(root: Path) -> dict[str, dict[str, Any]]:
    """Benchmarks of the models evaluated so far, by the model's name."""
    found = {}
    for name, folder in MODELS.items():
        path = root / folder / "results.json"
        if path.exists():
            found[name] = read_json(path)["benchmarks"]
    return found


def build_page(root: Path, state: Progress, seconds: float) -> Page:
    finished = len(state.done) == len(state.steps)
    now = ", ".join(LABELS.get(n, n.replace("_", " ")) for n in sorted(state.running))
    status = Status(
        text="finished" if finished else f"running: {now or 'starting'}", running=not finished, done=len(state.done),
        total=len(state.steps), detail=f"{seconds / 60:.1f} minutes", refresh=5,
    )  # fmt: skip
    found = results(root)
    sections: list[Section] = [Text(_INTRO)]
    if found:
        sections += [main_table(found), describe_table(found)]
    rewards = {r: rep for r in ("reward", "reward_fact") if (rep := read_report(root, r))}
    if rewards:
        sections.append(reward_table(rewards))
    sections += curves(root)
    if "SFT" in found:
        sections.append(gallery(root, list(found)))
    return Page("From a scene to an aligned, measured model", sections, "the built-in world, one seed", status, _FOOTER)


_INTRO = (
    "Four models answer questions about pictures of a small world whose content is fully known. SFT learns from "
    "machine-written conversations, of which some name things that are not there; SFT+ adds clean yes/no, choice and "
    "spotting turns; RLHF and Fact-RLHF start from SFT+ and follow a reward model trained on simulated labelers' "
    "choices, the latter with five captions of the picture as facts."
)
_FOOTER = "Intervals: 95 % bootstrap over images. One seed shows the chain at work; `make study-rlhf` compares over eight."


def main_table(found: Mapping[str, dict[str, Any]]) -> Table:
    rows: list[list[Any]] = []
    for name, benchmarks in found.items():
        pope = benchmarks["pope"]
        splits = pope["splits"].values()
        yes = sum(s["official"]["yes_ratio"]["value"] for s in splits) / len(splits)
        unparsed = sum(s["strict"]["counts"]["unparsed"] for s in splits)
        mmhal = benchmarks["mmhal"]
        rows.append([name, interval_from(pope["overall"]["official"]["f1"]), interval_from(pope["overall"]["strict"]["f1"]),
                     unparsed, yes, interval_from(mmhal["score"]), interval_from(mmhal["hallucination_rate"])])  # fmt: skip
    ours = len(rows)
    rows += [[f"{n}, thesis 7B", f"{f1:.1f} %", None, None, None, f"{score:.1f}", None] for n, (f1, score) in PUBLISHED.items()]
    columns = ["model", "POPE F1 (official)", "POPE F1 (strict)", "unparsed", "yes-rate", "MMHal-style 0-6", "MMHal-style halluc."]
    note = "Grey: the thesis's Table 9.5 on real images with LLaVA 7B; another task, shown for the pattern."
    return Table("Yes/no questions and open questions", columns, rows, note, frozenset(range(ours, len(rows))))


def describe_table(found: Mapping[str, dict[str, Any]]) -> Table:
    rows = []
    for name, benchmarks in found.items():
        for key, how in (("describe", "greedy"), ("describe@0.7", "T = 0.7")):
            d = benchmarks[key]
            figures = ("hallucination_rate", "chair_i", "recall", "repeats", "words")
            rows.append([name, how, d["n"], *(interval_from(d[f]) for f in figures)])
    columns = ["model", "decoding", "n", "with a false object", "CHAIR_i", "recall", "repeats", "words"]
    return Table("Free descriptions", columns, rows, "With a false object: share of descriptions that name something absent.")


def reward_table(reports: Mapping[str, dict[str, Any]]) -> Table:
    rows = []
    for name, report in reports.items():
        cells: list[Any] = ["fact-augmented" if name.endswith("fact") else "plain"]
        for kind in ("noisy", "clean", "hallucination"):
            r = report[kind]
            cells.append(f"{r['accuracy']:.3f} [{r['low']:.3f}, {r['high']:.3f}] n={r['n']}")
        h = report["hallucination"]
        rows.append([*cells, h["equal_length_accuracy"], h["shorter_accuracy"], report["clean"]["length_correlation"]])
    share = next(iter(reports.values()))["agreement"]["share"]
    columns = ["reward model", "noisy choices", "clean choices", "pairs that differ in hallucination",
               "same, equal length", "'shorter wins'", "score ~ length"]  # fmt: skip
    note = f"Two simulated labelers agree on {share:.0%} of these pairs (thesis: 69 %), the ceiling for noisy choices."
    return Table("Reward models on held-out pairs", columns, rows, note)


def curves(root: Path) -> list[Section]:
    """Losses while SFT runs; reward, KL and length while PPO runs."""
    sections: list[Section] = []
    loss = {label: points for label, run in (("SFT", "sft"), ("SFT+", "sft_plus")) if (points := series(root / run, "loss"))}
    if loss:
        sections.append(Curves("SFT: training loss", loss, "step", "loss"))
    for key, title in (("objective/scores", "PPO: reward model score"), ("objective/kl", "PPO: KL to SFT+"),
                       ("response/length", "PPO: response length, tokens")):  # fmt: skip
        found = {label: points for label, run in (("RLHF", "ppo"), ("Fact-RLHF", "ppo_fact")) if (points := series(root / run, key))}
        if found:
            sections.append(Curves(title, found, "step", title.split(": ")[1]))
    return sections


def series(run: Path, key: str) -> list[tuple[float, float]]:
    """(step, value) of a metric in a run directory; empty before it exists."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    rows = []
    for line in path.read_text("utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # a line that is being written
    keys = (key, f"train/{key}", f"loss/{key}")
    return [(float(r["step"]), float(r[k])) for r in rows for k in keys if isinstance(r.get(k), int | float)]


def gallery(root: Path, names: list[str], n: int = 8) -> Gallery:
    """Descriptions at temperature 0.7 of the first pictures where SFT names something false, and some where not."""
    scenes = read_scenes(root / "data")
    said = {name: _responses(root / MODELS[name]) for name in names}
    ids = list(said["SFT"])
    false = [i for i in ids if false_objects(_scene(scenes, i), said["SFT"][i][1])]
    items = []
    for item in sorted(false[: n - 2] + [i for i in ids if i not in false][:2]):
        scene = _scene(scenes, item)
        answers = {name: _answer(rows[item][1], scene) for name, rows in said.items() if item in rows}
        buffer = io.BytesIO()
        draw_scene(replace(scene), 192).save(buffer, "PNG")
        truth = "In the picture: " + ", ".join(f"{g.count} {g.colour} {g.name}" for g in scene.groups)
        items.append(GalleryItem(buffer.getvalue(), said["SFT"][item][0], answers, truth))
    return Gallery("What the models say (temperature 0.7)", items, "Marked: objects that are not in the picture.")


def _scene(scenes: Mapping[str, Scene], item: str) -> Scene:
    return scenes[item.split("/")[-1]]


def _responses(folder: Path) -> dict[str, tuple[str, str]]:
    rows = [json.loads(line) for line in (folder / "t0.7/responses.jsonl").read_text("utf-8").splitlines()]
    return {r["id"]: (r["question"], r["response"]) for r in rows}


def _answer(text: str, scene: Scene) -> Answer:
    return Answer(text, false_spans(text, scene.objects, mentioned))


def summary(root: Path) -> str:
    """The table's main figures for the terminal."""
    lines = [f"{'model':10}  POPE F1  yes   described with a false object (T=0.7)  recall"]
    for name, benchmarks in results(root).items():
        pope, said = benchmarks["pope"], benchmarks["describe@0.7"]
        yes = sum(s["official"]["yes_ratio"]["value"] for s in pope["splits"].values()) / len(pope["splits"])
        lines.append(
            f"{name:10}  {pope['overall']['official']['f1']['value']:.3f}    {yes:.2f}"
            f"  {said['hallucination_rate']['value']:.3f}{'':33}{said['recall']['value']:.3f}"
        )
    return "\n".join(lines)


