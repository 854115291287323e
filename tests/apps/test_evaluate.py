"""``align eval`` end to end: a tiny LLaVA answers a small world; interrupted runs; judges and truth."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape
from PIL import Image as PILImage

from align.config import EvalSettings
from align.models.tiny import build_tiny_llava
from apps import benchmarks, cli, eval_page, evaluate
from apps.answerer import Answerer, Chunk
from data.jsonl import DataError, read_json, read_rows, write_records
from data.schema import Image, Prompt, Verdict
from data.world.build import read_scenes
from evals.endpoint import image_part
from evals.judges import JudgeRequest
from evals.metrics import interval_from
from evals.mmhal import BUILT_IN
from evals.objects import ObjectBenchmark
from evals.parse import rating_official
from evals.report import Table, Text
from tests.servers import Reply, Server, said

SPLITS = ("random", "popular", "adversarial")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llava(tmp_path_factory.mktemp("base") / "model", seed=2)


def benchmark_files(data: Path) -> dict[str, str]:
    pope = {f"pope_{split}": str(data / f"eval/pope_{split}.jsonl") for split in SPLITS}
    return pope | {"mmhal": str(data / "eval/mmhal.json"), "describe": str(data / "eval/describe.jsonl")}


def settings(model: Path, data: Path, output: Path, **changes: Any) -> EvalSettings:
    values = {
        "output": str(output),
        "model": {"path": str(model), "device": "cpu"},
        "benchmarks": benchmark_files(data),
        "images": str(data),
        "pope_prefix": "images",
        "world": str(data),
        "describe_temperatures": [0.7],
        # chunks of 8 items
        "generate": {"max_new_tokens": 5, "temperature": 0.0, "batch_size": 2},
        "bootstrap": 100,
        "report_to": [],
    }
    return EvalSettings.model_validate(values | changes)


@pytest.fixture(scope="module")
def evaluated(base: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluate.run(settings(base, world, tmp_path_factory.mktemp("eval") / "run"))


def files(run: Path) -> dict[str, bytes]:
    """All that a run measured, without what tells one start from another."""
    kept = [*run.rglob("*.json*"), run / "report.html"]
    kept = [path for path in kept if path.name != "meta.json"]
    return {str(path.relative_to(run)): path.read_bytes() for path in kept}


def responses(run: Path, how: str) -> dict[str, str]:
    rows = [json.loads(line) for line in (run / how / "responses.jsonl").read_text().splitlines()]
    return {row["benchmark"] + " " + row["id"]: row["response"] for row in rows}


# --- what it writes ---


def test_every_benchmark_is_answered_and_scored(evaluated: Path, base: Path) -> None:
    found = read_json(evaluated / "results.json")
    assert found["model"] == str(base)
    assert list(found["benchmarks"]) == ["pope", "mmhal", "describe", "describe@0.7"]
    greedy, sampled = responses(evaluated, "t0"), responses(evaluated, "t0.7")
    assert len(greedy) == 3 * 12 + 12 + 12 and len(sampled) == 12
    assert {name: found["benchmarks"][name]["n"] for name in ("mmhal", "describe")} == {
        "mmhal": 12,
        "describe": 12,
    }
    assert [found["benchmarks"]["pope"]["splits"][split]["n"] for split in SPLITS] == [12] * 3
    assert (evaluated / "DONE").exists()


def test_figures_are_those_of_the_recorded_responses(evaluated: Path, base: Path, world: Path) -> None:
    """Scored again from the file of responses alone, each benchmark gives the same figures."""
    found = read_json(evaluated / "results.json")["benchmarks"]
    scenes = read_scenes(world)
    for benchmark in benchmarks.benchmarks_of(settings(base, world, evaluated), scenes):
        for how, suffix in (("t0", ""), ("t0.7", "@0.7")):
            said = responses(evaluated, how)
            own = {item.id: said.get(f"{benchmark.name} {item.id}") for item in benchmark.items}
            if suffix and not isinstance(benchmark, ObjectBenchmark):
                assert set(own.values()) == {None}
                continue
            scored = benchmark.score({name: text for name, text in own.items() if text is not None})
            assert json.loads(json.dumps(scored.result)) == found[benchmark.name + suffix]


def test_the_page_holds_the_figures_of_both_rules(evaluated: Path) -> None:
    found = read_json(evaluated / "results.json")["benchmarks"]
    tables = {t.title: t for t in eval_page.page_of({"m": found}).sections if isinstance(t, Table)}
    splits = [f"POPE: {split}" for split in ("all splits", *SPLITS)]
    names = ["Overview (official rules)", *splits, "MMHal", "MMHal: score by question type (official)",
             "Free descriptions", "Free descriptions, T = 0.7"]  # fmt: skip
    assert list(tables) == names
    for split in SPLITS:
        table, of = tables[f"POPE: {split}"], found["pope"]["splits"][split]
        for row, rule in zip(table.rows, ("official", "strict")):
            figures = [of[rule][key] for key in ("accuracy", "precision", "recall", "f1", "yes_ratio")]
            counts = of[rule]["counts"]
            assert list(row) == ["m", rule, 12, *map(interval_from, figures), counts["unparsed"]]
        # then the published rows, set apart
        assert table.muted_rows == set(range(2, len(table.rows))) and len(table.rows) > 5
    cells = [cell for table in tables.values() for row in table.rows for cell in row]
    for name, one in eval_page.intervals(found):
        # of MMHal's types the page shows the score by the official rule
        if "by type" not in name or ("official" in name and name.endswith("score")):
            assert interval_from(one) in cells, name
    assert tables["Overview (official rules)"].rows[0] == [
        "m", interval_from(found["pope"]["overall"]["official"]["f1"]),
        interval_from(found["mmhal"]["official"]["score"]),
        interval_from(found["describe"]["hallucination_rate"]),
        interval_from(found["describe@0.7"]["hallucination_rate"]),
    ]  # fmt: skip


def test_the_page_says_of_which_questions_its_figures_are(evaluated: Path, world: Path) -> None:
    found = read_json(evaluated / "results.json")["benchmarks"]
    notes = {t.title: t.note for t in eval_page.page_of({"m": found}).sections if isinstance(t, Table)}
    for split in SPLITS:
        sha = hashlib.sha256((world / f"eval/pope_{split}.jsonl").read_bytes()).hexdigest()
        assert notes[f"POPE: {split}"] == f"2 images; file sha256 {sha}."
    sha = hashlib.sha256((world / "eval/mmhal.json").read_bytes()).hexdigest()
    assert f"Questions and truth sha256 {sha}; judge world-oracle; prompt" in notes["MMHal"]
    assert f"built-in, sha256 {BUILT_IN.sha256}." in notes["MMHal"]
    for title, name in (("Free descriptions", "describe"), ("Free descriptions, T = 0.7", "describe@0.7")):
        told = f"Questions and truth sha256 {found[name]['sha256']}; vocabulary world."
        assert notes[title].endswith(told)
    html = (evaluated / "report.html").read_text()
    assert all(str(escape(note)) in html for note in notes.values())


def test_repeats_have_a_column_where_there_are_any() -> None:
    whole = {"value": 80.0, "low": 70.0, "high": 90.0, "n": 3}
    rule = {"relative": whole, "by_category": {"conv": {"relative": whole}}, "unrated": []}
    one = {"official": rule, "strict": rule, "n": 3, "sha256": "ab", "judge": "j", "unjudged": ["0"]}
    (table,) = eval_page.llava_bench_sections("LLaVA-Bench", {"m": one})
    assert isinstance(table, Table) and len(table.columns) == 7
    again = {key: rule | {"repeats": {"scores": [80.0], "interval": whole}} for key in ("official", "strict")}
    (table,) = eval_page.llava_bench_sections("LLaVA-Bench", {"m": one | again})
    assert isinstance(table, Table) and table.columns[5] == "over repeats, %"
    assert table.rows[0][5] == interval_from(whole)


def test_counts_stand_beside_the_figures() -> None:
    figures = {
        key: {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9} for key in ("score", "hallucination_rate")
    }
    rules = {"official": ["3", "8"], "strict": ["3", "8", "9"]}
    one = {rule: figures | {"unrated": ids, "by_type": {}} for rule, ids in rules.items()}
    prompt = {"name": "mine.txt", "sha256": "ef"}
    one |= {
        "n": 96,
        "sha256": "cd",
        "judge": "people",
        "prompt": prompt,
        "unjudged": ["1"],
        "steering": ["3"],
    }
    (table, *_) = eval_page.mmhal_sections("mmhal", {"a": one, "b": one | {"judge": "others"}})
    assert [row[-3:] for row in table.rows[:2]] == [[2, 1, 1], [3, 1, 1]]
    # one note where the models share it, else each its own
    assert "a: Questions and truth sha256 cd; judge people" in table.note
    assert "b: Questions and truth sha256 cd; judge others" in table.note
    known = next(iter(eval_page.published.POPE_FILES))
    assert "the official random, 3,000" in eval_page.pope_provenance({"images": 500, "sha256": known})


# --- interrupted and repeated ---


class Killed(Exception):
    pass


@pytest.mark.parametrize("kill_at", [2, 9], ids=["greedy", "sampled"])
def test_a_killed_run_goes_on_and_ends_the_same(
    base: Path,
    world: Path,
    evaluated: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kill_at: int,
) -> None:
    """Killed ahead of its ``kill_at``-th chunk; chunks 9 and 10 are the sampled descriptions."""
    real = Answerer.answer
    asked: list[int] = []

    def answer(self: Answerer, chunk: Chunk) -> dict[str, str]:
        asked.append(len(chunk.items))
        if len(asked) == kill_at:
            raise Killed
        return real(self, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(Answerer, "answer", answer)
        with pytest.raises(Killed):
            evaluate.run(settings(base, world, tmp_path / "run"))
    assert not (tmp_path / "run/results.json").exists()
    assert asked == ([8, 8] if kill_at == 2 else [8, 8, 8, 8, 4, 8, 4, 8, 4])[:kill_at]
    asked.clear()
    kill_at = 99
    with monkeypatch.context() as patch:
        patch.setattr(Answerer, "answer", answer)
        evaluate.run(settings(base, world, tmp_path / "run", resume=True))
    assert files(tmp_path / "run") == files(evaluated)


def test_a_chunk_cut_in_the_middle_is_drawn_again_as_a_whole(
    base: Path, world: Path, evaluated: Path, tmp_path: Path
) -> None:
    """Three answers reached the disk ahead of a kill; the others must be as if nothing had happened."""
    evaluate.run(settings(base, world, tmp_path / "run"))
    run = tmp_path / "run"
    for name in ("DONE", "results.json", "t0.7/results.json"):
        (run / name).unlink()
    journal = run / "t0.7/responses.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:3]) + '{"benchm')
    evaluate.run(settings(base, world, run, resume=True))
    assert responses(run, "t0.7") == responses(evaluated, "t0.7")
    assert (run / "results.json").read_bytes() == (evaluated / "results.json").read_bytes()


def test_yes_no_by_the_first_token_resumes_too(
    base: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = {k: v for k, v in benchmark_files(world).items() if k != "describe"}
    how = {"benchmarks": only, "yes_no": "next_token", "describe_temperatures": []}
    whole = evaluate.run(settings(base, world, tmp_path / "whole", **how))
    found = read_json(whole / "results.json")["benchmarks"]
    rows = [json.loads(line) for line in (whole / "t0/probabilities.jsonl").read_text().splitlines()]
    assert len(rows) == 36 and {row["benchmark"] for row in rows} == {"pope"}
    said = responses(whole, "t0")
    p_yes = {row["id"]: row["p_yes"] for row in rows}
    assert all(0 < p < 1 for p in p_yes.values())
    assert {said[f"pope {name}"] for name in p_yes} <= {"Yes", "No"}
    assert all((said[f"pope {name}"] == "Yes") == (p > 0.5) for name, p in p_yes.items())
    # MMHal's are generated as ever, and POPE's AUROC is of the labels
    assert len([name for name in said if name.startswith("mmhal")]) == 12
    labels = [json.loads(line) for line in Path(only["pope_random"]).read_text().splitlines()]
    positive = [p_yes[f"random/{row['question_id']}"] for row in labels if row["label"] == "yes"]
    negative = [p_yes[f"random/{row['question_id']}"] for row in labels if row["label"] == "no"]
    wins = sum((p > n) + (p == n) / 2 for p in positive for n in negative)
    auroc = found["pope"]["next_token"]["random"]["auroc"]
    assert auroc["value"] == pytest.approx(wins / len(positive) / len(negative))
    page = (whole / "report.html").read_text()
    assert "AUROC" in page and "the likelier of yes and no as the first token, not generated" in page
    # killed in a chunk, after its probabilities and three of its answers were written
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for name in ("DONE", "results.json", "t0/results.json"):
        (run / name).unlink()
    for name, keep in (("responses", 11), ("probabilities", 16)):
        journal = run / f"t0/{name}.jsonl"
        journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:keep]))
    again = settings(base, world, run, **how, resume=True)
    # the folder names another output than its own settings, which is all that differs
    copied = (whole / "settings.yaml").read_text().replace(str(whole), str(run))
    (run / "settings.yaml").write_text(copied)
    evaluate.run(again)
    assert files(run) == files(whole)


def test_sampled_answers_follow_the_seed(base: Path, world: Path, evaluated: Path, tmp_path: Path) -> None:
    only = {"describe": str(world / "eval/describe.jsonl")}
    same = evaluate.run(settings(base, world, tmp_path / "same", benchmarks=only))
    other = evaluate.run(settings(base, world, tmp_path / "other", benchmarks=only, seed=1))
    assert responses(same, "t0.7") == responses(evaluated, "t0.7")
    assert responses(other, "t0.7") != responses(evaluated, "t0.7")
    greedy = {name: text for name, text in responses(evaluated, "t0").items() if name.startswith("describe")}
    assert responses(other, "t0") == greedy


def test_a_further_temperature_that_nobody_asks_at_is_no_matter(
    base: Path, world: Path, tmp_path: Path
) -> None:
    only = {"pope_random": str(world / "eval/pope_random.jsonl")}
    run = evaluate.run(settings(base, world, tmp_path / "run", benchmarks=only))
    assert (run / "DONE").exists() and list(read_json(run / "results.json")["benchmarks"]) == ["pope"]


def test_a_finished_run_is_left_alone(
    base: Path, world: Path, evaluated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(evaluated)
    monkeypatch.setattr(evaluate, "load_lmm", lambda *_: pytest.fail("weights were loaded"))
    assert evaluate.run(settings(base, world, evaluated, resume=True)) == evaluated
    assert files(evaluated) == before


def test_a_dry_run_checks_and_writes_nothing(
    base: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "load_lmm", lambda *_: pytest.fail("weights were loaded"))
    evaluate.run(settings(base, world, tmp_path / "run", dry_run=True))
    assert not (tmp_path / "run").exists()
    gone = {"describe": str(tmp_path / "gone.jsonl")}
    with pytest.raises(DataError, match=r"gone\.jsonl: no such file"):
        evaluate.run(settings(base, world, tmp_path / "run", dry_run=True, benchmarks=gone))


# --- pictures ---


@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize("benchmark", ["pope_random", "describe"])
def test_without_any_picture_nothing_starts(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, benchmark: str, dry: bool
) -> None:
    monkeypatch.setattr(evaluate, "load_lmm", lambda *_: pytest.fail("weights were loaded"))
    only = {benchmark: benchmark_files(world)[benchmark]}
    run = tmp_path / "run"
    wrong = settings(Path("owner/model"), world, run, benchmarks=only, images=str(tmp_path), dry_run=dry)
    rule = rf"{benchmark}\.jsonl: item '.*': no file 'images/.*' in {tmp_path}; check the name and the image"
    with pytest.raises(DataError, match=rule):
        evaluate.run(wrong)
    assert not run.exists()


@pytest.mark.parametrize("yes_no", ["generate", "next_token"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_picture_that_cannot_be_read_costs_its_own_questions_alone(
    base: Path,
    world: Path,
    evaluated: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: str,
    yes_no: str,
) -> None:
    """Not there, which is seen ahead of the model; or damaged behind its header, seen in its turn."""
    pictures, run = tmp_path / "world", tmp_path / "run"
    shutil.copytree(world, pictures)
    files = {k: v for k, v in benchmark_files(world).items() if k != "describe"}
    lost = json.loads(Path(files["pope_random"]).read_text().splitlines()[0])["image"]
    (picture,) = pictures.rglob(lost)
    whole = picture.read_bytes()
    how = {"benchmarks": files, "images": str(pictures), "describe_temperatures": [], "yes_no": yes_no}
    if damage == "gone":
        picture.unlink()
    else:
        picture.write_bytes(whole[: len(whole) // 2])
    evaluate.run(settings(base, world, run, **how))
    found = read_json(run / "results.json")["benchmarks"]
    rows = [json.loads(line) for line in Path(files["pope_random"]).read_text().splitlines()]
    without = [f"random/{row['question_id']}" for row in rows if row["image"] == lost]
    told = found["pope"]["answers"]["missing"]
    assert set(without) <= set(told["first"]) and found["pope"]["splits"]["random"]["n"] == 12 - len(without)
    assert all(f"no answer to {name}: " in caplog.text for name in without)
    assert ("pope: 1 of 2 pictures cannot be read" in caplog.text) == (damage == "gone")
    assert "answers are missing (" in caplog.text and not (run / "DONE").exists()
    if yes_no == "next_token":
        assert found["pope"]["next_token"]["random"]["auroc"]["n"] == 12 - len(without)
        evaluated = evaluate.run(settings(base, world, tmp_path / "whole", **how | {"images": str(world)}))
    # what can be answered is answered as ever, and the mended picture's questions follow
    told_by = {k: v for k, v in responses(evaluated, "t0").items() if not k.startswith("describe")}
    assert responses(run, "t0").items() < told_by.items()
    picture.write_bytes(whole)
    evaluate.run(settings(base, world, run, **how, resume=True))
    assert responses(run, "t0") == told_by and (run / "DONE").exists()
    assert "answers" not in read_json(run / "results.json")["benchmarks"]["pope"]


def test_mmhal_by_url(
    base: Path, world: Path, evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The official file's addresses: refused without a root; with one, the files saved under their names."""
    rows = json.loads((world / "eval/mmhal.json").read_text())
    for row in rows:
        row["image_src"] = f"https://example.org/o/{Path(row['image_src']).name}"
    (tmp_path / "mmhal.json").write_text(json.dumps(rows))
    only = {"benchmarks": {"mmhal": str(tmp_path / "mmhal.json")}, "describe_temperatures": []}
    found = settings(base, world, tmp_path / "run", **only, images=str(world / "images"))
    for images, rule in (
        (None, r"mmhal\.json: item '0': 'https:.*' is a URL.*; download the pictures .* set images to it"),
        (str(world), r"mmhal\.json\[0\]: image_src: no file 'w.*png' in .* for https://example\.org/o/w"),
    ):
        with monkeypatch.context() as patch, pytest.raises(DataError, match=rule):
            patch.setattr(evaluate, "load_lmm", lambda *_: pytest.fail("weights were loaded"))
            evaluate.run(found.model_copy(update={"images": images}))
    assert not (tmp_path / "run").exists()
    run = evaluate.run(found)
    mmhal = {name: text for name, text in responses(evaluated, "t0").items() if name.startswith("mmhal")}
    assert responses(run, "t0") == mmhal


# --- truth and judges ---


def test_descriptions_need_a_known_picture(base: Path, world: Path, tmp_path: Path) -> None:
    def describe(path: Path, **changes: Any) -> EvalSettings:
        return settings(base, world, tmp_path / "run", benchmarks={"describe": str(path)}, **changes)

    with pytest.raises(DataError, match=r"benchmarks.describe: the objects .* not known; set world"):
        evaluate.run(describe(world / "eval/describe.jsonl", world=None))
    write_records(tmp_path / "bare.jsonl", [Prompt(id="bare", question="What is there?")])
    with pytest.raises(DataError, match=r"bare\.jsonl: image: prompt 'bare' has no image"):
        evaluate.run(describe(tmp_path / "bare.jsonl"))
    far = Prompt(id="far", question="What is there?", image=Image(id="w9-000001", path="x.png"))
    write_records(tmp_path / "far.jsonl", [far])
    with pytest.raises(DataError, match=r"describe: no objects are known for 1 images \(first 'w9-000001'\)"):
        evaluate.run(describe(tmp_path / "far.jsonl"))
    assert not (tmp_path / "run").exists()


def test_no_prompt_of_a_benchmark_is_left_out(tmp_path: Path) -> None:
    """One bad line in a hundred would pass where records are read to train on."""
    asked = [Prompt(id=f"q{i}", question="What?", image=Image(id="a", path="a.png")) for i in range(200)]
    write_records(tmp_path / "describe.jsonl", asked)
    assert len(benchmarks.describe_items(str(tmp_path / "describe.jsonl"), None)) == 200
    with (tmp_path / "describe.jsonl").open("a") as file:
        file.write("{oops\n")
    with pytest.raises(DataError, match=r"describe\.jsonl:201: not valid JSON"):
        benchmarks.describe_items(str(tmp_path / "describe.jsonl"), None)


def test_without_a_judge_answers_are_handed_out(
    base: Path, world: Path, evaluated: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    only = {"mmhal": str(world / "eval/mmhal.json")}
    changes = {"benchmarks": only, "world": None, "describe_temperatures": []}
    run = evaluate.run(settings(base, world, tmp_path / "run", **changes))
    figures = read_json(run / "results.json")["benchmarks"]["mmhal"]
    assert (figures["n"], figures["judge"]) == (12, None) and "score" not in figures
    assert "verdicts=FILE" in caplog.text and "mmhal_responses.json" in caplog.text
    template, handed = read_json(world / "eval/mmhal.json"), read_json(run / "mmhal_responses.json")
    said = [row.pop("model_answer") for row in handed]
    assert handed == [{k: v for k, v in row.items() if k != "model_answer"} for row in template]
    assert said == [responses(evaluated, "t0")[f"mmhal {i}"] for i in range(12)]
    (told,) = eval_page.page_of({"m": {"mmhal": figures}}).sections
    assert isinstance(told, Text) and told.title == "MMHal"
    assert "the answers were not rated: no judge was given" in told.body
    assert "Questions and truth sha256" in told.body
    assert "not rated" in (run / "report.html").read_text()


def test_recorded_verdicts_judge_without_a_world(
    base: Path, world: Path, evaluated: Path, tmp_path: Path
) -> None:
    said = {
        name.split()[1]: text for name, text in responses(evaluated, "t0").items() if name.startswith("mmhal")
    }
    questions = [row for _, row in read_rows(world / "eval/mmhal.json") if isinstance(row, dict)]
    verdicts = [
        Verdict(
            id=str(i),
            image=row["image_id"],
            question=row["question"],
            response=said[str(i)],
            label="none",
            score=4,
            reason="Rating: 4",
            judge="people",
        )
        for i, row in enumerate(questions)
    ]
    write_records(tmp_path / "verdicts.jsonl", verdicts)
    only = {"mmhal": str(world / "eval/mmhal.json")}
    run = evaluate.run(
        settings(base, world, tmp_path / "run", benchmarks=only, world=None,
                 describe_temperatures=[], verdicts=str(tmp_path / "verdicts.jsonl"))
    )  # fmt: skip
    found = read_json(run / "results.json")["benchmarks"]["mmhal"]["official"]
    assert (found["score"]["value"], found["hallucination_rate"]["value"]) == (4, 0)


@pytest.fixture
def request_for(world: Path) -> Callable[..., JudgeRequest]:
    scene = next(iter(read_scenes(world).values()))

    def make(response: str, **changes: Any) -> JudgeRequest:
        values = {
            "id": "0", "image": scene.id, "question": f"What color is the {scene.objects[0]}?",
            "response": response, "reference": "", "objects": (), "prompt": "",
        }  # fmt: skip
        return JudgeRequest(**values | changes)

    return make


def test_the_oracle_speaks_as_a_judge(world: Path, request_for: Callable[..., JudgeRequest]) -> None:
    scenes = read_scenes(world)
    scene = next(iter(scenes.values()))
    group = scene.groups[0]
    right = benchmarks.oracle_says(scenes, request_for(f"It is {group.colour}."))
    wrong = benchmarks.oracle_says(scenes, request_for("It is purple and black."))
    assert (rating_official(right), rating_official(wrong)) == (6, 1)
    with pytest.raises(DataError, match="the image 'x' is not a scene of this world"):
        benchmarks.oracle_says(scenes, request_for("", image="x"))


# --- the model behind an endpoint ---


def _endpoint_settings(server: Server, world: Path, output: Path, **changes: Any) -> EvalSettings:
    files = {k: v for k, v in benchmark_files(world).items() if k in ("pope_random", "mmhal")}
    values = settings(Path("unused"), world, output).model_dump()
    endpoint = {"url": server.url, "model": "seer", "retries": 0, "workers": 2, "price_input": 5.0}
    values |= {"model": None, "endpoint": endpoint, "describe_temperatures": [], "benchmarks": files}
    return EvalSettings.model_validate(values | changes)


def test_an_endpoint_that_takes_images_answers(
    server: Server, world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.reply = lambda n, body: (200, {}, said("Yes."))
    run = evaluate.run(_endpoint_settings(server, world, tmp_path / "run"))
    found = read_json(run / "results.json")
    assert found["model"] == "seer at 127.0.0.1"
    split = found["benchmarks"]["pope"]["splits"]["random"]
    assert split["official"]["yes_ratio"]["value"] == 1.0 and found["benchmarks"]["mmhal"]["n"] == 12
    assert len(server.seen) == 24 and (run / "DONE").exists()
    # the cost was told before, and each question came with its own picture
    assert "24 requests to seer at 127.0.0.1" in caplog.text and "at most about" in caplog.text
    _, body = server.seen[0]
    text, image = body["messages"][0]["content"]
    assert text["text"].startswith("Is there ") and (body["max_tokens"], body["temperature"]) == (5, 0.0)
    data = base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert data in {path.read_bytes() for path in (world / "images").rglob("*.png")}


def test_what_an_endpoint_leaves_out_is_counted_and_asked_again(
    server: Server, world: Path, evaluated: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = {"on": True}

    def reply(n: int, body: dict[str, Any]) -> Reply:
        asked = body["messages"][0]["content"][0]["text"]
        bad = broken["on"] and "what" in asked.lower()
        return (400, {}, {"error": "too dark"}) if bad else (200, {}, said("No, I see none."))

    server.reply = reply
    run = evaluate.run(_endpoint_settings(server, world, tmp_path / "run"))
    found = read_json(run / "results.json")["benchmarks"]
    missing = found["mmhal"]["answers"]["missing"]
    assert 0 < missing["n"] < 12 and found["mmhal"]["n"] == 12 - missing["n"]
    # a missing answer is no zero: the others are scored as they were given
    assert len(found["mmhal"]["official"]["unrated"]) == 0 and "answers" not in found["pope"]
    assert f"no answer to {missing['first'][0]}: seer at 127.0.0.1: status 400 (too dark)" in caplog.text
    assert f"answers are missing ({missing['n']} of mmhal)" in caplog.text
    assert not (run / "DONE").exists() and not (run / "mmhal_responses.json").exists()
    assert "missing" in (run / "report.html").read_text()
    # the same again asks for the missing ones alone
    broken["on"], before = False, len(server.seen)
    evaluate.run(_endpoint_settings(server, world, tmp_path / "run", resume=True))
    assert len(server.seen) - before == missing["n"] and (run / "DONE").exists()
    whole = evaluate.run(_endpoint_settings(server, world, tmp_path / "whole"))
    assert (run / "results.json").read_bytes() == (whole / "results.json").read_bytes()


def test_a_refused_key_and_a_dead_address_end_the_run_in_a_line(
    server: Server, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.reply = lambda n, body: (401, {}, {"error": "wrong key"})
    file = f"benchmarks.pope_random={world / 'eval/pope_random.jsonl'}"
    command = [
        "eval",
        file,
        f"images={world}",
        "pope_prefix=images",
        "endpoint.model=m",
        "endpoint.retries=0",
    ]
    for place, told in (
        (server.url, "status 401 (wrong key); check the key in the environment variable OPENAI_API_KEY"),
        ("http://127.0.0.1:9/v1", "none of the first 12 requests was answered (m at 127.0.0.1: ConnectError"),
    ):
        output = tmp_path / str(len(place))
        assert cli.main([*command, f"endpoint.url={place}", "--output", str(output)]) == 2
        error = capsys.readouterr().err
        assert error.splitlines()[-1].startswith("align: error: ") and told in error
        assert not (output / "results.json").exists()


def test_what_an_evaluation_wrote_can_be_scored_and_judged_again(
    evaluated: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """MMHal-Bench's response file, which has no ids, and a whole evaluation's verdicts, rules' included."""
    command = ["eval", "score", f"benchmarks.mmhal={world / 'eval/mmhal.json'}", f"world={world}"]
    command += ["--answers", str(evaluated / "mmhal_responses.json"), "bootstrap=100"]
    was = read_json(evaluated / "results.json")["benchmarks"]["mmhal"]
    for name, more in (("oracle", []), ("again", [f"verdicts={evaluated / 't0/verdicts.jsonl'}"])):
        assert cli.main([*command, *more, "--output", str(tmp_path / name)]) == 0
        found = read_json(tmp_path / name / "results.json")["benchmarks"]["mmhal"]
        assert found["official"] == was["official"] and found["answers"]["missing"]["n"] == 0
    told = capsys.readouterr().out
    assert (
        f"MMHal: MMHal score, 0-6 {was['official']['score']['value']:.3f} [" in told and "the page: " in told
    )


def test_a_picture_that_no_endpoint_reads_is_sent_as_png(tmp_path: Path) -> None:
    PILImage.new("CMYK", (8, 6), (0, 200, 0, 0)).save(tmp_path / "a.tif")
    part = image_part(Image(id="a", path="a.tif"), tmp_path)
    data = base64.b64decode(part["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert PILImage.open(io.BytesIO(data)).size == (8, 6)
    PILImage.new("RGB", (8, 6)).save(tmp_path / "b.jpg")
    part = image_part(Image(id="b", path="b.jpg"), tmp_path)
    assert part["image_url"]["url"].startswith("data:image/jpeg;base64,/9j/")


def test_verdicts_that_failed_are_asked_for_again(
    server: Server, base: Path, world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.reply = lambda n, body: (400, {}, {"error": "asleep"})
    judge = {"endpoint": {"url": server.url, "model": "judge", "retries": 0}}
    how: dict[str, Any] = {"benchmarks": {"mmhal": str(world / "eval/mmhal.json")}, "judge": judge}
    run = evaluate.run(settings(base, world, tmp_path / "run", **how))
    found = read_json(run / "results.json")["benchmarks"]["mmhal"]
    assert len(found["unjudged"]) == 12 and found["official"]["score"] is None
    assert "verdicts are missing (12 of mmhal): the same command with --resume" in caplog.text
    assert not (run / "DONE").exists()
    server.reply = lambda n, body: (200, {}, said("Rating: 5"))
    # more patience is no other run
    judge["endpoint"]["retries"] = 3
    before = len(server.seen)
    evaluate.run(settings(base, world, run, **how, resume=True))
    found = read_json(run / "results.json")["benchmarks"]["mmhal"]
    assert found["official"]["score"]["value"] == 5.0 and (run / "DONE").exists()
    assert len(server.seen) == before + 12


def test_one_model_answers(
    server: Server, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["eval", "run", "benchmarks.mmhal=x", f"output={tmp_path / 'run'}"]) == 2
    told = (
        "align: error: settings: name one model: model.path, or endpoint.url with endpoint.model (model=null"
    )
    assert capsys.readouterr().err.startswith(told)
    both = {"model": {"path": "world-base"}}
    with pytest.raises(ValueError, match=r"name one model: model\.path, or endpoint\.url"):
        _endpoint_settings(server, world, tmp_path / "run", **both)
    with pytest.raises(ValueError, match="an endpoint shows no probabilities"):
        _endpoint_settings(server, world, tmp_path / "run", yes_no="next_token")
