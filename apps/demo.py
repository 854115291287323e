"""``align demo``: the whole chain on the built-in world, with a page that shows it while it goes."""

from __future__ import annotations

import functools
import io
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from apps.chain import QUICK, Scale, alone_in, chain, scale_of
from apps.gates import read_report
from apps.paired import MODELS, descriptions, pope
from apps.scheduler import Progress, run_steps
from data.folders import claim
from data.jsonl import read_json
from data.world.annotators import false_objects
from data.world.build import read_scenes
from data.world.draw import draw_scene
from data.world.language import listing, mentioned, phrase
from data.world.scene import Scene
from evals.metrics import Interval, interval_from
from evals.objects import false_spans
from evals.report import (
    Answer,
    Curves,
    Gallery,
    GalleryItem,
    Page,
    Section,
    Status,
    Table,
    Text,
    write_report,
)

#: Table 9.5 (7B; RLHF with the 13B reward model): POPE F1 and MMHal score
PUBLISHED = {"SFT": (76.0, 1.3), "SFT+": (82.7, 1.8), "RLHF": (82.7, 1.8), "Fact-RLHF": (81.5, 2.1)}
LABELS = {
    "data": "drawing the world",
    "sft": "SFT",
    "sft_plus": "SFT+",
    "samples": "sampling responses",
    "labels": "simulated labelers",
    "reward": "reward model",
    "reward_fact": "fact-augmented reward model",
    "ppo": "PPO (RLHF)",
    "ppo_fact": "PPO (Fact-RLHF)",
}
#: the differences that the page shows, the first minus the second
STAGES = (("SFT+", "SFT"), ("RLHF", "SFT+"), ("Fact-RLHF", "SFT+"), ("Fact-RLHF", "RLHF"))
REWARDS = {"reward": "plain", "reward_fact": "fact-augmented"}
#: metric of PPO -> its chart's title
CURVES = {
    "objective/scores": "PPO: reward model score",
    "objective/kl": "PPO: KL to SFT+",
    "response/length": "PPO: response length, tokens",
}

_INTRO = (
    "Four models answer questions about pictures of a small world whose content is fully known. SFT learns "
    "from machine-written conversations, of which some name things that are not there; SFT+ adds clean "
    "yes/no, choice and spotting turns; RLHF and Fact-RLHF start from SFT+ and follow a reward model trained "
    "on simulated labelers' choices, the latter with five captions of the picture as facts."
)
_FOOTER = (
    "Intervals: 95 % bootstrap over images. One seed shows the chain at work; `make study-rlhf` compares "
    "over eight."
)


#: what the miniature says ahead of everything else
_MINIATURE = (
    "A miniature: it shows that everything runs. Models this little trained say little, and nothing about "
    "the methods; `make demo` takes some minutes more."
)


def run(output: Path, seed: int = 0, quick: bool = False, scale: Scale | None = None) -> Path:
    """Run or continue the demo under ``output``; returns the page's path.

    Raises:
        ChainError: ``output`` belongs to a demo of another seed or size, or holds other files.
        StepError: a step failed; the page says so too.
    """
    sizes, wanted = scale_of(quick, seed=seed)
    if scale is not None:
        sizes, wanted = scale, wanted | asdict(scale)
    claim(output, "demo.json", wanted)
    page = output / "report.html"
    print(f"the page: {page}", flush=True)
    with alone_in(output):
        run_steps(chain(output, seed, sizes), on_change=follower(output, page))
    print(summary(output))
    if is_miniature(output):
        print(_MINIATURE)
    return page


def follower(output: Path, page: Path) -> Callable[[Progress], None]:
    """Writes the page, and a line on the terminal for each step that starts or ends."""
    start = time.monotonic()
    shown: dict[str, str] = {}

    def follow(state: Progress) -> None:
        seconds = time.monotonic() - start
        write_report(page, build_page(output, state, seconds))
        now = dict.fromkeys(state.done, "done") | dict.fromkeys(state.running, "start")
        if not shown:
            # what an earlier run of the demo finished
            shown.update((name, word) for name, word in now.items() if word == "done")
        for name, word in sorted(now.items(), key=lambda item: item[::-1]):
            if shown.get(name) != word:
                shown[name] = word
                print(f"{seconds:5.0f} s  {word:5}  {LABELS.get(name, name.replace('_', ' '))}", flush=True)

    return follow


# --- the page ---


def results(root: Path) -> dict[str, dict[str, Any]]:
    """Benchmarks of the models evaluated so far, by the model's name."""
    paths = {name: root / folder / "results.json" for name, folder in MODELS.items()}
    return {name: read_json(path)["benchmarks"] for name, path in paths.items() if path.exists()}


def build_page(root: Path, state: Progress, seconds: float) -> Page:
    """The page for where the chain under ``root`` stands, ``seconds`` after it was started."""
    found = results(root)
    sections: list[Section] = [Text(_MINIATURE)] if is_miniature(root) else []
    sections.append(Text(_INTRO))
    if found:
        sections += [main_table(found), describe_table(found)]
        if changes := change_table(root, tuple(found)):
            sections.append(changes)
    rewards = {name: report for name in REWARDS if (report := read_report(root, name))}
    if rewards:
        sections.append(reward_table(rewards))
    sections += curves(root)
    if "SFT" in found:
        sections.append(gallery(root, tuple(found)))
    title = "From a scene to an aligned, measured model"
    status = status_of(state, f"{seconds / 60:.1f} minutes")
    return Page(title, sections, "the built-in world, one seed", status, _FOOTER)


def is_miniature(root: Path) -> bool:
    """Whether the chain under ``root`` is of the sizes of ``--quick``."""
    path = root / "demo.json"
    return path.exists() and read_json(path).get("sft") == QUICK.sft


def status_of(state: Progress, detail: str) -> Status:
    """What runs, or how it ended; the page reloads itself while steps run."""
    running = sorted(LABELS.get(name, name.replace("_", " ")) for name in state.running)
    if state.finished:
        text = "finished"
    elif state.ended:
        text = f"stopped: {state.failure or 'interrupted'}; the same command goes on from here"
    else:
        text = f"running: {', '.join(running) or 'starting'}"
    going = not state.finished and not state.ended
    return Status(text, going, len(state.done), len(state.steps), detail, refresh=5)


def main_table(found: Mapping[str, dict[str, Any]]) -> Table:
    """POPE and MMHal-style questions, ours and the published ones."""
    rows: list[list[Any]] = []
    for name, benchmarks in found.items():
        pope, mmhal = benchmarks["pope"], benchmarks["mmhal"]
        splits = pope["splits"].values()
        rows.append([
            name,
            interval_from(pope["overall"]["official"]["f1"]),
            interval_from(pope["overall"]["strict"]["f1"]),
            sum(split["strict"]["counts"]["unparsed"] for split in splits),
            yes_ratio(pope),
            interval_from(mmhal["official"]["score"]),
            interval_from(mmhal["official"]["hallucination_rate"]),
        ])  # fmt: skip
    ours = len(rows)
    for name, (f1, score) in PUBLISHED.items():
        rows.append([f"{name}, thesis 7B", f"{f1:.1f} %", None, None, None, f"{score:.1f}", None])
    columns = ["model", "POPE F1 (official)", "POPE F1 (strict)", "unparsed", "yes-rate",
               "MMHal-style 0-6", "MMHal-style halluc."]  # fmt: skip
    note = "Grey: the thesis's Table 9.5 on real images with LLaVA 7B; another task, shown for the pattern."
    muted = frozenset(range(ours, len(rows)))
    return Table("Yes/no questions and open questions", columns, rows, note, muted)


def yes_ratio(pope: Mapping[str, Any]) -> float:
    """Mean over the splits of the share of questions answered "yes" (official rule)."""
    ratios = [split["official"]["yes_ratio"]["value"] for split in pope["splits"].values()]
    return sum(ratios) / len(ratios)


def describe_table(found: Mapping[str, dict[str, Any]]) -> Table:
    """Free descriptions, greedy and sampled."""
    figures = ("hallucination_rate", "chair_i", "recall", "repeats", "words")
    rows = []
    for name, benchmarks in found.items():
        for key, how in (("describe", "greedy"), ("describe@0.7", "T = 0.7")):
            said = benchmarks[key]
            rows.append([name, how, said["n"], *(interval_from(said[figure]) for figure in figures)])
    columns = ["model", "decoding", "n", "with a false object", "CHAIR_i", "recall", "repeats", "words"]
    note = "With a false object: share of descriptions that name something absent."
    return Table("Free descriptions", columns, rows, note)


@functools.lru_cache(maxsize=1)
def change_table(root: Path, names: tuple[str, ...]) -> Table | None:
    """What each stage changed, paired by picture; None while fewer than two models are evaluated.

    ``names``: evaluated models; what they said does not change any more, hence the cache.
    """
    rows: list[list[Any]] = []
    for a, b in STAGES:
        if a not in names or b not in names:
            continue
        said = descriptions(root, a, b)["t0.7"]
        changed = [said["differences"][figure] for figure in ("hallucination_rate", "chair_i", "recall")]
        cut = said["equal_recall"]["hallucination_rate"]["difference"]
        cells = [interval_from(x) for x in (pope(root, a, b)["f1"], *changed, cut)]
        rows.append([f"{a} − {b}", *cells])
    columns = ["difference", "POPE F1", "with a false object", "CHAIR_i", "recall",
               "with a false object, cut to equal recall"]  # fmt: skip
    note = (
        "Paired by picture; descriptions at T = 0.7. Where 0 lies in an interval, nothing is shown. Last "
        "column: the descriptions of the model that names more are cut short until both name as much."
    )
    return Table("What each stage changed", columns, rows, note) if rows else None


def reward_table(reports: Mapping[str, dict[str, Any]]) -> Table:
    """Agreement of the reward models with choices that they were not trained on."""
    rows: list[list[Any]] = []
    for name, report in reports.items():
        kinds = [report[kind] for kind in ("noisy", "clean", "hallucination")]
        pairs = report["hallucination"]
        rest = [
            pairs["equal_length_accuracy"],
            pairs["shorter_accuracy"],
            report["clean"]["length_correlation"],
        ]
        rows.append([REWARDS[name], *map(agreed, kinds), *rest])
    first = next(iter(reports.values()))
    columns = ["reward model", "noisy choices", "clean choices", "pairs that differ in hallucination",
               "same, equal length", "'shorter wins'", "score ~ length"]  # fmt: skip
    share, counts = first["agreement"]["share"], [first[k]["n"] for k in ("noisy", "clean", "hallucination")]
    note = "n = {}, {} and {} pairs.".format(*counts)
    if share is not None:
        note += f" Two simulated labelers agree with each other on {share:.0%} (thesis, people: 69 %)."
    return Table("Reward models on held-out pairs", columns, rows, note)


def agreed(report: Mapping[str, Any]) -> Interval | None:
    """A report's accuracy with its interval; None of no pairs."""
    if report["accuracy"] is None:
        return None
    return Interval(report["accuracy"], report["low"], report["high"], report["n"])


def curves(root: Path) -> list[Section]:
    """Losses while SFT runs; reward, KL and length while PPO runs."""
    charts: list[Section] = []

    def add(title: str, key: str, label: str, runs: Mapping[str, str]) -> None:
        lines = {name: points for name, run in runs.items() if (points := series(root / run, key))}
        if lines:
            charts.append(Curves(title, lines, "step", label))

    add("SFT: training loss", "loss", "loss", {"SFT": "sft", "SFT+": "sft_plus"})
    runs = {"RLHF": "ppo", "Fact-RLHF": "ppo_fact"}
    for key, title in CURVES.items():
        add(title, key, title.split(": ")[1], runs)
    for name, run in runs.items():
        path = root / run / "result.json"
        if path.exists() and (stopped := read_json(path)["stopped"]):
            charts.append(Text(f"{name} ended early: {stopped}."))
    return charts


def series(run: Path, key: str) -> list[tuple[float, float]]:
    """(step, value) of a metric in a run directory; empty before it exists."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    # a last line without its end is being written
    lines = path.read_text("utf-8").split("\n")[:-1]
    rows = [json.loads(line) for line in lines]
    return [(float(row["step"]), float(row[key])) for row in rows if isinstance(row.get(key), int | float)]


@functools.lru_cache(maxsize=1)
def gallery(root: Path, names: tuple[str, ...], n: int = 8) -> Gallery:
    """Descriptions at temperature 0.7: the first pictures where SFT names something false, and two where not.

    ``names``: evaluated models, "SFT" among them; what they said does not change any more, hence the cache.
    """
    scenes = read_scenes(root / "data")
    said = {name: _responses(root / MODELS[name]) for name in names}
    ids = list(said["SFT"])
    false = [i for i in ids if false_objects(_scene(scenes, i), said["SFT"][i][1])]
    items = []
    for item in sorted(false[: n - 2] + [i for i in ids if i not in set(false)][:2]):
        scene = _scene(scenes, item)
        answers = {name: _answer(rows[item][1], scene) for name, rows in said.items() if item in rows}
        buffer = io.BytesIO()
        draw_scene(scene, 192).save(buffer, "PNG")
        truth = "In the picture: " + listing([phrase(g.name, g.colour, g.count) for g in scene.groups])
        items.append(GalleryItem(buffer.getvalue(), said["SFT"][item][0], answers, truth))
    title = "What the models say (temperature 0.7)"
    return Gallery(title, items, "Marked: objects that are not in the picture.")


def _scene(scenes: Mapping[str, Scene], item: str) -> Scene:
    return scenes[item.split("/")[-1]]


def _responses(folder: Path) -> dict[str, tuple[str, str]]:
    """Question and response by id."""
    rows = [json.loads(line) for line in (folder / "t0.7/responses.jsonl").read_text("utf-8").splitlines()]
    return {row["id"]: (row["question"], row["response"]) for row in rows}


def _answer(text: str, scene: Scene) -> Answer:
    return Answer(text, false_spans(text, scene.objects, mentioned))


def summary(root: Path) -> str:
    """The tables' main figures for the terminal."""
    lines = [f"{'model':10} {'POPE F1':>8} {'yes':>6} {'false object':>13} {'recall':>7}"]
    for name, benchmarks in results(root).items():
        f1 = benchmarks["pope"]["overall"]["official"]["f1"]["value"]
        said = benchmarks["describe@0.7"]
        shares = said["hallucination_rate"]["value"], said["recall"]["value"]
        lines.append(
            f"{name:10} {f1:8.3f} {yes_ratio(benchmarks['pope']):6.2f} {shares[0]:13.3f} {shares[1]:7.3f}"
        )
    return "\n".join([*lines, "false object, recall: of descriptions sampled at T = 0.7"])
