"""The studies: means over seeds, comparisons and failures of a seed, hand-made tables, the command."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apps import cli
from apps.chain import Chain, Scale, chain
from apps.gates import GATE
from apps.paired import descriptions
from apps.scheduler import Progress, Step, check_graph
from apps.siblings import siblings
from apps.studies import rlhf, vision
from apps.studies.figures import FIGURES, figure_of, yes_ratio
from apps.studies.rlhf import EVALUATED
from data.jsonl import read_json, write_json
from data.world.build import read_scenes
from data.world.scene import OBJECTS
from evals.metrics import Interval
from evals.report import Bars, Table, Text, as_markdown

Write = Callable[..., dict[str, Any]]
Run = Callable[..., None]


# --- figures ---


def test_markdown() -> None:
    rows = [
        ["a|b", Interval(0.5, 0.4, 0.6, 8), 3],
        ["c", Interval(0.25, math.nan, math.nan, 7), None],
        ["d", Interval(math.nan, math.nan, math.nan, 0), 0.12345],
    ]
    assert as_markdown(Table("T", ["x", "y", "z"], rows, "A note.")).splitlines() == [
        "**T**",
        "",
        "| x | y | z |",
        "| --- | --- | --- |",
        "| a\\|b | 0.500 [0.400, 0.600] | 3 |",
        "| c | 0.250 (n = 7) |  |",
        "| d | – | 0.123 |",
        "",
        "A note.",
    ]


def test_every_figure_has_its_own_source(tmp_path: Path, write_evaluation: Write) -> None:
    benchmarks = write_evaluation(tmp_path, 0.1)
    found = {name: round(figure(benchmarks), 4) for name, figure in FIGURES.items()}
    assert found == {
        "POPE F1": 0.1, "POPE yes-rate": 0.13, "MMHal-style score": 0.15,
        "halluc. rate, T=0.7": 0.3, "CHAIR_i, T=0.7": 0.31, "recall, T=0.7": 0.32,
        "repeats, T=0.7": 0.33, "words, T=0.7": 0.34,
        "halluc. rate, greedy": 0.2, "CHAIR_i, greedy": 0.21, "recall, greedy": 0.22,
    }  # fmt: skip
    assert yes_ratio(benchmarks["pope"]) == pytest.approx(0.13)
    assert figure_of("POPE F1", benchmarks) == pytest.approx(0.1)
    assert math.isnan(figure_of("POPE F1", {"describe@0.7": benchmarks["describe@0.7"]}))


# --- the main study: a seed ---

#: model -> where its hand-made figures start
STARTS = {"SFT": 0.1, "SFT+": 0.2, "RLHF": 0.3, "Fact-RLHF": 0.4, "DPO": 0.5, "GRPO": 0.6, "best of 4": 0.7}


@pytest.fixture
def write_seed(world: Path, write_evaluation: Write, write_report: Write) -> Callable[..., Path]:
    """``write(folder, shift)``: a finished seed without its comparison. In every description of the first
    eight pictures RLHF adds a false object to the true one that all name; in the others all name the same."""

    scenes = [scene for name, scene in read_scenes(world).items() if name.startswith("w44-")][:12]

    def write(folder: Path, shift: float = 0.0, stopped: str | None = None, clean: float = 0.2) -> Path:
        folder.mkdir(parents=True)
        (folder / "data").mkdir()
        (folder / "data/scenes.jsonl").write_bytes((world / "scenes.jsonl").read_bytes())
        for name, run in EVALUATED.items():
            said = {}
            for i, scene in enumerate(scenes):
                absent = next(name for name in OBJECTS if name not in scene.objects)
                false = f" and a {absent}" if name == "RLHF" and i < 8 else ""
                said[scene.id] = f"a {scene.objects[0]}{false}"
            benchmarks = write_evaluation(folder / run, STARTS[name] + shift, said)
            if name == "best of 4":
                only = {"describe@0.7": benchmarks["describe@0.7"]}
                write_json(folder / run / "results.json", {"model": "m", "benchmarks": only})
                (folder / run / "t0/responses.jsonl").unlink()
        for name, start in (("reward", 0.5 + shift), ("reward_fact", 0.6 + shift)):
            write_report(folder, name, start)
        write_report(folder, "reward", 0.5 + shift, clean=report_of(GATE + clean))
        for run in ("ppo", "ppo_fact"):
            write_json(
                folder / run / "result.json", {"steps": 30, "stopped": stopped if run == "ppo" else None}
            )
        return folder

    return write


def report_of(accuracy: float) -> dict[str, Any]:
    keys = ("low", "high", "equal_length_accuracy", "shorter_accuracy", "length_correlation")
    return dict.fromkeys(keys, 0.5) | {"accuracy": accuracy, "n": 50}


def test_a_seed_is_read_when_all_of_it_is_there(tmp_path: Path, write_seed: Callable[..., Path]) -> None:
    folder = write_seed(tmp_path / "seed-100")
    assert rlhf.read_seed(folder, 100) is None
    rlhf.compare_all(str(folder))
    seed = rlhf.read_seed(folder, 100)
    assert seed is not None and seed.failures == []
    assert seed.benchmarks["SFT+"] == read_json(folder / "eval_sft_plus/results.json")["benchmarks"]
    (folder / "eval_ppo/results.json").unlink()
    assert rlhf.read_seed(folder, 100) is None


def test_models_are_compared_where_they_name_as_much(tmp_path: Path, write_seed: Callable[..., Path]) -> None:
    """All name one true object a picture, so recall is matched as it is; 8 of 12 times RLHF errs."""
    folder = write_seed(tmp_path / "seed")
    rlhf.compare_all(str(folder))
    found = read_json(folder / "compare.json")
    scenes = [scene for name, scene in read_scenes(folder / "data").items() if name.startswith("w44-")][:12]
    present = [len(set(scene.objects)) for scene in scenes]
    assert list(found)[:3] == ["Fact-RLHF − RLHF", "RLHF − SFT+", "Fact-RLHF − SFT+"]
    assert list(found)[3:6] == ["DPO − SFT+", "GRPO − SFT+", "best of 4 − SFT+"]
    # best-of-n answers at one temperature alone
    assert [name for name, how in found.items() if "t0" not in how] == [
        "best of 4 − SFT+",
        "Fact-RLHF − best of 4",
    ]
    for pair, sign in zip(found, (-1, 1, 0)):
        for how in ("t0", "t0.7"):
            raw, fair = found[pair][how]["differences"], found[pair][how]["matched_recall"]
            assert raw["recall"]["value"] == 0
            # one false mention of two in eight descriptions, none of one in four: 8 of 20
            for name, want in (("hallucination_rate", 8 / 12), ("chair_i", 8 / 20)):
                assert raw[name]["value"] == pytest.approx(sign * want)
                # both models are in each stratum equally often, so the weights change nothing
                matched = fair[name]["difference"]
                assert (matched["value"], matched["n"]) == (pytest.approx(sign * want), 12)
                assert fair[name]["a"]["value"] == pytest.approx(want if pair == "RLHF − SFT+" else 0)
                assert fair[name]["b"]["value"] == pytest.approx(want if pair == "Fact-RLHF − RLHF" else 0)
                # neither names more, so nothing is cut
                cut = found[pair][how]["equal_recall"][name]["difference"]
                assert cut["value"] == pytest.approx(sign * want)
            assert (fair["share_a"], fair["share_b"]) == (1, 1)
            assert fair["recall"] == pytest.approx(12 / sum(present))
            assert fair["strata"] == len(set(present))


@pytest.mark.parametrize(
    ("more", "failures"),
    [
        ({"clean": 0.0}, ["plain reward model under the gate"]),
        ({"stopped": "KL 5"}, ["RLHF stopped at max_kl (KL 5)"]),
        # recall is at 0.22 above the start
        ({"shift": -0.43}, ["plain reward model under the gate", "fact-augmented reward model under the gate",
                            "RLHF fell silent"]),
    ],
    ids=["gate", "kl", "silence"],
)  # fmt: skip
def test_failures_are_named(
    tmp_path: Path, write_seed: Callable[..., Path], more: dict[str, Any], failures: list[str]
) -> None:
    if "shift" in more:
        more = more | {"clean": -0.1}
    folder = write_seed(tmp_path / "seed", **more)
    rlhf.compare_all(str(folder))
    seed = rlhf.read_seed(folder, 0)
    assert seed is not None and seed.failures == failures


def test_a_seed_without_its_pictures_is_still_read(tmp_path: Path, write_seed: Callable[..., Path]) -> None:
    folder = write_seed(tmp_path / "seed")
    heavy = ["data/images", "data/blur-2/images", "ppo/checkpoints/step-1", "sft/trainer/checkpoint-3"]
    kept = ["ppo/policy", "sft_plus/model"]
    for name in heavy + kept:
        (folder / name).mkdir(parents=True)
    rlhf.compare_all(str(folder))
    before = rlhf.read_seed(folder, 0)
    rlhf.drop_pictures(str(folder))
    assert not any((folder / name).exists() for name in heavy)
    assert all((folder / name).exists() for name in kept)
    assert before is not None and rlhf.read_seed(folder, 0) == before
    assert descriptions(folder, "RLHF", "SFT+") == before.matched["RLHF − SFT+"]


# --- the main study: tables ---


@pytest.fixture
def seeds(tmp_path: Path, write_seed: Callable[..., Path]) -> list[rlhf.Seed]:
    """Three seeds, 0.1 apart; the last one's RLHF was stopped."""
    found = []
    for i, shift in enumerate((0.0, 0.1, 0.2)):
        folder = write_seed(tmp_path / f"seed-{i}", shift, "KL 5" if i == 2 else None)
        rlhf.compare_all(str(folder))
        seed = rlhf.read_seed(folder, i)
        assert seed is not None
        found.append(seed)
    return found


def test_tables_are_means_t_interval(seeds: list[rlhf.Seed]) -> None:
    models, differences, rewards, *_ = rlhf.tables(seeds)
    # 0.1 apart, three seeds: half an interval is t(2)·0.1/√3
    half = 4.3027 * 0.1 / math.sqrt(3)
    cell = models.rows[1][list(models.columns).index("CHAIR_i, T=0.7")]
    assert cell == Interval(pytest.approx(0.51), pytest.approx(0.51 - half), pytest.approx(0.51 + half), 3)
    assert [row[0] for row in models.rows[:7]] == list(EVALUATED)
    best = dict(zip(models.columns, models.rows[6]))
    assert best["POPE F1"] is None and best["CHAIR_i, greedy"] is None
    assert best["CHAIR_i, T=0.7"].value == pytest.approx(1.01)
    assert [models.rows[7][k] for k in (0, 1, 2, 3, 4)] == ["SFT, thesis 7B", "76.0 %", None, "1.3", None]
    assert models.muted_rows == {7, 8, 9, 10}
    assert [row[:2] for row in differences.rows[:2]] == [
        ["Fact-RLHF − RLHF", "T = 0.7"],
        ["Fact-RLHF − RLHF", "greedy"],
    ]
    raw, chair = differences.rows[0][2:4]
    assert (raw.value, chair.value, raw.n) == (pytest.approx(-8 / 12), pytest.approx(-0.4), 3)
    facts = rewards.rows[1]
    assert [facts[k].value for k in (1, 2, 3)] == [pytest.approx(v) for v in (0.7, 0.8, 0.9)]
    assert facts[-1] == "3 of 3"


def test_seeds_with_failures_are_counted_and_left_out_of_further_tables(seeds: list[rlhf.Seed]) -> None:
    found = rlhf.tables(seeds)
    assert [table.title for table in found[3:]] == [
        "The models without the 1 seed with a failure",
        "Paired differences without the 1 seed with a failure",
    ]
    assert found[0].rows[0][1].value == pytest.approx(0.2) and found[0].rows[0][1].n == 3
    assert found[3].rows[0][1].value == pytest.approx(0.15) and found[3].rows[0][1].n == 2
    assert len(rlhf.tables(seeds[:2])) == 3
    assert len(rlhf.tables(seeds[2:])) == 3  # nothing would be left


def test_page_and_files(seeds: list[rlhf.Seed], tmp_path: Path) -> None:
    status = rlhf.status_of(Progress([Step("a", print, {})]), "1 minutes")
    page = rlhf.build_page(seeds, status)
    bars = next(section for section in page.sections if isinstance(section, Bars))
    assert bars.series["recall, T=0.7"][0].value == pytest.approx(0.42)
    last = page.sections[-1]
    assert isinstance(last, Text) and last.body == "seed 2: RLHF stopped at max_kl (KL 5)"
    rlhf.write_results(tmp_path, seeds, status)
    assert [row["seed"] for row in read_json(tmp_path / "results.json")] == [0, 1, 2]
    assert "| SFT+ | 0.300 [" in (tmp_path / "tables.md").read_text()
    assert "seed 2: RLHF stopped" in (tmp_path / "report.html").read_text()


# --- the main study: the graph and the command ---


def test_every_seed_is_compared_and_then_cleaned(tmp_path: Path) -> None:
    steps = rlhf.steps_of(tmp_path, [100, 101], Scale())
    check_graph(steps)
    names = [step.name for step in chain(tmp_path, 0, Scale()) + siblings(Chain(tmp_path, 0, Scale()))]
    assert [step.name for step in steps] == [
        f"{s}/{n}" for s in (100, 101) for n in (*names, "compare", "clean")
    ]
    compare, clean = steps[-2:]
    assert set(compare.needs) == {f"101/{run}" for run in EVALUATED.values()}
    assert set(clean.needs) == {step.name for step in steps[len(steps) // 2 : -1]}
    seeds = {step.arguments["overrides"]["seed"] for step in steps if "overrides" in step.arguments}
    assert seeds == {100, 101}
    assert str(tmp_path / "seed-101") in json.dumps(steps[-3].arguments)


@pytest.mark.parametrize("name", ["rlhf", "vision"])
def test_a_study_belongs_to_one_size_and_grows_by_seeds(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = {"rlhf": rlhf, "vision": vision}[name]
    ran: list[list[str]] = []

    def run_steps(steps: list[Step], on_change: Run, every: float) -> None:
        ran.append([step.name for step in steps])
        on_change(Progress(steps))
        (tmp_path / "study/tables.md").touch()

    monkeypatch.setattr(module, "run_steps", run_steps)
    command = ["study", name, "--output", str(tmp_path / "study")]
    assert cli.main([*command, "--quick", "--seeds", "1", "--first", "5"]) == 0
    assert cli.main([*command, "--quick", "--seeds", "2", "--first", "5"]) == 0
    assert {step.split("/")[0] for step in ran[0]} == {"5"}
    assert {step.split("/")[0] for step in ran[1]} == {"5", "6"}
    assert "running: starting" in (tmp_path / "study/report.html").read_text()
    capsys.readouterr()
    assert cli.main([*command, "--seeds", "1"]) == 2
    assert "sft: 240 there, 3200 now" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*command, "--seeds", "0"])
    assert len(ran) == 2


def test_a_study_s_page_follows_its_steps(tmp_path: Path) -> None:
    steps = [Step(f"7/{name}", print, {}) for name in ("data", "eval_sft")]
    texts: list[str] = []

    def write(status: Any) -> str:
        texts.append(f"{status.text} {status.done}")
        return "far"

    follow = rlhf.follower(write)
    state = Progress(steps)
    for done, ended in (((), False), ((), False), (("7/data",), False), (("7/data",), True)):
        state.done, state.ended = set(done), ended
        follow(state)
    assert texts == ["running: starting 0", "running: starting 1",
                     "stopped: interrupted; the same command goes on from here 1"]  # fmt: skip
