"""The page of a PPO run: what it shows of a real run, of hand-made logs, and how it looks in a browser."""

from __future__ import annotations

import io
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image as PilImage

from apps import cli, rollout_page
from apps.rollout_page import NAME, Follower, build_page, chosen, points, verdict, write_page
from data.jsonl import DataError, write_json, write_lines
from data.processes import sole_writer
from evals.report import Curves, Gallery, Page, Table, render_report

Browser = Any
HOSTILE = "<script>document.title = 'broken'</script><img src=x onerror=\"document.title = 'broken'\">"


def row(step: int, i: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "step": step, "id": f"p{i}", "image": {"id": "i", "path": f"images/{i % 3}.png"},
        "question": "What is in the image?", "facts": "A cat.\nA table.", "response": f"A cat at {step}.",
        "score": 1.25, "reward": -0.75, "parts": {"length": -2.5, "mine": 0.5}, "kl": 0.125, "kl_k3": 0.1,
        "moved": [{"at": 1, "token": " cat", "log_ratio": -0.5}, {"at": 0, "token": "A", "log_ratio": 0.004}],
        "value": 0.5, "return": -0.75,
        "advantage": {"mean": -1.25, "min": -2.0, "max": 0.0}, "tokens": 6, "complete": i % 2 == 0,
    } | changes  # fmt: skip


def measured(step: int, **changes: Any) -> dict[str, Any]:
    return {
        "step": step, "objective/kl": 0.1 * step, "objective/kl_k3": 0.1, "objective/scores": 1.0,
        "objective/rewards": 0.5, "reward/length": -0.5, "reward/mine": 0.25, "val/explained_var": "nan",
        "rate/rollout_s": 60.0, "rate/update_s": 120.0, "rate/peak_memory_gb": 3.0, "unheard/of": step,
    } | changes  # fmt: skip


def run_of(folder: Path, steps: int = 4, each: int = 2, **changes: Any) -> Path:
    """The files of a run of ``steps`` steps with three pictures, larger than a page should hold."""
    settings = {"model": {"path": "base"}, "reward_model": "judge", "kl_coef": 0.1, "steps": 10}
    settings["data"] = {"images": str(folder / "pictures")}
    folder.mkdir()
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    write_json(folder / "meta.json", {"stage": "ppo", "starts": []})
    write_lines(folder / "metrics.jsonl", (json.dumps(measured(s + 1)) for s in range(steps)))
    rows = (row(s + 1, i, **changes) for s in range(steps) for i in range(each))
    write_lines(folder / "rollouts.jsonl", map(json.dumps, rows))
    for i in range(3):
        path = folder / f"pictures/images/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PilImage.effect_noise((640, 480), 90 + i).convert("RGB").save(path)
    return folder


def gallery(page: Page) -> Gallery:
    return next(section for section in page.sections if isinstance(section, Gallery))


# --- curves ---


def test_curves_are_those_of_the_metrics_that_are_logged(tmp_path: Path) -> None:
    page = build_page(run_of(tmp_path / "run", steps=2), running=False)
    found = {s.title: {name: list(line) for name, line in s.series.items()} for s in page.sections
             if isinstance(s, Curves)}  # fmt: skip
    explained = found.pop("Variance that the value explains, share")["explained variance"]
    assert [x for x, _ in explained] == [1, 2] and all(math.isnan(y) for _, y in explained)
    assert found == {
        "Reward of a response": {"reward": [(1, 0.5), (2, 0.5)], "reward model's score": [(1, 1), (2, 1)]},
        "Parts of the reward": {
            "length": [(1, -0.5), (2, -0.5)], "mine": [(1, 0.25), (2, 0.25)]
        },
        "KL to the reference, nats a response": {"k1": [(1, 0.1), (2, 0.2)], "k3": [(1, 0.1), (2, 0.1)]},
        "Time of a step, seconds": {"rollout": [(1, 60), (2, 60)], "update": [(1, 120), (2, 120)]},
        "Peak memory, GB": {"peak memory": [(1, 3), (2, 3)]},
    }  # fmt: skip
    table = next(s for s in page.sections if isinstance(s, Table))
    assert table.rows == [["unheard/of", "1", "2", "1", "2"]]


def test_long_curves_are_thinned_and_keep_their_end() -> None:
    found = points([{"step": s, "x": s * s} for s in range(1, 1004)], "x")
    assert len(found) <= 200 and found[-1] == (1003, 1003**2) and found[0][0] < 7
    assert len({b[0] - a[0] for a, b in pairwise(found)}) == 1


# --- the gallery ---


def test_the_figures_of_a_rollout() -> None:
    assert verdict(row(3, 1)).splitlines() == [
        "reward −0.75: score 1.25, length −2.50, mine 0.50",
        "KL 0.12, 6 tokens, no end token",
        "advantage −1.25; value of the prompt 0.50, return −0.75",
        "moved most: “cat” −0.50",
    ]


def test_the_newest_steps_are_shown_and_some_before_them() -> None:
    found = chosen([row(step, i) for step in range(1, 101) for i in range(12)])
    assert len(found) <= 60
    steps = list(dict.fromkeys(r["step"] for r in found))
    # 97 earlier steps: every 16th of them
    assert steps == [100, 99, 98, 97, 81, 65, 49, 33, 17, 1]
    assert [sum(r["step"] == s for r in found) for s in (100, 98, 97, 1)] == [10, 10, 3, 3]
    assert [r["id"] for r in found[:3]] == ["p0", "p1", "p2"]
    few = [row(step, i) for step in (1, 2) for i in range(3)]
    assert chosen(few) == few[3:] + few[:3]


def test_each_item_has_its_picture_facts_and_tags(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", steps=2)
    shown = gallery(build_page(run, running=True))
    assert [item.tags for item in shown.items] == [
        ("2", "complete"), ("2", "no end token"), ("1", "complete"), ("1", "no end token")
    ]  # fmt: skip
    assert shown.filters == ("step", "ending")
    assert shown.items[0].truth == "The reward model read: A cat.\nA table."
    assert list(shown.items[0].answers) == ["step 2 · p0"]
    first, second = (item.image for item in shown.items[:2])
    assert first != second
    assert first == shown.items[2].image
    with PilImage.open(run / "pictures/images/0.png") as whole:
        assert whole.size == (640, 480)
    with PilImage.open(io.BytesIO(first or b"")) as small:
        assert small.size == (256, 192)


def test_pictures_that_are_gone_or_outside_are_not_shown(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", steps=1)
    PilImage.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (run / "pictures").rename(run / "moved")
    shown = gallery(build_page(run, running=False))
    assert not any(item.image for item in shown.items) and "--images DIR" in shown.note
    outside, remote = {"id": "x", "path": "../../secret.png"}, {"id": "x", "url": "http://localhost/x.png"}
    rows = (row(1, image=image) for image in (outside, remote, None, "of an older run"))
    write_lines(run / "rollouts.jsonl", map(json.dumps, rows))
    shown = gallery(build_page(run, running=False, images=str(run / "moved")))
    assert [item.image for item in shown.items] == [None] * 4


def test_text_is_text(tmp_path: Path) -> None:
    told = {"response": HOSTILE, "question": HOSTILE, "facts": HOSTILE, "id": HOSTILE}
    html = render_report(build_page(run_of(tmp_path / "run", steps=1, **told), running=True))
    assert "onerror=&#34;document.title" in html and 'onerror="' not in html
    assert html.count("<script>") == 1  # the filters'


def test_the_page_stays_small(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", steps=300, each=12, response="word " * 2000)
    html = render_report(build_page(run, running=True))
    assert html.count("<figure") == 60
    assert len(html.encode()) < 3_000_000


# --- where the run stands ---


def test_the_page_says_how_the_run_stands(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")

    def status() -> tuple[str, bool, int | None, str, int]:
        write_page(run)
        found = build_page(run, rollout_page._is_held(run)).status
        assert found is not None and ('http-equiv="refresh"' in (run / NAME).read_text()) == found.running
        return found.text, found.running, found.percent, found.detail, found.refresh

    waits = "stopped: no process is at work in it; --resume goes on from the checkpoint"
    assert status()[:3] == (waits, False, 40)
    with sole_writer(run):
        # a step takes three minutes, and six are left; nobody need look more than once a minute
        assert status() == ("running", True, 40, "about 18 minutes left", 60)
    (run / "DONE").touch()
    write_json(run / "result.json", {"steps": 4, "stopped": "after 5 steps the KL is 9"})
    assert status()[:2] == ("ended early: after 5 steps the KL is 9", False)
    write_json(run / "result.json", {"steps": 10, "stopped": None})
    assert status()[:2] == ("finished", False)


def test_the_page_takes_two_hundredths_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, written = [0.0], list[float]()

    def slow(run: Path, **_: Any) -> None:
        written.append(now[0])
        now[0] += 1.0

    monkeypatch.setattr(rollout_page, "write_page", slow)
    follower = Follower(clock=lambda: now[0])
    for _ in range(40):
        now[0] += 10
        follower.watch(tmp_path)
    # a page of one second is due again after fifty
    assert [round(b - a) for a, b in pairwise(written)] == [51] * 7
    assert written[0] == 10


def test_a_page_that_fails_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = run_of(tmp_path / "run")
    (run / "metrics.jsonl").write_text("{broken\n")
    with rollout_page.following() as watch:
        watch(run)
    assert "metrics.jsonl:1: not a JSON object" in caplog.text and not (run / NAME).exists()


def test_how_a_run_ended_stands_on_the_page(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    with pytest.raises(ValueError), rollout_page.following() as watch:
        watch(run)
        assert ">running<" in (run / NAME).read_text()
        raise ValueError("the loss is <nan>")
    assert "stopped: the loss is &lt;nan&gt;; --resume goes on" in (run / NAME).read_text()
    with pytest.raises(KeyboardInterrupt), rollout_page.following() as watch:
        watch(run)
        raise KeyboardInterrupt
    assert "stopped: interrupted; --resume" in (run / NAME).read_text()


def test_only_runs_of_ppo_have_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a run directory; give the output of `align ppo`"):
        write_page(tmp_path)
    run = run_of(tmp_path / "run")
    write_json(run / "meta.json", {"stage": "sft"})
    with pytest.raises(DataError, match="holds a run of 'sft', not 'ppo'"):
        write_page(run)


# --- the command ---


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path / "run")
    (run / "pictures").rename(tmp_path / "elsewhere")
    assert cli.main(["ppo", "page", str(run), "--images", str(tmp_path / "elsewhere")]) == 0
    assert capsys.readouterr().out == f"done: {run / NAME}\n"
    assert "data:image/jpeg" in (run / NAME).read_text()
    assert cli.main(["ppo", "page", str(tmp_path)]) == 2
    assert "not a run directory; give the output of `align ppo`" in capsys.readouterr().err


# --- in a browser ---


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_is_whole_in_a_browser(browser: Browser, tmp_path: Path, width: int) -> None:
    long = "http://example.org/" + "a" * 300
    run = run_of(tmp_path / "run", steps=5, each=4, response=f"{HOSTILE} {long}", facts=long)
    address = write_page(run, running=False).as_uri()
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(180_000)
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: told.append(request.url))
    page.goto(address)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    over = """[...document.querySelectorAll("main *")].filter((e) => !e.closest(".scroll, svg, [hidden]")
              && e.getBoundingClientRect().right > innerWidth).map((e) => e.outerHTML.slice(0, 80))"""
    assert page.evaluate(over) == []
    assert page.title() == "PPO: " + "/".join(run.parts[-2:])
    assert page.locator("figure img").count() == page.locator("figure").count() == 18
    figures = page.locator("figure:visible")
    page.locator("form.filters select").first.select_option("5")
    assert figures.count() == 4
    page.get_by_label("ending").select_option("no end token")
    assert figures.count() == 2
    # nothing but the file itself (and the pictures inside it) was asked for, and nobody complained
    assert [line for line in told if not line.startswith("data:")] == [address]
    page.close()


def test_a_page_that_reloads_keeps_what_was_chosen(browser: Browser, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", steps=2)
    page = browser.new_page()
    page.goto(write_page(run, running=True).as_uri())
    assert page.locator("meta[http-equiv=refresh]").get_attribute("content") == "60"
    page.locator("form.filters select").first.select_option("1")
    page.get_by_label("text").fill("cat")
    write_lines(run / "rollouts.jsonl", (json.dumps(row(s)) for s in (1, 2, 3)))
    write_page(run, running=True)
    page.reload()
    assert (
        page.locator("form.filters select").first.input_value() == "1"
        and page.get_by_label("text").input_value() == "cat"
    )
    assert page.locator("figure:visible").count() == 1 and page.locator("figure").count() == 3
    # a step that is gone is no choice any more
    write_lines(run / "rollouts.jsonl", [json.dumps(row(7))])
    write_page(run, running=True)
    page.reload()
    assert (
        page.locator("form.filters select").first.input_value() == ""
        and page.locator("figure:visible").count() == 1
    )
    page.close()
