"""Best-of-n: the estimator against all subsets, and a run that is scored, resumed and used as data."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PilImage

from align import best_of
from align.best_of import Judge, answer_of, example_of, expected_best, figures, kl_bound, row_of, run
from align.checkpoint import CheckpointError
from align.config import BestOfSettings, LoraSettings, ModelSettings
from align.models.lmm import load_processor
from align.models.tiny import build_tiny_llava
from align.reward_model import RewardInfo, RewardModel, ScoreItem
from align.rewards import RewardPartError
from data.jsonl import DataError, read_records, write_records
from data.schema import Example, Facts, Image, Message, Prompt, Response

COLOURS = ("red", "green", "blue", "yellow")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a reward model with weights that do something, four images and ten prompts."""
    root = tmp_path_factory.mktemp("world")
    build_tiny_llava(root / "base")
    info = RewardInfo(model=ModelSettings(path=str(root / "base"), device="cpu"), facts=["captions"])
    torch.manual_seed(1)
    reward = RewardModel.start(info, LoraSettings(r=4))
    for parameter in reward.parameters():
        torch.nn.init.normal_(parameter.data, std=0.2)
    reward.save(root / "reward", "a card")
    (root / "images").mkdir()
    for colour in COLOURS:
        PilImage.new("RGB", (32, 32), colour).save(root / "images" / f"{colour}.png")
    write_records(root / "prompts.jsonl", [prompt(i) for i in range(10)])
    return root


def prompt(i: int) -> Prompt:
    return Prompt(
        id=f"q{i}",
        image=Image(id=COLOURS[i % 4], path=f"{COLOURS[i % 4]}.png") if i % 5 else None,
        question="What is in the image?" + " Describe it." * (i % 3),
        facts=Facts(captions=["A cat.", f"{i} tables."]),
    )


def settings(world: Path, output: Path, **changes: Any) -> BestOfSettings:
    values: dict[str, Any] = {
        "output": str(output),
        "model": {"path": str(world / "base"), "device": "cpu"},
        "reward_model": str(world / "reward"),
        "data": {"path": str(world / "prompts.jsonl"), "images": str(world / "images")},
        "generate": {"max_new_tokens": 8, "temperature": 0.7, "batch_size": 3},
        "n": 6,
        "report_to": [],
    }
    return BestOfSettings(**(values | changes))


@pytest.fixture(scope="module")
def done(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run")
    assert run(settings(world, output)) == output
    return output


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- the estimator ---


def test_the_expected_best_is_the_mean_over_all_subsets():
    scores = np.random.default_rng(0).normal(size=(3, 6)).round(1)
    scores[0, 2] = scores[0, 5]
    for k in range(1, 7):
        subsets = [np.mean([max(part) for part in itertools.combinations(row, k)]) for row in scores]
        np.testing.assert_allclose(expected_best(scores, k), subsets, rtol=1e-12)
    assert expected_best([3.0, 1.0, 2.0], 2) == pytest.approx((3 + 3 + 2) / 3)


def test_more_samples_than_there_are_cannot_be_estimated():
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"k is {k}; it must be between 1 and the 3 scores"):
            expected_best([1.0, 2.0, 3.0], k)


def test_the_bound_of_the_divergence():
    """No smaller than the divergence itself of a small model, which best-of-n changes exactly."""
    assert kl_bound(1) == 0
    assert kl_bound(4) == pytest.approx(math.log(4) - 0.75)
    p = np.array([0.4, 0.3, 0.2, 0.1])  # in the reward's order
    for n in (2, 4, 16):
        below = np.cumsum(p)
        chosen = below**n - np.concatenate([[0], below[:-1]]) ** n
        assert float((chosen * np.log(chosen / p)).sum()) < kl_bound(n)
    # where none is likely to be drawn twice it is as good as reached
    below = np.arange(1, 100_001) / 100_000
    chosen = below**4 - (below - 1e-5) ** 4
    assert float((chosen * np.log(chosen / 1e-5)).sum()) == pytest.approx(kl_bound(4), abs=1e-4)


def test_the_curve_is_over_prompts():
    found = figures([[1.0, 3.0], [2.0, 2.0]])
    assert found == {"prompts": 2, "n": 2, "expected_best": [2.0, 2.5], "kl_bound": [0, kl_bound(2)]}


# --- a run ---


def test_the_best_of_its_samples_is_kept(world: Path, done: Path):
    rows = lines(done / "samples.jsonl")
    assert [row["id"] for row in rows] == [f"q{i}" for i in range(10)]
    own = RewardModel.load(world / "reward")
    for i, row in enumerate(rows):
        scores = [sample["score"] for sample in row["samples"]]
        assert len(scores) == 6 and row["best"] == int(np.argmax(scores)) and len(set(scores)) > 1
        picture = PilImage.open(world / f"images/{COLOURS[i % 4]}.png") if i % 5 else None
        ask = [Message(role="user", content=prompt(i).question)]
        alone = [ScoreItem(row["id"], ask, s["text"], prompt(i).facts, picture) for s in row["samples"]]
        assert own.score(alone).tolist() == pytest.approx(scores, abs=1e-4)
    best = [row["samples"][row["best"]] for row in rows]
    assert [(a["id"], a["response"]) for a in lines(done / "answers.jsonl")] == [
        (row["id"], sample["text"]) for row, sample in zip(rows, best)
    ]
    curve = json.loads((done / "result.json").read_text())["expected_best"]
    assert curve[-1] == pytest.approx(np.mean([sample["score"] for sample in best]))
    assert curve == sorted(curve)


def test_the_samples_are_those_of_the_model_alone(world: Path, done: Path):
    """The reward model's adapter lies on the same base; it must not answer."""
    rows = lines(done / "samples.jsonl")
    elsewhere = settings(world, done, reward_model=str(world / "reward"))
    judge = Judge(elsewhere)
    assert judge.reward.lmm is judge.lmm
    from align.generate import generate
    from align.models.lmm import load
    from align.pictures import encode_pictures
    from align.render import Renderer
    from align.schedule import step_seed

    lmm = load(elsewhere.model)
    renderer = Renderer(lmm.processor)
    # the first part: 8 batches of 3 rows, 6 samples a prompt
    pictures = [PilImage.open(world / f"images/{COLOURS[i % 4]}.png") if i % 5 else None for i in range(4)]
    items = [
        ([Message(role="user", content=prompt(i).question)], image)
        for i, image in enumerate(encode_pictures(lmm, renderer, pictures))
    ]
    seed = step_seed(0, "best-of", 0)
    said = generate(lmm, renderer, items, elsewhere.generate, seed=seed, num_return=6)
    assert [[s["text"] for s in row["samples"]] for row in rows[:4]] == [
        [r.text for r in own] for own in said
    ]


def test_the_best_complete_answers_are_conversations_to_learn(done: Path):
    records = list(read_records(done / "examples.jsonl", "example", strict=True))
    rows = {row["id"]: row for row in lines(done / "samples.jsonl")}
    whole = {name: [s for s in row["samples"] if s["complete"]] for name, row in rows.items()}
    assert [record.id for record in records] == [name for name, samples in whole.items() if samples]
    for record in records:
        assert isinstance(record, Example)
        asked, i = rows[record.id]["question"], int(record.id[1:])
        best = max(whole[record.id], key=lambda s: s["score"])["text"]
        assert (record.image, record.facts) == (prompt(i).image, prompt(i).facts)
        assert [m.content for m in record.messages] == [asked, best]
    found = json.loads((done / "result.json").read_text())
    assert (found["examples"], found["none_complete"]) == (len(records), 10 - len(records))


def test_an_answer_that_was_cut_off_is_not_learned():
    told = [("cut off", 3.0, False), ("whole", 1.0, True), ("better", 2.0, True)]
    responses = [Response(text=text, complete=complete) for text, _, complete in told]
    row = row_of(prompt(1), responses, [score for _, score, _ in told])
    assert answer_of(row)["response"] == "cut off"
    example = example_of(prompt(1), row)
    assert example is not None and example.messages[-1].content == "better"
    assert example_of(prompt(1), row_of(prompt(1), responses[:1], [3.0])) is None


OWN = """
def short(prompts, responses, each=1.0):
    return [-each * len(response) for response in responses]
"""


@pytest.fixture
def rewarded(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings with symbolic rewards and one of one's own, whose weights decide against the scores."""
    (tmp_path / "own_best.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    short = {"function": "own_best:short", "weight": 0.5, "options": {"each": 2.0}}
    return {
        "symbolic": {"length": {"general": -4.0}, "incomplete": -3.0},
        "user_rewards": {"reward": short},
        "reward_scale": 0.5,
    }


def test_other_rewards_choose_with_the_score_and_are_told_apart(
    world: Path, done: Path, tmp_path: Path, rewarded: dict[str, Any]
):
    run(settings(world, tmp_path / "run", **rewarded))
    rows, plain = lines(tmp_path / "run/samples.jsonl"), lines(done / "samples.jsonl")
    tokenizer = load_processor(ModelSettings(path=str(world / "base"))).tokenizer
    for row, alone in zip(rows, plain, strict=True):
        for one, before in zip(row["samples"], alone["samples"], strict=True):
            assert {key: one[key] for key in ("text", "score", "complete")} == before
            parts = one["parts"]
            assert parts.keys() == {"correctness", "length", "incomplete", "reward"}
            assert (parts["correctness"], parts["incomplete"]) == (0, 0 if one["complete"] else -3)
            assert parts["reward"] == pytest.approx(-len(one["text"]))
            # of 8 tokens that may be written; one is the end
            tokens = len(tokenizer(one["text"], add_special_tokens=False)["input_ids"]) + one["complete"]
            counted = -2 * parts["length"]
            assert counted == (8 if not one["complete"] else pytest.approx(tokens))
            assert one["reward"] == pytest.approx(0.5 * one["score"] + sum(parts.values()), abs=1e-5)
        assert row["best"] == int(np.argmax([one["reward"] for one in row["samples"]]))
    assert [row["best"] for row in rows] != [row["best"] for row in plain]
    best = [row["samples"][row["best"]] for row in rows]
    answers = lines(tmp_path / "run/answers.jsonl")
    assert [(a["response"], a["score"], a["reward"]) for a in answers] == [
        (one["text"], one["score"], one["reward"]) for one in best
    ]
    found = json.loads((tmp_path / "run/result.json").read_text())
    mean = {name: np.mean([one["parts"][name] for one in best]) for name in best[0]["parts"]}
    mean["model"] = 0.5 * np.mean([one["score"] for one in best])
    assert found["rewards_of_best"] == pytest.approx(mean)
    assert found["expected_best"][-1] == pytest.approx(sum(mean.values()), abs=1e-5)
    (logged,) = lines(tmp_path / "run/metrics.jsonl")
    assert {k: v for k, v in logged.items() if k.startswith("reward/")} == pytest.approx(
        {f"reward/{name}": value for name, value in mean.items()}
    )


def test_nothing_is_added_unless_it_is_asked_for(world: Path, done: Path):
    assert settings(world, done).symbolic is None
    (row, *_) = lines(done / "samples.jsonl")
    assert row["samples"][0].keys() == {"text", "score", "complete"}
    assert "rewards_of_best" not in json.loads((done / "result.json").read_text())
    assert lines(done / "answers.jsonl")[0].keys() == {"id", "response", "score"}


def test_a_reward_that_is_not_there_stops_ahead_of_any_weights(world: Path, tmp_path: Path):
    rewards = {"mine": {"function": "no_such_module_of_rewards:f"}}
    with pytest.raises(RewardPartError, match=r"user_rewards\.mine"):
        run(settings(world, tmp_path / "run", user_rewards=rewards))
    assert not (tmp_path / "run").exists()


def test_an_interrupted_run_ends_with_the_same_files(
    world: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    output, real, calls = tmp_path / "run", Judge.rows, []

    def dies(self: Judge, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Judge, "rows", dies)
        run(settings(world, output))
    assert len(list((output / "parts").iterdir())) == 1
    run(settings(world, output, resume=True))
    for name in ("samples.jsonl", "answers.jsonl", "examples.jsonl", "result.json", "metrics.jsonl"):
        assert (output / name).read_bytes() == (done / name).read_bytes()


def test_a_damaged_line_of_a_part_is_told(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Left out, it would put every later prompt beside another's answer."""
    part = tmp_path / "part.jsonl"
    part.write_text('{"id": "q0", "samples": [{"score": 1.0}]}\n{"id": "q1", \n')
    monkeypatch.setattr(best_of, "judged_parts", lambda *_: [part])
    with pytest.raises(DataError, match=r"part\.jsonl:2"):
        run(settings(world, tmp_path / "run"))
    assert not (tmp_path / "run/examples.jsonl").exists()


def test_parts_of_other_prompts_are_refused(world: Path, done: Path, tmp_path: Path):
    output = tmp_path / "run"
    run(settings(world, output))
    (output / "DONE").unlink()
    other = world / "prompts.jsonl"
    kept = other.read_text()
    try:
        other.write_text(kept.replace("What is", "Where is", 1))
        with pytest.raises(CheckpointError, match="run: was made with other prompts"):
            run(settings(world, output, resume=True))
        # an older version did not write down what a run begins with
        (output / "began.json").unlink()
        with pytest.raises(CheckpointError, match=r"answers other prompts than the data now holds"):
            run(settings(world, output, resume=True))
    finally:
        other.write_text(kept)


def test_parts_of_another_reward_model_are_refused(world: Path, tmp_path: Path):
    """Its scores would stand beside those of the one before."""
    reward = tmp_path / "reward"
    shutil.copytree(world / "reward", reward)
    run(settings(world, tmp_path / "run", reward_model=str(reward)))
    (tmp_path / "run/DONE").unlink()
    model = RewardModel.load(reward)
    with torch.no_grad():
        model.head.linear.bias += 1
    model.save(reward, "a card")
    with pytest.raises(CheckpointError, match="run: was made with other reward model weights"):
        run(settings(world, tmp_path / "run", reward_model=str(reward), resume=True))


def test_prompts_without_facts_are_refused_ahead_of_any_weights(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(best_of, "load_lmm", lambda *_: pytest.fail("weights were loaded"))
    write_records(tmp_path / "bare.jsonl", [Prompt(id="bare", question="What?")])
    with pytest.raises(DataError, match=r"reads facts \(captions\); 1 records have none: bare"):
        run(settings(world, tmp_path / "run", data={"path": str(tmp_path / "bare.jsonl")}))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="all n responses would be equal"):
        settings(world, tmp_path, generate={"temperature": 0})
