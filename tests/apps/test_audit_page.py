"""``align reward audit`` from the command line on a tiny reward model, and its page in a real browser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from align.config import ModelSettings
from align.pairs import Pair
from align.reward import report_pairs
from align.reward_model import RewardInfo, RewardModel
from apps import audit_page, audit_words, cli, reward_audit
from data.jsonl import DataError, read_json, read_records, write_json, write_records
from data.schema import HELPFULNESS, Facts, Image, Preference, Response
from data.world.build import read_scenes
from data.world.language import mentioned
from data.world.scene import OBJECTS
from evals.report import Gallery

if TYPE_CHECKING:
    from playwright.sync_api import Browser

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny fact-augmented reward model, and pairs of descriptions of the world, one true and one false."""
    from align.models.tiny import build_tiny_llava

    root = tmp_path_factory.mktemp("trained")
    build_tiny_llava(root / "base")
    scenes = read_scenes(world)
    made = []
    for i, prompt in enumerate(r for r in read_records(world / "prompts.jsonl", strict=True)):
        assert prompt.kind == "prompt" and prompt.image is not None
        scene = scenes[prompt.image.id]
        false = next(name for name in OBJECTS if name not in scene.objects)
        texts = [f"There is a {scene.objects[0]}. It stands.", f"There is a {false}."]
        made += [
            Preference(
                id=f"p{i}", image=prompt.image, messages=[{"role": "user", "content": "What is there?"}],
                responses=[Response(text=text) for text in texts], choices={HELPFULNESS: choice},
                annotator=name, facts=prompt.facts,
            )
            for name, choice in (("one", 0), *((("two", i % 2),) if i < 4 else ()))
        ]  # fmt: skip
    write_records(root / "pairs.jsonl", made)
    arguments = [
        f"output={root / 'run'}", f"model.path={root / 'base'}", f"data.path={root / 'pairs.jsonl'}",
        f"data.images={world}", "facts=[captions]", "holdout=5", "batch_size=8", "optim.lr=1e-2",
        "report_to=[]",
    ]  # fmt: skip
    assert cli.main(["reward", *arguments]) == 0
    return root


def audit(trained: Path, output: Path, *more: str) -> int:
    arguments = [f"reward_model={trained / 'run'}", "batch_size=8", "bootstrap=100", "fact_orders=2", *more]
    return cli.main(["reward", "audit", *arguments, "--output", str(output)])


@pytest.fixture(scope="module")
def audited(trained: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("audits") / "run"
    data = (f"data.path={trained / 'pairs.jsonl'}", f"data.images={world}", f"world={world}")
    assert audit(trained, output, *data) == 0
    return output


def rows_of(run: Path) -> Rows:
    return [json.loads(line) for line in (run / "audit.jsonl").read_text("utf-8").splitlines()]


# --- the run ---


def test_every_response_has_every_change(audited: Path, trained: Path, world: Path) -> None:
    rows = rows_of(audited)
    assert len(rows) == 24 and len({(row["id"], row["response"]) for row in rows}) == 24
    names = {"blank image", "other image", "other facts", "other context", "said twice", "true sentence"}
    names |= {"false sentence"}
    scenes = read_scenes(world)
    for row in rows:
        scene = scenes[row["image"]]
        untold = set(scene.objects) - set(mentioned(row["text"]))
        own = {"first sentence"} if row["response"] == 0 else set()
        # another record may have drawn the same response
        assert row["changes"].keys() - {"other response"} == names | own
        for name, kind in (("true sentence", True), ("false sentence", False)):
            (added,) = mentioned(" ".join(row["changes"][name]["added"]))
            assert (added in untold) is kind and (kind or added not in scene.objects)
    # the unchanged scores are those that training and studies report
    pairs = reward_audit.pairs_of(
        [r for r in read_records(trained / "pairs.jsonl") if isinstance(r, Preference)], "preferred"
    )[0]
    known: dict[tuple[str, str], float] = {}
    found = report_pairs(RewardModel.load(trained / "run"), pairs, str(world), known=known)
    assert {(r["id"], r["text"]): r["score"] for r in rows} == pytest.approx(known, abs=1e-5)
    told = read_json(audited / "audit.json")
    assert told["agreement"]["all"] == {
        "value": found.accuracy,
        "low": found.low,
        "high": found.high,
        "n": 16,
    }
    assert told["agreement"]["shorter_is_better"]["value"] == found.shorter_accuracy
    assert told["length"]["correlation"]["n"] == 24
    # two of the four pairs with two annotators
    labelers = told["agreement"]["labelers"]
    assert (labelers["value"], labelers["n"], labelers["source"]) == (0.5, 4, "measured")
    assert told["changes"]["first sentence"]["n"] == 12
    assert told["n"] == {"responses": 24, "conversations": 12, "images": 12}


def test_the_terminal_says_what_the_page_says(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit(trained, tmp_path / "run") == 0
    printed = capsys.readouterr().out
    found = read_json(tmp_path / "run/audit.json")
    assert found["findings"] and all(f"{v['subject']}: {v['text']}\n" in printed for v in found["findings"])
    assert f"the page: {tmp_path / 'run/report.html'}" in printed
    # the pairs that training held out, and captions for sentences
    assert found["data"].endswith("pairs.jsonl (held out in training)") and found["source"] == "captions"
    held = read_json(trained / "run/reward/reward.json")["heldout"]
    assert found["agreement"]["all"]["n"] == held["n"] < 12
    assert found["agreement"]["all"]["value"] == held["accuracy"]
    for row in rows_of(tmp_path / "run"):
        assert row["changes"]["false sentence"]["added"][0][-1] == "."


def later(trained: Path, folder: Path, changed: str, **info: Any) -> Path:
    """A copy of the run as if its data had changed since: ``changed`` is the whole of the new file."""
    run = Path(shutil.copytree(trained / "run", folder / "later"))
    (folder / "pairs.jsonl").write_text(changed)
    settings = (run / "settings.yaml").read_text()
    assert str(trained / "pairs.jsonl") in settings
    (run / "settings.yaml").write_text(
        settings.replace(str(trained / "pairs.jsonl"), str(folder / "pairs.jsonl"))
    )
    file = run / "reward/reward.json"
    content = {k: v for k, v in (read_json(file) | info).items() if v is not None}
    write_json(file, content)
    return run


def appended(text: str, **values: Any) -> str:
    """One more record."""
    last = json.loads(text.splitlines()[-1])
    return text + json.dumps(last | {"id": "new", "annotator": "three"} | values) + "\n"


@pytest.mark.parametrize(
    ("change", "fine"),
    [
        (lambda text: text, True),
        (lambda text: appended(text, image=None), False),
        # of a picture that is there: what was held out still is
        (appended, True),
        (lambda text: "".join(text.splitlines(keepends=True)[::-1]), False),
        (lambda text: text.replace("It stands.", "It lies."), False),
    ],
    ids=["the same", "another group", "one of a group", "another order", "other texts"],
)
def test_pairs_that_were_trained_on_are_not_held_out(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, fine: bool
) -> None:
    run = later(trained, tmp_path, change((trained / "pairs.jsonl").read_text()))
    found = cli.main(
        ["reward", "audit", f"reward_model={run}", "--output", str(tmp_path / "out"), "--dry-run"]
    )
    told = " ".join(capsys.readouterr().err.split())
    assert found == (0 if fine else 2)
    assert fine or f"{tmp_path}/pairs.jsonl: has changed since training: the" in told


def test_a_model_without_the_digest_knows_their_number(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (trained / "pairs.jsonl").read_text()
    run = later(trained, tmp_path, text, heldout_sha256=None)
    arguments = ["reward", "audit", f"reward_model={run}", "--output", str(tmp_path / "out"), "--dry-run"]
    assert cli.main(arguments) == 0
    told = read_json(run / "reward/reward.json")
    write_json(run / "reward/reward.json", told | {"heldout": told["heldout"] | {"n": 7}})
    assert cli.main(arguments) == 2
    assert "pairs held out now are not the 7 of then; put it back as it was" in capsys.readouterr().err


def test_pictures_with_several_ids_were_split_otherwise_once() -> None:
    """By their ids: what an older version held out of them is not what is held out now."""

    def pair(name: str, image: str, path: str) -> Pair:
        return Pair(name, (), "x", "y", Facts(), Image(id=image, path=path))

    held, trained_on = [pair("a", "a", "a.png")], pair("b", "b", "b.png")
    info = RewardInfo(model=ModelSettings(path="m"), heldout={"n": 1})
    reward_audit.check_held(held, info, "f", [*held, trained_on])
    for other in (pair("c", "c", "b.png"), pair("c", "b", "c.png")):
        split = [*held, trained_on, other]
        with pytest.raises(DataError, match="f: which pairs an older version held out is not known"):
            reward_audit.check_held(held, info, "f", split)
        known = info.model_copy(update={"heldout_sha256": reward_audit.digest(held)})
        reward_audit.check_held(held, known, "f", split)


def test_responses_without_choices(trained: Path, world: Path, tmp_path: Path) -> None:
    records = [r for r in read_records(trained / "pairs.jsonl") if isinstance(r, Preference)]
    same = [Response(text="Yes."), Response(text="Yes.")]
    asked = [records[0].model_copy(update={"choices": {}}), records[2].model_copy(update={"responses": same})]
    write_records(tmp_path / "samples.jsonl", asked)
    data = (f"data.path={tmp_path / 'samples.jsonl'}", f"data.images={world}")
    assert audit(trained, tmp_path / "run", *data) == 0
    assert read_json(tmp_path / "run/audit.json")["agreement"] is None
    assert [(r["id"], r["text"] == "Yes.") for r in rows_of(tmp_path / "run")][2:] == [("p1", True)]
    assert "labelers" not in (tmp_path / "run/report.html").read_text("utf-8")


def test_the_labelers_agreement_may_be_given(trained: Path, tmp_path: Path) -> None:
    assert audit(trained, tmp_path / "run", "label_agreement=0.8") == 0
    found = read_json(tmp_path / "run/audit.json")
    assert "; labelers agree on 80 %, with" in found["findings"][0]["text"]
    markdown = (tmp_path / "run/audit.md").read_text("utf-8")
    # (1 + √0.6)/2
    assert "Labelers: 0.80, by the settings; no scores can be expected to agree with one of" in markdown
    assert "of them on more than 0.89." in markdown


def test_killed_and_resumed_it_ends_with_the_same_files(
    audited: Path, trained: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (f"data.path={trained / 'pairs.jsonl'}", f"data.images={world}", f"world={world}")
    data += ("limit=6",)
    monkeypatch.setattr(reward_audit, "PART", 2)
    assert audit(trained, tmp_path / "whole", *data) == 0
    real, calls = reward_audit.measure, []

    def dies(*arguments: Any) -> Iterator[dict[str, Any]]:
        calls.append(arguments)
        for k, row in enumerate(real(*arguments)):
            if len(calls) == 2 and k == 3:
                raise KeyboardInterrupt
            yield row

    with monkeypatch.context() as patch:
        patch.setattr(reward_audit, "measure", dies)
        assert audit(trained, tmp_path / "run", *data) == 130
    assert [p.name for p in (tmp_path / "run/parts").iterdir()] == ["00000000.jsonl"]
    assert audit(trained, tmp_path / "run", *data[:-1], "--resume") == 2  # another audit
    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(reward_audit, "measure", dies)
        assert audit(trained, tmp_path / "run", *data, "--resume") == 130  # again, in the third part
    assert len(list((tmp_path / "run/parts").iterdir())) == 2
    assert audit(trained, tmp_path / "run", *data, "--resume") == 0
    for name in ("audit.jsonl", "audit.json", "audit.md", "report.html"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "run/parts").exists()
    # parts of another size are the same scores but for the padding of a batch
    whole, parts = rows_of(audited)[:12], rows_of(tmp_path / "run")
    assert [r["score"] for r in whole] == pytest.approx([r["score"] for r in parts], abs=1e-5)


def test_a_part_of_other_responses_is_refused(
    trained: Path,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(trained / "pairs.jsonl", tmp_path)
    data = (f"data.path={tmp_path / 'pairs.jsonl'}", f"data.images={world}")
    monkeypatch.setattr(reward_audit, "PART", 5)
    monkeypatch.setattr(reward_audit, "summary", lambda *_: pytest.fail("measured"))
    with pytest.raises(pytest.fail.Exception):
        audit(trained, tmp_path / "run", *data)
    text = (tmp_path / "pairs.jsonl").read_text()
    (tmp_path / "pairs.jsonl").write_text(text.replace("It stands.", "It lies."))
    assert audit(trained, tmp_path / "run", *data, "--resume") == 2
    assert "run: was made with other responses, pictures or facts" in capsys.readouterr().err
    # an older version did not write down what an audit begins with
    began = (tmp_path / "run/began.json").read_bytes()
    (tmp_path / "run/began.json").unlink()
    assert audit(trained, tmp_path / "run", *data, "--resume") == 2
    told = "00000000.jsonl: is of other responses or pictures than the data now holds"
    assert told in capsys.readouterr().err
    (tmp_path / "run/began.json").write_bytes(began)
    (tmp_path / "pairs.jsonl").write_text(text.replace('"captions": [', '"captions": ["It shines.", '))
    assert audit(trained, tmp_path / "run", *data, "--resume") == 2
    assert "run: was made with other responses, pictures or facts" in capsys.readouterr().err
    (tmp_path / "pairs.jsonl").write_text(text)
    monkeypatch.setattr(reward_audit, "weights_digest", lambda _: "of another run's")
    assert audit(trained, tmp_path / "run", *data, "--resume") == 2
    assert "run: was made with other reward model weights" in capsys.readouterr().err


def test_the_card_is_updated_and_the_model_is_not(trained: Path, world: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "run", tmp_path / "model")
    folder = tmp_path / "model/reward"
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    for seed in (0, 1):
        arguments = [f"reward_model={tmp_path / 'model'}", f"seed={seed}", "card=true", "bootstrap=100"]
        assert cli.main(["reward", "audit", *arguments, "--output", str(tmp_path / f"run{seed}")]) == 0
    after = {p.name: p.read_bytes() for p in folder.iterdir()}
    card = after.pop("README.md").decode()
    assert before.pop("README.md").decode().strip() == card.split("## Audit")[0].strip()
    assert after == before
    assert card.count("## Audit") == 1 and "held out in training" in card
    found = read_json(tmp_path / "run1/audit.json")
    assert all(f"- **{v['subject']}** ({v['kind']}): {v['text']}" in card for v in found["findings"])
    # without being asked, nothing is written there
    assert "## Audit" not in (trained / "run/reward/README.md").read_text()
    assert torch.equal(*(RewardModel.load(p).head.linear.weight for p in (trained / "run", folder)))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["reward_model={trained}/run/reward/gone"], "reward_model: no such file"),
        (["reward_model={trained}/alone"], "data: no data is named, and the reward model does not lie in"),
        (["world={other}", "data.path={trained}/pairs.jsonl", "data.images={world}"], "is not a scene of"),
        (["data.path={trained}/bare.jsonl", "data.images={world}"], "the reward model reads facts (capti"),
        (["data.path={trained}/pairs.jsonl"], "no image root is given"),
        (["fact_orders=1"], "fact_orders is 1, and one order shows no spread"),
        (["repeat=[2]"], "did you mean 'repeats'?"),
    ],
)  # fmt: skip
def test_faults_are_told_before_a_model_is_loaded(
    trained: Path,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    told: str,
) -> None:
    monkeypatch.setattr(RewardModel, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    shutil.copytree(trained / "run/reward", trained / "alone", dirs_exist_ok=True)
    first = next(r for r in read_records(trained / "pairs.jsonl") if isinstance(r, Preference))
    write_records(trained / "bare.jsonl", [first.model_copy(update={"facts": Facts()})])
    (tmp_path / "other").mkdir()
    (tmp_path / "other/scenes.jsonl").write_text("")
    places = {"trained": trained, "world": world, "other": tmp_path / "other"}
    assert audit(trained, tmp_path / "run", *(text.format(**places) for text in more)) == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_a_dry_run_loads_nothing(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(RewardModel, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    assert audit(trained, tmp_path / "run", "--dry-run") == 0
    assert "# align reward-audit, with every setting resolved" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


# --- the page ---


def test_the_page_shows_what_pays_most(audited: Path, trained: Path, world: Path) -> None:
    records = [r for r in read_records(trained / "pairs.jsonl") if isinstance(r, Preference)]
    rows = rows_of(audited)
    found = read_json(audited / "audit.json")
    shown = audit_page.gallery(found, rows, reward_audit.subjects_of(records), str(world), 3)
    assert isinstance(shown, Gallery) and len(shown.items) == 3
    gained: dict[str, float] = {}
    for row in rows:
        change = row["changes"]["false sentence"]
        gain = change["score"] - change.get("against", row["score"])
        gained[row["image"]] = max(gain, gained.get(row["image"], gain))
    # a caption or two had the words of a true sentence
    assert any("against" in row["changes"]["true sentence"] for row in rows)
    gains = sorted(gained.items(), key=lambda pair: -pair[1])[:3]
    for item, (image, gain) in zip(shown.items, gains, strict=True):
        answer = item.answers["false sentence"]
        ((start, end),) = answer.false
        row = next(r for r in rows if r["image"] == image and answer.text.startswith(r["text"]))
        assert answer.text[start:end] == row["changes"]["false sentence"]["added"][0]
        assert f"{gain / found['spread']['value']:.2f}".lstrip("-") in answer.verdict
        assert item.image is not None and item.image.startswith(b"\x89PNG")
    html = (audited / "report.html").read_text("utf-8")
    assert html.count("<figure") == 8 and "Every score of every response" in html
    markdown = (audited / "audit.md").read_text("utf-8")
    assert markdown.count("| said twice |") == 1 and "(n = 16)" not in markdown
    assert "| labelers with each other | 4 | 0.50 [" in markdown
    assert audit_words.headlines(audited)


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_is_whole_in_a_browser(browser: Browser, audited: Path, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(180_000)
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("request", lambda request: told.append(request.url))
    address = (audited / "report.html").as_uri()
    page.goto(address)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    over = """[...document.querySelectorAll("main *")].filter((e) => !e.closest(".scroll, svg, [hidden]")
              && e.getBoundingClientRect().right > innerWidth).map((e) => e.outerHTML.slice(0, 80))"""
    assert page.evaluate(over) == []
    # nothing of a drawing's text hangs out of it
    cut = """[...document.querySelectorAll("main > section > svg text")].filter((e) => {
               const box = e.getBoundingClientRect(), svg = e.closest("svg").getBoundingClientRect();
               return box.bottom > svg.bottom + 1 || box.left < svg.left - 1 }).map((e) => e.textContent)"""
    assert page.evaluate(cut) == []
    assert [line for line in told if not line.startswith("data:")] == [address]
