"""GRPO and RLOO by TRL on our prompts: PPO's order and rewards, a word that is rewarded, exact resuming."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image as PilImage
from safetensors.torch import load_file

from align import group_rl, pictures
from align.checkpoint import CheckpointError, RunDir
from align.config import GrpoSettings, LoraSettings, ModelSettings, RlooSettings
from align.diagnose import PpoError
from align.generate import end_ids
from align.group_rl import GrpoTrainer, build, check_rendering, read_prompts, rows_of, run
from align.models.lmm import ModelError, hidden_states, load
from align.models.tiny import build_tiny_llava
from align.render import Renderer
from align.reward_model import RewardInfo, RewardModel, ScoreItem
from align.rewards import symbolic, total
from align.schedule import stream
from data.jsonl import DataError, write_records
from data.schema import Facts, Image, Message, Prompt

COLOURS = ("red", "green", "blue", "yellow")
METHODS: dict[str, Any] = {"grpo": GrpoSettings, "rloo": RlooSettings}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a reward model with weights that do something, four pictures (not square) and ten prompts."""
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
        PilImage.new("RGB", (32, 40), colour).save(root / "images" / f"{colour}.png")
    prompts = [
        Prompt(
            id=f"q{i}",
            image=Image(id=COLOURS[i % 4], path=f"{COLOURS[i % 4]}.png"),
            question="What </s> is in the <image>?" if i == 4 else "What is it?" + " Describe it." * (i % 3),
            facts=Facts(captions=["A cat.", "A table."]),
            answer_type="no" if i == 3 else "general",
        )
        for i in range(10)
    ]
    write_records(root / "prompts.jsonl", prompts)
    return root


def settings(world: Path, output: Path, method: str = "grpo", **changes: Any) -> Any:
    values: dict[str, Any] = {
        "output": str(output),
        "model": {"path": str(world / "base"), "device": "cpu"},
        "reward_model": str(world / "reward"),
        "data": {"path": str(world / "prompts.jsonl"), "images": str(world / "images")},
        "optim": {"lr": 3e-3, "warmup_steps": 1},
        "lora": {"r": 4},
        "generate": {"max_new_tokens": 8},
        "reward_scale": 2.0,
        "steps": 4,
        "rollouts": 12,
        "num_generations": 3,
        "num_iterations": 2,
        "minibatch": 6,
        "micro_batch": 3,
        "save_every": 2,
        "report_to": [],
    }
    return METHODS[method](**(values | changes))


@pytest.fixture(scope="module", params=["grpo", "rloo"])
def trained(request: pytest.FixtureRequest, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp(request.param)
    assert run(settings(world, output, request.param)) == output / "policy"
    return output


def metrics(output: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("rate/")} for row in rows]


# --- runs ---


def test_a_step_is_one_line_with_each_reward_apart(trained: Path):
    rows = metrics(trained)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["lr"] for row in rows] == pytest.approx([3e-3, 3e-3, 2.25e-3, 0.75e-3])
    for row in rows:
        parts = row["reward/correctness"] + row["reward/length"] + row["reward/incomplete"]
        assert row["objective/rewards"] == pytest.approx(2 * row["objective/scores"] + parts, abs=1e-4)
        assert 1 <= row["response/length"] <= 8
        # the length reward of "general" prompts: -10 x tokens / most tokens allowed
        assert row["reward/length"] == pytest.approx(-10 * row["response/length"] / 8, abs=1e-4)
        assert row["reward/incomplete"] == pytest.approx(-8 * row["response/incomplete"], abs=1e-4)
    assert {"loss", "policy/grad_norm", "policy/clipfrac_avg", "objective/kl_per_token"} <= rows[0].keys()
    assert rows[-1]["objective/kl_per_token"] != 0


def test_the_policy_is_saved_as_ppo_saves_it(world: Path, trained: Path):
    names = {"adapter_config.json", "adapter_model.safetensors", "policy.json", "README.md"}
    assert {path.name for path in (trained / "policy").iterdir()} == names
    keys = load_file(trained / "policy/adapter_model.safetensors")
    assert any(bool(v.any()) for k, v in keys.items() if "lora_B" in k)
    assert not any("reward" in k or "default" in k for k in keys)
    assert load(ModelSettings(path=str(world / "base"), adapter=str(trained / "policy"))).model is not None
    assert json.loads((trained / "result.json").read_text()) == {"steps": 4}


def test_kill_and_resume_is_bit_identical(
    world: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Killed within step 4, after step 2's checkpoint."""
    method = "grpo" if trained.name.startswith("grpo") else "rloo"
    output, calls = tmp_path / "run", []
    owner = {"grpo": GrpoTrainer, "rloo": group_rl.RlooTrainer}[method]
    real = owner.training_step

    def dies(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        # a step is 2 passes over 2 mini-batches of 2 parts
        if len(calls) == 3 * 8 + 3:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, "training_step", dies)
        run(settings(world, output, method))
    torch.manual_seed(999)
    run(settings(world, output, method, resume=True))
    assert metrics(output) == metrics(trained)
    weights = Path("policy/adapter_model.safetensors")
    assert (output / weights).read_bytes() == (trained / weights).read_bytes()


def test_a_run_does_not_go_on_with_other_prompts_or_another_reward_model(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(group_rl, "load", dies)
    prompts, reward = tmp_path / "prompts.jsonl", tmp_path / "reward"
    shutil.copytree(world / "reward", reward)
    prompts.write_bytes((world / "prompts.jsonl").read_bytes())
    changes = {"data": {"path": str(prompts), "images": str(world / "images")}, "reward_model": str(reward)}
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            run(settings(world, tmp_path / "run", resume=resume, **changes))
    whole = prompts.read_text()
    prompts.write_text(whole.replace("A cat.", "A dog."))
    with pytest.raises(CheckpointError, match="run: was made with other pictures, facts or kinds of the pr"):
        run(settings(world, tmp_path / "run", resume=True, **changes))
    prompts.write_text(whole)
    RewardModel.start(RewardInfo(model=ModelSettings(path=str(world / "base"))), LoraSettings(r=4)).save(
        reward, "a card"
    )
    with pytest.raises(CheckpointError, match="run: was made with other reward model weights"):
        run(settings(world, tmp_path / "run", resume=True, **changes))


def test_a_rewarded_word_becomes_likely(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def first_token(adapter: Path | None) -> tuple[torch.Tensor, Any]:
        lmm = load(ModelSettings(path=str(world / "base"), adapter=str(adapter) if adapter else None))
        ask = [Message(role="user", content="What is it?")]
        batch = Renderer(lmm.processor).prompt_batch([(ask, None)])
        with torch.no_grad():
            logits = lmm.model.get_output_embeddings()(hidden_states(lmm.model, batch)[:, -1])
        return logits.softmax(-1)[0], lmm.tokenizer

    before, tokenizer = first_token(None)
    favoured = next(i for i in before.argsort(descending=True).tolist() if tokenizer.decode([i]).isalpha())
    word = tokenizer.decode([favoured])

    def score(self: RewardModel, items: Sequence[ScoreItem], **_: Any) -> torch.Tensor:
        return torch.tensor([float(item.response.count(word)) for item in items])

    plain = RewardInfo(model=ModelSettings(path=str(world / "base")))
    RewardModel.start(plain, LoraSettings(r=4)).save(tmp_path / "reward", "a card")
    write_records(tmp_path / "prompts.jsonl", [Prompt(id="q", question="What is it?")])
    monkeypatch.setattr(RewardModel, "score", score)
    learn = settings(
        world,
        tmp_path / "run",
        reward_model=str(tmp_path / "reward"),
        data={"path": str(tmp_path / "prompts.jsonl")},
        generate={"max_new_tokens": 2},
        steps=8,
        rollouts=64,
        num_generations=16,
        minibatch=32,
        micro_batch=32,
        symbolic={"correct_choice": 0, "correct_no": 0, "length": {}, "incomplete": 0},
        optim={"lr": 1e-2, "schedule": "constant"},
        save_every=0,
    )
    after, _ = first_token(run(learn))
    assert float(before[favoured]) < 0.05
    assert float(after[favoured]) > 0.15


# --- what the trainer is given ---


def test_prompts_come_in_ppos_order_with_one_picture_a_group(world: Path, tmp_path: Path):
    own = settings(world, tmp_path)
    prompts = read_prompts(own)
    renderer = Renderer(load(own.model).processor)
    rows = rows_of(prompts, renderer, own)
    assert len(rows) == 4 * 12 // 3
    assert [row["id"] for row in rows] == [f"q{i}" for i in stream(10, 0, 0, 16)]
    asked = next(row for row in rows if row["id"] == "q4")
    assert asked["prompt"] == [{"role": "user", "content": "What < /s> is in the < image>?"}]
    # a processor that crops gets squares
    renderer.processor.image_processor.do_center_crop = True
    group = rows[[0, 0, 0]]
    assert group["images"][0][0] is group["images"][2][0] and group["images"][0][0].size == (40, 40)


def test_a_steps_pictures_are_opened_once_and_kept_no_longer(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Not once for each of a step's eight micro-batches."""
    own = settings(world, tmp_path / "run", steps=3, save_every=0)
    prompts = read_prompts(own)
    order = [prompts[i].image for i in stream(10, own.seed, 0, 12)]
    steps = [{image.path for image in order[at : at + 4] if image} for at in (0, 4, 8)]
    opened: list[str] = []
    real, fit = pictures.open_image, group_rl.fit

    def watched(image: Image, root: Any) -> Any:
        opened.append(str(image.path))
        return real(image, root)

    def begun(*args: Any) -> None:
        opened.clear()
        fit(*args)

    monkeypatch.setattr(pictures, "open_image", watched)
    monkeypatch.setattr(group_rl, "fit", begun)
    run(own)
    assert 0 < len(opened) <= sum(len(shown) for shown in steps)
    assert all(opened.count(path) <= sum(path in shown for shown in steps) for path in opened)
    rows = rows_of(prompts, Renderer(load(own.model).processor), own)
    first = rows[[0, 1]]["images"]
    assert all(a[0] is b[0] for a, b in zip(rows[[0, 1]]["images"], first, strict=True))
    others = [i for i, image in enumerate(order) if image not in (order[0], order[1])]
    assert rows[others[:1]]["images"][0][0] is not first[0][0]
    assert rows[[0]]["images"][0][0] is not first[0][0]


def test_the_trainer_sees_our_tokens_and_stops_where_sampling_stops(world: Path, tmp_path: Path):
    own = settings(world, tmp_path / "run")
    prompts, lmm = read_prompts(own), load(own.model)
    renderer = Renderer(lmm.processor)
    with RunDir.create(own.output, own, "grpo") as run_dir:
        trainer = build(lmm, renderer, own, prompts, run_dir)
    ends = end_ids(lmm, renderer)
    assert sorted(trainer.eos_token_ids) == ends == sorted(trainer.generation_config.eos_token_id)
    inputs = [row for row in trainer.train_dataset.select(range(4)) for _ in range(3)]
    made = trainer._generate_and_score_completions(inputs)
    shown = [next(p for p in prompts if p.id == row["id"]) for row in inputs]
    seen = [PilImage.open(world / f"images/{p.image.path}") for p in shown if p.image]
    asked = [[Message(role="user", content=p.question)] for p in shown]
    ours = renderer.prompt_batch(list(zip(asked, seen, strict=True)))
    assert torch.equal(made["prompt_ids"], ours["input_ids"])
    assert torch.equal(made["pixel_values"], ours["pixel_values"])
    # advantages are those of rewards that the reward model gives beside the policy
    texts = [renderer.decode(row[row != renderer.pad_id].tolist()) for row in made["completion_ids"]]
    alone = RewardModel.load(world / "reward")
    items = [ScoreItem(p.id, a, t, p.facts, i) for p, a, t, i in zip(shown, asked, texts, seen)]
    scores = alone.score(items, seed="0/0")
    lengths = made["completion_mask"].sum(1).tolist()
    complete = torch.isin(made["completion_ids"], torch.tensor(ends)).any(1).tolist()
    parts = symbolic(shown, texts, lengths, complete, own.symbolic, 8)
    rewards = total(scores, parts, 2.0).view(4, 3)
    centred = rewards - rewards.mean(1, keepdim=True)
    expected = (centred / (rewards.std(1, keepdim=True) + 1e-4)).flatten()
    torch.testing.assert_close(made["advantages"], expected, atol=1e-3, rtol=1e-3)


def watched(model: Any) -> list[int]:
    """The rows of each call of ``model.generate`` from now on."""
    rows: list[int] = []
    real = model.generate

    def generate(**inputs: Any) -> torch.Tensor:
        rows.append(len(inputs["input_ids"]))
        return real(**inputs)

    model.generate = generate
    return rows


def test_responses_are_sampled_in_parts(world: Path, tmp_path: Path):
    """Of hardly any choice (top_p), so that the draws do not depend on the parts."""
    found = []
    for size, expected in ((64, [12]), (5, [5, 5, 2])):
        how = {"max_new_tokens": 8, "batch_size": size, "top_p": 1e-6}
        own = settings(world, tmp_path / str(size), generate=how)
        prompts, lmm = read_prompts(own), load(own.model)
        rows = watched(lmm.model)
        with RunDir.create(own.output, own, "grpo") as run_dir:
            trainer = build(lmm, Renderer(lmm.processor), own, prompts, run_dir)
        inputs = [row for row in trainer.train_dataset.select(range(4)) for _ in range(3)]
        found.append(trainer._generate_and_score_completions(inputs)["completion_ids"])
        assert rows == expected
    assert torch.equal(*found)


def test_a_processor_that_renders_otherwise_is_refused(world: Path, tmp_path: Path):
    own = settings(world, tmp_path)
    prompts, processor = read_prompts(own), load(own.model).processor
    renderer = Renderer(processor)
    check_rendering(SimpleNamespace(processing_class=processor), renderer, prompts, own)
    other = load(own.model).processor
    other.chat_template = other.chat_template.replace("ASSISTANT", "Assistant").replace(
        "assistant", "helper", 1
    )
    with pytest.raises(ModelError, match=r"gives a prompt other tokens than align.render"):
        check_rendering(SimpleNamespace(processing_class=other), renderer, prompts, own)


def test_prompts_that_the_trainer_cannot_take_are_refused(world: Path, tmp_path: Path):
    bare = Prompt(id="bare", question="What?", facts=Facts(captions=["A cat."]))
    lines = (world / "prompts.jsonl").read_text()
    write_records(tmp_path / "bare.jsonl", [bare])
    (tmp_path / "mixed.jsonl").write_text(lines + (tmp_path / "bare.jsonl").read_text())
    data = {"path": str(tmp_path / "mixed.jsonl"), "images": str(world / "images")}
    with pytest.raises(DataError, match=r"1 of 11 prompts have no image, e.g. 'bare'"):
        run(settings(world, tmp_path / "run", data=data))
    write_records(tmp_path / "none.jsonl", [Prompt(id="none", question="What?")])
    with pytest.raises(DataError, match=r"reads facts \(captions\); 1 records have none: none"):
        run(settings(world, tmp_path / "run", data={"path": str(tmp_path / "none.jsonl")}))
    with pytest.raises(PpoError, match=r"context is 512 tokens, and prompt .* generate.max_new_tokens"):
        run(settings(world, tmp_path / "run", generate={"max_new_tokens": 500}))
    assert not (tmp_path / "run").exists()


def test_settings_that_do_not_fit_are_refused(world: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="rollouts 12 must be a multiple of num_generations 5"):
        settings(world, tmp_path, num_generations=5)
    with pytest.raises(ValueError, match="minibatch 6 must be a multiple of micro_batch 4"):
        settings(world, tmp_path, micro_batch=4)
    with pytest.raises(ValueError, match="all responses to a prompt would be equal"):
        settings(world, tmp_path, generate={"temperature": 0})


def test_a_dry_run_loads_nothing(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(group_rl, "load", lambda *_: pytest.fail("a dry run loaded weights"))
    run(settings(world, tmp_path / "run", dry_run=True))
    assert not (tmp_path / "run").exists()
