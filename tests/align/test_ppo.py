"""PPO on a tiny model: it starts at its reference, learns what is rewarded, and resumes bit for bit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PilImage
from safetensors.torch import load_file

from align import decode
from align.actors import LEARNERS, POLICY, VALUE, Actors, Sampled
from align.checkpoint import RunDir
from align.config import GenerateSettings, LoraSettings, ModelSettings, PpoSettings
from align.diagnose import PpoError, check_drawn, check_finite, check_fresh
from align.generate import rollout_tokens
from align.models.lmm import adapters_off, hidden_states, load, move
from align.models.tiny import build_tiny_llava
from align.ppo import Ppo, prompt_pictures, run
from align.render import Renderer
from align.reward_model import RewardInfo, RewardModel, ScoreItem
from data.jsonl import DataError, write_records
from data.schema import Facts, Image, Message, Prompt

COLOURS = ("red", "green", "blue", "yellow")
WALL_CLOCK = ("rate/", "eps")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a reward model with weights that do something, four images and ten prompts."""
    root = tmp_path_factory.mktemp("world")
    build_tiny_llava(root / "base")
    info = RewardInfo(model=ModelSettings(path=str(root / "base")), facts=["captions"])
    torch.manual_seed(1)
    reward = RewardModel.start(info, LoraSettings(r=4))
    for parameter in reward.parameters():
        torch.nn.init.normal_(parameter.data, std=0.2)
    reward.save(root / "reward", "a card")
    (root / "images").mkdir()
    for colour in COLOURS:
        PilImage.new("RGB", (32, 32), colour).save(root / "images" / f"{colour}.png")
    prompts = [
        Prompt(
            id=f"q{i}",
            image=Image(id=COLOURS[i % 4], path=f"{COLOURS[i % 4]}.png") if i % 5 else None,
            question="What is in the image?" + " Describe it." * (i % 3),
            facts=Facts(captions=["A cat.", "A table."]),
            answer_type="no" if i == 3 else "general",
        )
        for i in range(10)
    ]
    write_records(root / "prompts.jsonl", prompts)
    return root


def settings(world: Path, output: Path, **changes: Any) -> PpoSettings:
    values: dict[str, Any] = {
        "output": str(output),
        "model": {"path": str(world / "base"), "device": "cpu"},
        "reward_model": str(world / "reward"),
        "data": {"path": str(world / "prompts.jsonl"), "images": str(world / "images")},
        "optim": {"lr": 3e-3, "warmup_steps": 1},
        "lora": {"r": 4},
        "generate": {"max_new_tokens": 12, "batch_size": 8},
        "steps": 4,
        "rollouts": 12,
        "minibatch": 6,
        "micro_batch": 4,
        "save_every": 2,
        "keep_every": 2,
        "dump_rollouts": 3,
        "report_to": [],
    }
    return PpoSettings(**(values | changes))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def metrics(output: Path) -> list[dict[str, Any]]:
    kept = lines(output / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith(WALL_CLOCK)} for row in kept]


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run")
    assert run(settings(world, output)) == output / "policy"
    return output


@pytest.fixture(scope="module")
def actors(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Actors:
    return Actors.load(settings(world, tmp_path_factory.mktemp("unused")))


@pytest.fixture(scope="module")
def sampled(actors: Actors) -> Sampled:
    pictures = [PilImage.new("RGB", (32, 32), c) for c in COLOURS]
    ask = [Message(role="user", content="What is in the image?")]
    items = [(ask, pictures[0]), (ask[:], None), ([Message(role="user", content="A cat?")], pictures[1])] * 2
    actors.use(POLICY)
    made = rollout_tokens(
        actors.lmm, actors.renderer, items, GenerateSettings(max_new_tokens=9, batch_size=4), seed=3
    )
    # of unequal length, so that padding matters
    for i, n in enumerate((9, 3, 1, 5, 9, 2)):
        made.response_mask[i, n:] = 0
    return Sampled(made, items, actors.renderer)


# --- the models ---


def test_a_fresh_policy_is_its_reference(actors: Actors, sampled: Sampled):
    judged = actors.judge_tokens(sampled, 3)
    policy, reference = judged.logprobs, judged.ref_logprobs
    assert torch.equal(policy, reference)
    assert bool((policy < 0).any())


def test_the_value_model_starts_as_the_reward_model(world: Path, actors: Actors):
    folder = world / "reward"
    lmm = actors.lmm
    ask = ScoreItem("x", [Message(role="user", content="What?")], "A cat.", Facts(captions=["A cat."]))
    expected = RewardModel.load(folder).score([ask])
    twin = RewardModel(lmm, actors.value_head, actors.reward.info, VALUE)
    assert torch.equal(twin.score([ask]), expected)
    assert torch.equal(actors.reward.score([ask]), expected)
    assert actors.reward.lmm is lmm


def test_batching_and_padding_change_nothing(actors: Actors, sampled: Sampled):
    whole = actors.judge_tokens(sampled, 6)
    single = actors.judge_tokens(sampled, 1)
    for a, b in zip(vars(whole).values(), vars(single).values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
        assert bool((a[sampled.generated.response_mask == 0] == 0).all())


def test_log_probabilities_are_those_of_the_sampler(actors: Actors, sampled: Sampled):
    """Against the base model's own forward pass over one unpadded row with an image."""
    made = sampled.generated
    row = 0
    keep = torch.cat([made.prompt_mask[row], made.response_mask[row]]) > 0
    ids = torch.cat([made.prompt_ids[row], made.response_ids[row]])[keep][None]
    base = actors.lmm.model.get_base_model()
    pixels = actors.renderer.pixel_values([sampled.items[row][1]])
    with torch.no_grad(), adapters_off(actors.lmm.model):
        logits = base(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels).logits
    n = int(made.response_mask[row].sum())
    expected = logits[0, -n - 1 : -1].log_softmax(-1).gather(1, ids[0, -n:, None])[:, 0]
    found = actors.judge_tokens(sampled, 6).logprobs[row, :n]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_reward_model_of_another_precision_is_warned_of(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    Actors.load(settings(world, tmp_path))
    assert "may not hold" not in caplog.text
    model = {"path": str(world / "base"), "device": "cpu", "dtype": "bfloat16"}
    Actors.load(settings(world, tmp_path, model=model))
    assert (
        "a base in float32 and scores on the policy's, in bfloat16; its held-out accuracy may" in caplog.text
    )


def test_only_policy_and_value_learn(actors: Actors):
    for name in (*LEARNERS, POLICY):
        actors.use(name)
        learning = {n for n, p in actors.lmm.model.named_parameters() if p.requires_grad}
        expected = {n for who in LEARNERS for n, _ in actors.named_parameters(who)}
        assert learning == {n for n in expected if not n.startswith("value_head")}
        assert not any(p.requires_grad for p in actors.reward.head.parameters())


# --- runs ---


def test_a_failed_save_leaves_nothing(
    world: Path, actors: Actors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("align.actors.write_text", fail)
    with pytest.raises(OSError, match="no space"):
        actors.save_policy(tmp_path / "policy", "a card", settings(world, tmp_path))
    assert not list(tmp_path.iterdir())


def test_kl_starts_at_zero_and_then_grows(trained: Path):
    rows = metrics(trained)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["objective/kl"] == 0
    assert rows[0]["objective/kl_k3"] == 0
    assert rows[0]["objective/non_score_reward"] == 0
    assert rows[-1]["objective/kl_k3"] > 0
    assert rows[0]["policy/approxkl_avg"] > 0


def test_metrics_have_the_names_people_know(trained: Path):
    expected = [
        *("objective/kl", "objective/kl_k3", "objective/entropy", "objective/rewards", "objective/scores"),
        *(
            "reward/correctness",
            "reward/length",
            "reward/incomplete",
            "response/length",
            "response/incomplete",
        ),
        *("policy/clipfrac_avg", "policy/approxkl_avg", "val/clipfrac_avg", "val/explained_var"),
        *("loss/policy_avg", "loss/value_avg", "rate/tokens_per_s", "eps", "lr"),
    ]
    assert set(expected) <= set(lines(trained / "metrics.jsonl")[0])
    row = metrics(trained)[1]
    parts = row["reward/correctness"] + row["reward/length"] + row["reward/incomplete"]
    assert row["objective/rewards"] == pytest.approx(row["objective/scores"] + parts, abs=1e-4)
    assert [r["lr"] for r in metrics(trained)] == pytest.approx([3e-3, 3e-3, 2.25e-3, 0.75e-3])


def test_rollouts_are_dumped(trained: Path):
    rows = lines(trained / "rollouts.jsonl")
    assert [row["step"] for row in rows] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    row = rows[0]
    assert row["reward"] == pytest.approx(row["score"] + sum(row["parts"].values()), abs=1e-5)
    assert 1 <= row["tokens"] <= 12


def test_what_is_left_behind(trained: Path):
    for name in ("policy", "policy-2", "policy-4"):
        assert (trained / name / "adapter_model.safetensors").is_file()
        assert (trained / name / "README.md").is_file()
    assert json.loads((trained / "result.json").read_text()) == {"steps": 4, "stopped": None}
    same = [
        (trained / n / "adapter_model.safetensors").read_bytes() for n in ("policy", "policy-4", "policy-2")
    ]
    assert same[0] == same[1] != same[2]


def test_the_saved_policy_is_the_trained_one(world: Path, trained: Path):
    base, _ = first_token(world / "base")
    tuned, _ = first_token(world / "base", trained / "policy")
    assert not torch.allclose(base, tuned)
    # the adapters of reward and value are not in it
    keys = load_file(trained / "policy" / "adapter_model.safetensors")
    assert all("reward" not in key and "value" not in key for key in keys)


@pytest.mark.parametrize("moment", ["gradient_step", "save_checkpoint", "roll_out"])
def test_kill_and_resume_is_bit_identical(
    world: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
):
    """Killed within step 4's update, just before the checkpoint of step 2, and while step 3 is rolled out."""
    owner: Any = RunDir if moment == "save_checkpoint" else Ppo
    deadly = {"gradient_step": 14, "save_checkpoint": 1, "roll_out": 3}[moment]
    real = getattr(owner, moment)
    calls = []

    def dies(self: Any, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == deadly:
            raise KeyboardInterrupt
        return real(self, *args)

    output = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, moment, dies)
        run(settings(world, output))
    assert not (output / "policy").exists()
    with (output / "rollouts.jsonl").open("a") as file:
        file.write('{"step": 3, "torn')
    torch.manual_seed(999)
    run(settings(world, output, resume=True))
    assert metrics(output) == metrics(trained)
    assert lines(output / "rollouts.jsonl") == lines(trained / "rollouts.jsonl")
    for name in ("policy", "policy-2", "policy-4"):
        file = Path(name, "adapter_model.safetensors")
        assert (output / file).read_bytes() == (trained / file).read_bytes()


def test_a_finished_run_is_not_run_again(world: Path, trained: Path):
    before = (trained / "metrics.jsonl").read_bytes()
    assert run(settings(world, trained, resume=True)) == trained / "policy"
    assert (trained / "metrics.jsonl").read_bytes() == before


def first_token(base: Path, adapter: Path | None = None) -> tuple[torch.Tensor, Any]:
    """Probabilities (V,) of the first token after "What is it?", and the tokenizer."""
    lmm = load(ModelSettings(path=str(base), adapter=str(adapter) if adapter else None, device="cpu"))
    ask = [Message(role="user", content="What is it?")]
    batch = move(Renderer(lmm.processor).prompt_batch([(ask, None)]), "cpu")
    with torch.no_grad():
        logits = lmm.model.get_output_embeddings()(hidden_states(lmm.model, batch)[:, -1])
    return logits.softmax(-1)[0], lmm.tokenizer


def test_a_rewarded_word_becomes_likely(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before, tokenizer = first_token(world / "base")
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
        minibatch=32,
        micro_batch=None,
        symbolic={"correct_choice": 0, "correct_no": 0, "length": {}, "incomplete": 0},
        optim={"lr": 1e-2, "schedule": "constant"},
        save_every=0,
        keep_every=0,
    )
    after, _ = first_token(world / "base", run(learn))
    # the frozen head and norm of so small a model cap any token at about a third
    assert float(before[favoured]) < 0.05
    assert float(after[favoured]) > 0.15


def test_max_kl_stops_and_keeps_the_last_good_policy(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    seen: list[dict[str, torch.Tensor]] = []
    real = Ppo.watch_kl

    def watch(self: Ppo, step: int, kl: float) -> str | None:
        seen.append(self.actors.weights([POLICY]))
        return real(self, step, [0.0, 0.1, 5.0][step])

    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Ppo, "watch_kl", watch)
        run(settings(world, output, max_kl=4.0, save_every=1))
    result = json.loads((output / "result.json").read_text())
    assert result["steps"] == 1
    assert (
        "after 2 steps the KL is 5.00, above max_kl 4.0; the policy after 1 steps is kept"
        in result["stopped"]
    )
    assert result["stopped"] in caplog.text
    assert result["stopped"] in (output / "policy" / "README.md").read_text()
    assert [row["step"] for row in metrics(output)] == [1, 2, 3]
    kept = load_file(output / "policy" / "adapter_model.safetensors")
    good = {k.replace(".policy", ""): v for k, v in seen[1].items()}
    assert kept.keys() == good.keys()
    assert all(torch.equal(kept[k], good[k]) for k in kept)


def test_a_reward_model_of_another_base_keeps_its_own(world: Path, tmp_path: Path):
    build_tiny_llava(tmp_path / "other", hidden_size=32, seed=5)
    info = RewardInfo(model=ModelSettings(path=str(tmp_path / "other"), device="cpu"))
    RewardModel.start(info, LoraSettings(r=2), ("Yes", "No")).save(tmp_path / "other_reward", "a card")
    s = settings(world, tmp_path / "run", reward_model=str(tmp_path / "other_reward"), steps=1)
    actors = Actors.load(s)
    assert actors.reward.lmm is not actors.lmm
    assert not bool(actors.value_head.linear.weight.any())
    run(s)
    assert metrics(tmp_path / "run")[0]["objective/scores"] != 0


# --- faults ---


def test_missing_facts_stop_before_any_model_is_loaded(world: Path, tmp_path: Path):
    write_records(tmp_path / "bare.jsonl", [Prompt(id="bare", question="What?")])
    broken = settings(
        world, tmp_path / "run", data={"path": str(tmp_path / "bare.jsonl")}, model={"path": "/nowhere"}
    )
    with pytest.raises(DataError, match=r"bare\.jsonl: facts: .*1 records have none: bare; add them"):
        run(broken)
    assert not (tmp_path / "run").exists()


def test_settings_that_do_not_fit(world: Path, tmp_path: Path):
    with pytest.raises(PpoError, match=r"rollouts 12 is no multiple of minibatch 24.*set minibatch to 12"):
        run(settings(world, tmp_path / "run", minibatch=24))
    with pytest.raises(PpoError, match=r"temperature is 0"):
        run(settings(world, tmp_path / "run", generate={"temperature": 0}))
    assert not (tmp_path / "run").exists()


def test_diagnoses():
    check_fresh(torch.tensor([-1.0]), torch.tensor([-1.0005]))
    with pytest.raises(PpoError, match=r"differ by 0\.5 .* KL would not start at 0.*model\.bits"):
        check_fresh(torch.tensor([-1.0]), torch.tensor([-1.5]))
    with pytest.raises(PpoError, match="differ by nan"):
        check_fresh(torch.tensor([float("nan")]), torch.tensor([-1.5]))
    with pytest.raises(PpoError, match=r"step 3: val/grad_norm not finite.*value_lr \(now 0\.2\)"):
        check_finite(2, {"loss/policy_avg": 0.0, "val/grad_norm": float("inf")}, 0.1, 0.2)


def test_the_sampler_is_compared_with_the_scoring_once(trained: Path):
    rows = metrics(trained)
    # float32 on one's own machine: two ways of summing the same
    assert 0 < rows[0]["sampling/logprob_gap"] < 1e-5
    assert not any("sampling/logprob_gap" in row for row in rows[1:])


@pytest.mark.parametrize(
    ("fault", "where"),
    [
        ("padding is read", r"First tokens differ already \(.*how the prompt is read"),
        ("what is kept is not", r"First tokens agree \(.*keys and values that are kept"),
    ],
)
def test_a_sampler_of_another_distribution_is_told(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, where: str
):
    real = decode.forward

    def faulty(base: Any, cache: Any, inputs: torch.Tensor, mask: torch.Tensor, **how: Any) -> decode.Read:
        seen = mask.clone()
        if fault == "padding is read":
            seen[:] = 1
        elif inputs.shape[1] == 1:
            seen[:, :-1] = 0
        return replace(real(base, cache, inputs, seen, **how), mask=mask)

    monkeypatch.setattr(decode, "forward", faulty)
    with pytest.raises(PpoError, match=rf"as it is scored differ by .* in float32\).* {where}"):
        run(settings(world, tmp_path, steps=1))
    assert not (tmp_path / "metrics.jsonl").exists()


def test_rounding_is_allowed_for_and_warned_of(caplog: pytest.LogCaptureFixture):
    how: dict[str, Any] = {"path": "x", "dtype": "bfloat16"}
    check_drawn(0.09, 0.09, ModelSettings(**how))
    check_drawn(0.09, 0.09, ModelSettings(path="x", dtype="float16", bits=8))
    assert not caplog.text
    check_drawn(0.11, 0.09, ModelSettings(**how, bits=4))
    assert "(at most 0.1 is rounding in bfloat16, 4 bits)" in caplog.text
    with pytest.raises(PpoError, match=r"differ by nan .* \(at most 0.001 is rounding in float32\)"):
        check_drawn(float("nan"), 0.0, ModelSettings(path="x"))


def test_dry_run_computes_nothing(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("align.ppo.Ppo", lambda *_: pytest.fail("a dry run loaded weights"))
    run(settings(world, tmp_path / "run", dry_run=True))
    assert not (tmp_path / "run").exists()


def test_bad_prompts_are_kept_aside(world: Path, tmp_path: Path):
    (tmp_path / "prompts.jsonl").write_text("{oops\n" + (world / "prompts.jsonl").read_text())
    data = {"path": str(tmp_path / "prompts.jsonl"), "images": str(world / "images"), "max_bad": 0.1}
    small = {"data": data, "steps": 1, "rollouts": 2, "minibatch": 2, "micro_batch": None, "save_every": 0}
    run(settings(world, tmp_path / "run", **small, dry_run=True))
    assert not (tmp_path / "run").exists()
    run(settings(world, tmp_path / "run", **small))
    (reject,) = lines(tmp_path / "run/rejects.jsonl")
    assert (reject["line"], reject["record"]) == (1, "{oops")


def test_a_picture_that_cannot_be_decoded_names_its_prompt(world: Path, tmp_path: Path):
    whole = (world / "images/red.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    asked = [Prompt(id="words", question="What?")]
    asked.append(Prompt(id="q7", question="What?", image=Image(id="c", path="cut.png")))
    with pytest.raises(DataError, match=r"'cut\.png' cannot be decoded \(.*\), in record 'q7'; replace"):
        prompt_pictures(asked, str(tmp_path))
