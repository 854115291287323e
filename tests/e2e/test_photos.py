"""Every stage on real photographs, as a person runs it: outputs exist, reload, and answer the same."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from align import ppo, reward, sft
from align.checkpoint import RunDir, load_tensors
from align.config import GenerateSettings, ModelSettings
from align.generate import generate
from align.models.lmm import Lmm, load
from align.render import Renderer
from align.reward_model import RewardModel, ScoreItem
from apps import cli
from data.images import open_image
from data.jsonl import read_records
from data.schema import Example, Facts, Image, Message, Preference
from data.world.scene import Group, Scene
from tests.e2e.conftest import _source

Command = Callable[..., int]
QUESTIONS = ("What is in the image?", "Is there a cat in the image?", "Describe the picture in detail.")
GREEDY = GenerateSettings(max_new_tokens=12, temperature=0.0)


def answers(lmm: Lmm, photos: Path) -> list[str]:
    """Greedy answers to three questions about each photograph."""
    pictures = [
        open_image(Image(id=p.name, path=p.name), photos / "images")
        for p in sorted((photos / "images").iterdir())
    ]
    items = [([Message(role="user", content=q)], p) for p in pictures for q in QUESTIONS]
    return [r.text for r in generate(lmm, Renderer(lmm.processor), items, GREEDY, seed=0)]  # type: ignore[union-attr]


def loaded(path: Path, adapter: Path | None = None) -> Lmm:
    return load(ModelSettings(path=str(path), adapter=adapter and str(adapter), device="cpu"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*model.safetensors")
    return load_tensors(file)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_convert_then_train_on_the_converted_file(photos: Path, align: Command, tmp_path: Path) -> None:
    """LLaVA JSON -> our JSONL -> LLaVA JSON keeps everything; both files train to the same weights."""
    ours, back = tmp_path / "ours.jsonl", tmp_path / "back.json"
    images = ["--images", str(photos / "images")]
    assert (
        cli.main(["data", "convert", str(photos / "llava.json"), str(ours), "--from", "llava", *images]) == 0
    )
    assert cli.main(["data", "convert", str(ours), str(back), "--to", "llava", *images]) == 0
    assert json.loads(back.read_text()) == json.loads((photos / "llava.json").read_text())
    examples = read_records(ours, "example", strict=True)
    assert len(examples) == 8 and all(isinstance(e, Example) and e.image for e in examples)
    assert align("sft", f"output={tmp_path / 'a'}", "max_steps=1") == 0
    assert (
        align("sft", f"output={tmp_path / 'b'}", "max_steps=1", f"data.path={ours}", "data.format=null") == 0
    )
    assert same(weights(tmp_path / "a/model"), weights(tmp_path / "b/model"))


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_sft_reloads_and_answers_the_same(
    photos: Path, align: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: bool
) -> None:
    in_memory: list[list[str]] = []
    train = sft.train

    def watched(lmm: Lmm, *arguments: Any) -> None:
        train(lmm, *arguments)
        in_memory.append(answers(lmm, photos))

    monkeypatch.setattr(sft, "train", watched)
    run = tmp_path / "run"
    assert align("sft", f"output={run}", *(["lora={r: 4}"] if lora else [])) == 0
    saved = loaded(photos / "base", run / "adapter") if lora else loaded(run / "model")
    assert answers(saved, photos) == in_memory[0]
    assert answers(loaded(photos / "base"), photos) != in_memory[0]
    assert [m["step"] for m in metrics(run)] == [1, 2, 3, 4]
    assert metrics(run)[-1]["loss"] < metrics(run)[0]["loss"]
    assert (run / "DONE").exists() and (run / "settings.yaml").exists()


def scored(photos: Path, model: RewardModel) -> list[float]:
    """Scores of two responses to each photograph, with captions as facts."""
    captions = json.loads((photos / "captions.json").read_text())
    ask = [Message(role="user", content="What is in the image?")]
    items = []
    for name, texts in captions.items():
        picture = open_image(Image(id=name, path=name), photos / "images")
        for response in ("There is a cat.", "A cup and a dog."):
            items.append(ScoreItem(f"{name}/{response}", ask, response, Facts(captions=texts), picture))
    return model.score(items, seed=1).tolist()


@pytest.mark.parametrize("kind", ["plain", "facts"])
def test_reward_reloads_and_scores_the_same(
    photos: Path, align: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    in_memory: list[list[float]] = []
    save = RewardModel.save

    def watched(self: RewardModel, *arguments: Any) -> Path:
        in_memory.append(scored(photos, self))
        return save(self, *arguments)

    monkeypatch.setattr(RewardModel, "save", watched)
    more = ["facts=[captions]", f"data.captions={photos / 'captions.json'}"] if kind == "facts" else []
    run = tmp_path / "run"
    assert align("reward", f"output={run}", *more) == 0
    model = RewardModel.load(run)
    assert scored(photos, model) == in_memory[0]
    assert len(set(in_memory[0])) == len(in_memory[0])
    info = json.loads((run / "reward/reward.json").read_text())
    assert info["facts"] == (["captions"] if kind == "facts" else [])
    assert info["heldout"]["n"] >= 2
    assert {p.name for p in (run / "reward").iterdir()} >= {
        "adapter_config.json", "adapter_model.safetensors", "head.safetensors", "reward.json", "README.md",
    }  # fmt: skip


def test_facts_move_the_scores_of_a_model_that_reads_them(photos: Path, trained: dict[str, Path]) -> None:
    ask = [Message(role="user", content="What is in the image?")]
    picture = open_image(Image(id="c", path="chelsea.png"), photos / "images")
    told = [Facts(captions=[text]) for text in ("A photograph of a cat.", "A boat on a river.")]
    items = [ScoreItem("same", ask, "There is a cat.", facts, picture) for facts in told]
    with_facts, without = (RewardModel.load(trained[k]).score(items).tolist() for k in ("facts", "plain"))
    assert with_facts[0] != with_facts[1]
    assert without[0] == pytest.approx(without[1], abs=1e-5)


@pytest.mark.parametrize("kind", ["plain", "facts"])
def test_ppo_from_the_reward_model(
    photos: Path, align: Command, trained: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    run = tmp_path / "run"
    assert align("ppo", f"output={run}", f"reward_model={trained[kind]}", "steps=2") == 0
    assert [m["step"] for m in metrics(run)] == [1, 2]
    assert metrics(run)[0]["objective/kl"] == pytest.approx(0, abs=1e-3)
    rollouts = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    assert len(rollouts) == 16
    before, after = loaded(photos / "base"), loaded(photos / "base", run / "policy")
    assert answers(after, photos) == answers(loaded(photos / "base", run / "policy"), photos)
    assert not same(dict(before.model.named_parameters()), dict(after.model.named_parameters()))


def test_sample_label_and_train_on_the_labels(photos: Path, align: Command, tmp_path: Path) -> None:
    """Scenes that say what two of the photographs show stand for the people who would look at them."""
    for name in ("run", "again"):
        assert align("sample", f"output={tmp_path / name}", "distinct=false") == 0
    samples = tmp_path / "run/samples.jsonl"
    assert samples.read_bytes() == (tmp_path / "again/samples.jsonl").read_bytes()
    found = [r for r in read_records(samples, strict=True) if isinstance(r, Preference)]
    asked = json.loads((photos / "prompts.json").read_text())
    assert [r.id for r in found] == [row["id"] for row in asked]
    for record, row in zip(found, asked, strict=True):
        assert record.image is not None and record.image.path == row["image"]
        assert row["conversations"][0]["value"] == f"<image>\n{record.messages[0].content}"
        assert [r.model for r in record.responses] == [str(photos / "base")] * 2 and not record.choices
    assert sum(len({r.text for r in record.responses}) == 2 for record in found) >= 6

    shown = {"chelsea.png": "cat", "coffee.jpg": "cup"}
    scenes = [
        Scene(name, "rest", "bedroom", (Group(shown[name], "red", (4,)),) if name in shown else (), 0)
        for name in sorted(row["image"] for row in asked)
    ]
    (tmp_path / "scenes.jsonl").write_text("".join(json.dumps(s.to_json()) + "\n" for s in scenes))
    labels = tmp_path / "labels.jsonl"
    assert cli.main(["data", "annotate", str(samples), str(labels), "--world", str(tmp_path)]) == 0
    labelled = [r for r in read_records(labels, strict=True) if isinstance(r, Preference)]
    assert [r.model_copy(update={"choices": {}, "annotator": None}) for r in labelled] == found
    assert all(r.preferred in (0, 1) and r.annotator == "world" for r in labelled)
    run = tmp_path / "reward"
    assert align("reward", f"output={run}", f"data.path={labels}", "data.format=null") == 0
    assert len(set(scored(photos, RewardModel.load(run)))) > 1


def test_a_missing_test_dependency_is_no_reason_to_skip() -> None:
    for package, file in (("no_such_package", "cat.png"), ("skimage", "no_such_file.png")):
        with pytest.raises(pytest.fail.Exception, match=r"is not installed|ships no such file"):
            _source(package, file)


def test_eval_scores_what_the_model_said(photos: Path, align: Command, tmp_path: Path) -> None:
    """Accuracy counted again from the responses: "no" when the first sentence has No, not or no."""
    run = tmp_path / "run"
    assert align("eval", f"output={run}") == 0
    found = json.loads((run / "results.json").read_text())["benchmarks"]["pope"]["splits"]["random"]
    asked = {
        r["question_id"]: r for r in map(json.loads, (photos / "pope_random.jsonl").read_text().splitlines())
    }
    (journal,) = run.rglob("responses.jsonl")
    right = 0
    for row in map(json.loads, journal.read_text().splitlines()):
        first = row["response"].split(".")[0].replace(",", "").split(" ")
        said = "no" if {"No", "not", "no"} & set(first) else "yes"
        right += said == asked[int(row["id"].split("/")[-1])]["label"]
    assert found["n"] == len(asked) == 16 and found["images"] == 8
    assert found["official"]["accuracy"]["value"] == pytest.approx(right / 16)


def test_eval_of_an_adapter_answers_like_its_saved_merge(
    photos: Path, align: Command, tmp_path: Path
) -> None:
    assert align("sft", f"output={tmp_path / 'lora'}", "lora={r: 4}") == 0
    assert align("eval", f"output={tmp_path / 'e'}", f"model.adapter={tmp_path / 'lora/adapter'}") == 0
    from align.models.lmm import save

    merged = loaded(photos / "base", tmp_path / "lora/adapter")
    save(merged.model, merged.processor, tmp_path / "merged")
    assert align("eval", f"output={tmp_path / 'm'}", f"model.path={tmp_path / 'merged'}") == 0
    responses = []
    for name in ("e", "m"):
        (journal,) = (tmp_path / name).rglob("responses.jsonl")
        responses.append([json.loads(line)["response"] for line in journal.read_text().splitlines()])
    assert responses[0] == responses[1]


def test_an_answered_benchmark_is_not_asked_again(
    photos: Path, align: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    assert align("eval", f"output={run}") == 0
    first = json.loads((run / "results.json").read_text())
    monkeypatch.setattr("apps.answerer.generate", lambda *a, **k: pytest.fail("asked again"))
    assert align("eval", f"output={run}", "--resume") == 0
    assert json.loads((run / "results.json").read_text()) == first


OUTPUTS = {"sft": "model", "reward": "reward", "ppo": "policy"}


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_interrupted_then_continued_as_told(
    align: Command,
    trained: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stage: str,
) -> None:
    """Ctrl-C in the third step; the command that is printed goes on and ends at the same weights."""
    more = [f"reward_model={trained['plain']}"] if stage == "ppo" else []
    assert align(stage, f"output={tmp_path / 'whole'}", *more) == 0
    log = RunDir.log
    last = metrics(tmp_path / "whole")[-1]["step"]
    assert last > 2

    def interrupted(self: RunDir, step: int, **values: Any) -> None:
        if step == 3:
            raise KeyboardInterrupt
        log(self, step, **values)

    with monkeypatch.context() as patched:
        patched.setattr(RunDir, "log", interrupted)
        assert align(stage, f"output={tmp_path / 'cut'}", *more) == 130
    command = capsys.readouterr().err.strip().split("continue with: ")[-1]
    program, *arguments = shlex.split(command)
    assert program == "align" and arguments[-1] == "--resume"
    assert not (tmp_path / "cut/DONE").exists()
    assert cli.main(arguments) == 0
    name = OUTPUTS[stage]
    assert same(weights(tmp_path / "whole" / name), weights(tmp_path / "cut" / name))
    whole, cut = (metrics(tmp_path / r) for r in ("whole", "cut"))
    for one, other in zip(whole, cut, strict=True):
        timed = {k for k in one if k.startswith("rate/") or k == "eps"}
        assert {k: v for k, v in one.items() if k not in timed} == {
            k: v for k, v in other.items() if k not in timed
        }


def test_a_finished_run_is_left_alone(
    align: Command, trained: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained["plain"]
    before = (run / "reward/adapter_model.safetensors").read_bytes()
    monkeypatch.setattr(reward, "fit", lambda *a: pytest.fail("trained again"))
    assert align("reward", f"output={run}", "--resume") == 0
    assert (run / "reward/adapter_model.safetensors").read_bytes() == before


@pytest.mark.parametrize("stage", ["sft", "sample", "reward", "ppo", "eval"])
def test_dry_run_writes_nothing(
    align: Command,
    trained: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stage: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ppo.Ppo, "train", lambda self: pytest.fail("a dry run trained"))
    more = [f"reward_model={trained['plain']}"] if stage == "ppo" else []
    assert align(stage, "output=run", *more, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert f"# align {stage}, with every setting resolved" in printed
    assert "nothing was computed" in printed
    assert list(tmp_path.iterdir()) == []
