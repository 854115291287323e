"""``align eval report``: two models' answers scored, then side by side; the page in a real browser."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from apps import cli
from apps.benchmarks import benchmarks_of
from apps.eval_gallery import chosen, marks, verdict_text, verdicts_on
from apps.eval_runs import answered, read_run
from data.jsonl import DataError, read_json
from data.world.build import read_scenes
from evals import amber
from evals.amber import AmberBenchmark
from evals.mmbench import MmbenchBenchmark
from evals.objects import ObjectBenchmark

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SPLITS = ("random", "popular", "adversarial")


def _score(world: Path, folder: Path, name: str, said: dict[str, str]) -> Path:
    """An evaluation of answers: "yes" or "no" to POPE, one text to every other question."""
    files = {f"pope_{split}": world / f"eval/pope_{split}.jsonl" for split in SPLITS}
    files |= {"mmhal": world / "eval/mmhal.json", "describe": world / "eval/describe.jsonl"}
    arguments = [f"benchmarks.{key}={path}" for key, path in files.items()]
    folder.mkdir(parents=True)
    for key, path in files.items():
        text = path.read_text("utf-8")
        items = json.loads(text) if key == "mmhal" else [json.loads(line) for line in text.splitlines()]
        ids = [row.get("question_id", row.get("id", place)) for place, row in enumerate(items)]
        answers = folder / f"{key}.answers.jsonl"
        answers.write_text("".join(json.dumps({"id": i, "answer": said[key[:4]]}) + "\n" for i in ids))
        arguments.append(f"answers.{key}={answers}")
    arguments += [f"world={world}", f"images={world}", f"name={name}", "bootstrap=100"]
    assert cli.main(["eval", "score", *arguments, f"output={folder / 'run'}"]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    yes = {
        "pope": "Yes",
        "mmha": "Rating: 6, a red cup.",
        "desc": "There is a cup, a ball and a <b>clock</b>.",
    }
    no = {"pope": "No, there is not.", "mmha": "That cannot be seen.", "desc": "A picture."}
    return [
        _score(world, folder / "talker", "talker", yes),
        _score(world, folder / "careful", "a much longer name of a careful model, 13B-336px-adapter", no),
    ]


@pytest.fixture(scope="module")
def report(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    assert cli.main(["eval", "report", *map(str, runs), "--output", str(folder)]) == 0
    return folder


def test_models_stand_side_by_side(report: Path, runs: list[Path]) -> None:
    names = [read_run(run).name for run in runs]
    found = read_json(report / "results.json")["models"]
    assert list(found) == names
    assert found["talker"] == read_json(runs[0] / "results.json")["benchmarks"]
    text = (report / "report.md").read_text("utf-8")
    f1 = found["talker"]["pope"]["overall"]["official"]["f1"]
    row = next(line for line in text.splitlines() if line.startswith("| talker"))
    # always "yes" on a half-half set
    assert f1["value"] == pytest.approx(2 / 3) and row.startswith("| talker | 0.667 [")
    assert "| *LLaVA-RLHF 13B (published)* | *0.819* | *2.530* |" in text
    page = (report / "report.html").read_text("utf-8")
    assert 'class="muted"' in page and page.count("<figure") == 3 * 12
    # answers are text on the page, whatever they hold
    assert "<b>" not in page.split("<footer")[0].replace('class="row"><b>', "") and "&lt;b&gt;" in page


def test_the_same_runs_give_the_same_bytes(report: Path, runs: list[Path], tmp_path: Path) -> None:
    assert cli.main(["eval", "report", *map(str, runs), "--output", str(tmp_path)]) == 0
    for file in ("report.html", "report.md", "results.json"):
        assert (tmp_path / file).read_bytes() == (report / file).read_bytes()


def test_runs_are_named_apart(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twice = [str(runs[0]), str(runs[0])]
    assert cli.main(["eval", "report", *twice, "--output", str(tmp_path / "r")]) == 2
    assert f"holds a model of the same name, 'talker'; name them apart, e.g. first={runs[0]}" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "r").exists()
    named = [f"one={runs[0]}", f"two={runs[0]}"]
    assert cli.main(["eval", "report", *named, "--pictures", "0", "--output", str(tmp_path / "r")]) == 0
    assert list(read_json(tmp_path / "r/results.json")["models"]) == ["one", "two"]
    assert "<script" not in (tmp_path / "r/report.html").read_text("utf-8")


def test_a_run_s_own_folder_is_no_place_for_a_report(
    runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in runs[0].iterdir() if path.is_file()}
    assert cli.main(["eval", "report", str(runs[0]), "--output", str(runs[0])]) == 2
    assert "is a run's own folder; choose another output" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in runs[0].iterdir() if path.is_file()} == before


def test_runs_that_cannot_be_read_are_named(
    runs: list[Path], report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = tmp_path / "older"
    shutil.copytree(runs[0], older)
    settings = (older / "settings.yaml").read_text("utf-8")
    (older / "settings.yaml").write_text(settings + "former_key: 1\n")
    assert cli.main(["eval", "report", str(older), "--output", str(tmp_path / "r")]) == 2
    assert "older/settings.yaml: not settings of this version (" in capsys.readouterr().err
    (older / "settings.yaml").write_text(settings)
    shutil.copy(report / "results.json", older / "results.json")
    assert cli.main(["eval", "report", str(older), "--output", str(tmp_path / "r")]) == 2
    assert "not the results of one evaluation; give the output of" in capsys.readouterr().err


def test_answers_with_line_ends_of_other_kinds_are_read_back(world: Path, tmp_path: Path) -> None:
    odd = "No\u2028way\u0085, not\x0cone."
    run = _score(world, tmp_path / "odd", "odd", {"pope": odd, "mmha": odd, "desc": odd})
    assert cli.main(["eval", "report", str(run), "--output", str(tmp_path / "r")]) == 0
    found = read_run(run).parts[""].responses
    assert set(found["pope"].values()) == {odd}


def test_other_questions_do_not_share_a_table(world: Path, runs: list[Path], tmp_path: Path) -> None:
    newer = tmp_path / "world"
    shutil.copytree(world, newer)
    path = newer / "eval/pope_random.jsonl"
    path.write_text(path.read_text("utf-8").replace('"no"', '"yes"', 1), "utf-8")
    said = {"pope": "Yes", "mmha": "x", "desc": "y"}
    other = _score(newer, tmp_path / "other", "other", said)
    assert cli.main(["eval", "report", str(runs[0]), str(other), "--output", str(tmp_path / "r")]) == 2
    # and a file that has changed since is not shown as if it had been asked
    run = read_run(other)
    path.write_text(path.read_text("utf-8").replace('"no"', '"yes"', 1), "utf-8")
    with pytest.raises(DataError, match=r"pope \(random\): the questions have changed since they were asked"):
        list(answered(run))


def test_the_gallery_shows_each_kind_of_item(runs: list[Path], world: Path) -> None:
    found = [read_run(run) for run in runs]
    scenes = read_scenes(world)
    parts = {run.name: run.parts[""] for run in found}
    for benchmark in benchmarks_of(found[0].settings, scenes):
        kinds = [kind for _, kind in chosen(benchmark, parts, 6)]
        assert len(kinds) == 6 and "models differ" in kinds
        if benchmark.name == "pope":
            # "yes" and "no" are never both right
            assert set(kinds) == {"models differ"}
        if isinstance(benchmark, ObjectBenchmark):
            (item, _), *_ = chosen(benchmark, parts, 1)
            text = parts["talker"].responses["describe"][item.id]
            spans = marks(benchmark, item, text, verdicts_on(benchmark, item, parts["talker"]))
            there = benchmark.truth[item.image.id]
            named = [text[start:end] for start, end in spans]
            assert named == [name for name in ("cup", "ball", "clock") if name not in there]


def test_rules_that_disagree_are_both_told(runs: list[Path], world: Path) -> None:
    run = read_run(runs[1])
    (pope, *_) = benchmarks_of(run.settings, read_scenes(world))
    item = pope.items[0]
    verdicts = verdicts_on(pope, item, run.parts[""])
    assert set(verdicts) == {"official", "strict"}
    strict = verdicts["strict"].model_copy(update={"label": "unparsed", "score": 0.0})
    official = verdicts["official"].model_copy(update={"label": "no", "score": 1.0})
    told = verdict_text({"official": official, "strict": strict})
    assert told == "official: no, right; strict: unparsed, wrong"
    assert verdict_text({"official": official, "strict": official}) == "no, right"


def test_amber_s_false_words_are_found_in_their_plural() -> None:
    text = "Two Dogs near a table, a tabletop"
    assert [text[a:b] for a, b in amber.spans_of(text, ["dog", "table"])] == ["Dogs", "table"]


def test_amber_and_mmbench_are_shown_too(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data/amber"
    described = json.loads((folder / "annotations.json").read_text("utf-8"))
    rows = [{"id": a["id"], "response": "A dog and two cars." if a["type"] == "generative" else "Yes"}
            for a in described]  # fmt: skip
    path = tmp_path / "amber.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    header = "index\tquestion\thint\tA\tB\tcategory\tanswer\n"
    (tmp_path / "mmbench.tsv").write_text(header + "7\tWhat?\t\ta cat\ta dog\tkind\tB\n")
    said = [{"id": f"7/{by}", "answer": letter} for by, letter in enumerate("BB")]
    (tmp_path / "mmbench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    run = tmp_path / "run"
    arguments = [f"benchmarks.amber={folder}", f"answers.amber={path}", "amber_nouns=words", "limit=60",
                 f"benchmarks.mmbench={tmp_path / 'mmbench.tsv'}", "bootstrap=100",
                 f"answers.mmbench={tmp_path / 'mmbench.jsonl'}"]  # fmt: skip
    assert cli.main(["eval", "score", *arguments, f"output={run}"]) == 0
    page = (run / "report.html").read_text("utf-8")
    assert "names what is not there: " in page and "yes, wrong" in page and "AMBER: discriminative" in page
    found = read_run(run)
    by_name: dict[str, Any] = {key: benchmark for key, _, benchmark in answered(found)}
    assert isinstance(by_name["amber"], AmberBenchmark) and isinstance(by_name["mmbench"], MmbenchBenchmark)
    ((item, kind),) = chosen(by_name["mmbench"], {"m": found.parts[""]}, 12)
    # the second rotation's "B" is wrong, but the item shown is the file's own order
    assert (item.id, kind) == ("7/0", "right")


# --- in a browser ---


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_is_whole_in_a_browser(browser: Browser, report: Path, width: int, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(180_000)
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: told.append(request.url))
    address = (report / "report.html").as_uri()
    page.goto(address)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    over = """[...document.querySelectorAll("main *")].filter((e) => !e.closest(".scroll, svg, [hidden]")
              && e.getBoundingClientRect().right > innerWidth).map((e) => e.outerHTML.slice(0, 80))"""
    assert page.evaluate(over) == []
    # the filters
    figures, count = page.locator("figure:visible"), page.locator("form.filters output")
    assert figures.count() == 36 and count.inner_text() == "36 of 36"
    page.get_by_label("benchmark").select_option("describe")
    assert figures.count() == 12
    page.get_by_label("verdict").select_option("models differ")
    shown = figures.count()
    assert 0 < shown <= 12 and count.inner_text() == f"{shown} of 36"
    page.get_by_label("text").fill("NO SUCH WORDS")
    assert figures.count() == 0
    page.get_by_label("text").fill("a picture")
    assert figures.count() == shown
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    # nothing but the file itself (and the pictures inside it) was asked for, and nobody complained
    assert [line for line in told if not line.startswith("data:")] == [address]
    page.close()
