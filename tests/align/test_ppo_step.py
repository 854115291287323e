"""One step of PPO against values computed apart: a plain forward pass, a loop, another reward model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image as PilImage

from align import actors
from align.actors import LEARNERS, POLICY, VALUE
from align.checkpoint import RunDir
from align.config import LoraSettings, ModelSettings
from align.lending import lend_tower
from align.models.lmm import hidden_states, load, save
from align.models.tiny import build_tiny_llava
from align.ppo import Ppo, read_prompts
from align.reward_model import RewardInfo, RewardModel, ScoreItem
from align.schedule import lr_factor
from data.jsonl import read_records, write_records
from data.schema import Message
from tests.align.test_ppo import COLOURS, settings, world  # noqa: F401


def trainer(folder: Path, output: Path, **changes: Any) -> Ppo:
    """A run whose policy and value model have left their start."""
    s = settings(folder, output, **changes)
    ppo = Ppo(s, read_prompts(s), Accelerator(cpu=True), RunDir.create(s.output, s, "ppo"))
    torch.manual_seed(7)
    for who in LEARNERS:
        for _, parameter in ppo.actors.named_parameters(who):
            parameter.data += 0.05 * torch.randn_like(parameter)
    return ppo


def test_log_probabilities_of_a_trained_policy_at_its_temperature(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Policy and reference, against plain forward passes of the merged policy and of the base."""
    folder = request.getfixturevalue("world")
    changes = {"max_new_tokens": 12, "temperature": 0.7, "batch_size": 8}
    ppo = trainer(folder, tmp_path / "run", generate=changes)
    _, sampled, rollout = ppo.roll_out(2)
    ppo.actors.save_policy(tmp_path / "policy", "a card", ppo.settings)
    base = str(folder / "base")
    merged = load(ModelSettings(path=base, adapter=str(tmp_path / "policy"), device="cpu")).model
    plain = load(ModelSettings(path=base, device="cpu")).model
    made = sampled.generated
    for row, (_, image) in enumerate(sampled.items[:4]):
        n = int(made.response_mask[row].sum())
        real = torch.cat([made.prompt_mask[row], made.response_mask[row]]) > 0
        batch = {"input_ids": torch.cat([made.prompt_ids[row], made.response_ids[row]])[real][None]}
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        if image is not None:
            pictured = int(sum(i is not None for _, i in sampled.items[:row]))
            batch["inputs_embeds"] = filled(plain, batch["input_ids"], made.features[pictured])
        for model, found in ((merged, rollout.logprobs), (plain, rollout.ref_logprobs)):
            with torch.no_grad():
                given = {k: v for k, v in batch.items() if k != "input_ids" or "inputs_embeds" not in batch}
                logits = model(**given).logits[0, -n - 1 : -1] / 0.7
            ids = batch["input_ids"][0, -n:, None]
            torch.testing.assert_close(
                found[row, :n], logits.log_softmax(-1).gather(1, ids)[:, 0], atol=1e-4, rtol=1e-4
            )
    assert float((rollout.logprobs - rollout.ref_logprobs).abs().max()) > 0.05


def test_values_are_those_ahead_of_each_token(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The value of a state is read where the token that follows is not known yet: one row, token by token."""
    ppo = trainer(request.getfixturevalue("world"), tmp_path / "run")
    _, sampled, rollout = ppo.roll_out(1)
    row = next(i for i, (_, image) in enumerate(sampled.items) if image is None)
    made, n = sampled.generated, int(rollout.mask[row].sum())
    prompt = made.prompt_ids[row][made.prompt_mask[row].bool()]
    ppo.actors.use(VALUE)
    for t in range(n):
        ids = torch.cat([prompt, made.response_ids[row, :t]])[None]
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.no_grad():
            value = ppo.actors.value_head(hidden_states(ppo.actors.lmm.model, batch)[0, -1])
        assert float(rollout.values[row, t]) == pytest.approx(float(value), abs=1e-4)


def filled(model: Any, ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """(1, T, H) embeddings with the picture's features in the image tokens' places."""
    embeds = model.get_input_embeddings()(ids).clone()
    embeds[ids == model.config.image_token_index] = features
    return embeds


def test_scores_are_the_reward_model_s_own(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Another copy of the reward model, on a base of its own, gives the same scores."""
    folder = request.getfixturevalue("world")
    ppo = trainer(folder, tmp_path / "run", reward_scale=2.0)
    prompts, sampled, rollout = ppo.roll_out(1)
    texts = [
        ppo.actors.renderer.decode(ids[mask.bool()].tolist())
        for ids, mask in zip(rollout.response_ids, rollout.mask, strict=True)
    ]
    alone = RewardModel.load(folder / "reward")
    items = [
        ScoreItem(p.id, [Message(role="user", content=p.question)], text, p.facts, image)
        for p, text, (_, image) in zip(prompts, texts, sampled.items, strict=True)
    ]
    expected = alone.score(items, seed=f"{ppo.settings.seed}/1")
    torch.testing.assert_close(rollout.scores, expected, atol=1e-5, rtol=1e-5)
    assert float(expected.std()) > 0.01
    torch.testing.assert_close(
        rollout.rewards, 2.0 * expected + sum(rollout.parts.values()), atol=1e-4, rtol=1e-4
    )


def test_advantages_hold_score_and_penalty(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Reward to come by a plain loop: the penalty of each later token, the response's reward at its end."""
    more = {"kl_coef": 0.5, "gamma": 0.9, "lam": 1.0, "whiten_advantages": False}
    ppo = trainer(request.getfixturevalue("world"), tmp_path / "run", **more)
    _, _, rollout = ppo.roll_out(1)
    assert float(rollout.kl.max()) > 0.01
    for row in range(len(rollout)):
        n = int(rollout.mask[row].sum())
        penalty = (rollout.logprobs - rollout.ref_logprobs)[row, :n].clamp(min=0)
        to_come = 0.0
        for t in reversed(range(n)):
            reward = float(rollout.rewards[row]) if t == n - 1 else 0.0
            to_come = reward - 0.5 * float(penalty[t]) + 0.9 * to_come
            assert float(rollout.returns[row, t]) == pytest.approx(to_come, abs=1e-4)
            assert float(rollout.advantages[row, t]) == pytest.approx(
                to_come - float(rollout.values[row, t]), abs=1e-4
            )


def test_a_steps_pictures_go_through_the_tower_once(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For sampling, policy, reference, value and reward model, and for both passes of the update."""
    ppo = trainer(request.getfixturevalue("world"), tmp_path / "run", epochs=2)
    model = ppo.actors.lmm.model.get_base_model().model
    towers: list[int] = []
    projected: list[int] = []
    for module, seen in ((model.vision_tower, towers), (model.multi_modal_projector, projected)):
        real = module.forward

        def forward(x: torch.Tensor, *args: Any, real: Any = real, seen: Any = seen, **how: Any) -> Any:
            seen.append(len(x))
            return real(x, *args, **how)

        monkeypatch.setattr(module, "forward", forward)
    prompts, sampled, rollout = ppo.roll_out(1)
    pictured = [p.image.id for p in prompts if p.image is not None]
    assert sum(towers) == len(set(pictured)) < len(pictured)
    # once for the four models of a row, and once where the reward model's text stands around it
    assert sum(projected) == 2 * len(pictured)
    ppo.update(1, sampled, rollout)
    assert (sum(towers), sum(projected)) == (len(set(pictured)), 2 * len(pictured))


@pytest.fixture
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A reward model of another base, in ``other``, whose vision tower has the weights of the policy's."""
    lmm = load(ModelSettings(path=str(request.getfixturevalue("world") / "base"), device="cpu"))
    other = load(ModelSettings(path=str(build_tiny_llava(tmp_path / "other", hidden_size=32, seed=5))))
    other.model.model.vision_tower.load_state_dict(lmm.model.model.vision_tower.state_dict())
    save(other.model, other.processor, tmp_path / "other")
    info = RewardInfo(model=ModelSettings(path=str(tmp_path / "other"), device="cpu"))
    torch.manual_seed(3)
    reward = RewardModel.start(info, LoraSettings(r=2))
    for parameter in reward.parameters():
        torch.nn.init.normal_(parameter.data, std=0.2)
    return reward.save(tmp_path / "reward", "a card")


def test_bases_of_one_tower_share_its_features(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    """A picture goes through it once for both, and the scores are those of a tower each, bit for bit."""
    folder, seen, scores = request.getfixturevalue("world"), {}, {}
    tower = type(load(ModelSettings(path=str(folder / "base"))).model.model.vision_tower)
    real = tower.forward
    for name in ("one", "two"):
        if name == "two":
            monkeypatch.setattr(actors, "lend_tower", lambda *_: False)
        ppo = trainer(folder, tmp_path / name, reward_model=str(elsewhere))
        seen[name] = []

        def forward(self: Any, x: torch.Tensor, *args: Any, counts: Any = seen[name], **how: Any) -> Any:
            counts.append(len(x))
            return real(self, x, *args, **how)

        monkeypatch.setattr(tower, "forward", forward)
        prompts, _, rollout = ppo.roll_out(1)
        scores[name] = rollout.scores
        models = [one.model.get_base_model().model for one in (ppo.actors.lmm, ppo.actors.reward.lmm)]
        assert models[0] is not models[1]
        assert (models[0].vision_tower is models[1].vision_tower) == (name == "one")
    pictures = len({p.image.id for p in prompts if p.image is not None})
    assert (sum(seen["one"]), sum(seen["two"])) == (pictures, 2 * pictures)
    assert torch.equal(scores["one"], scores["two"]) and float(scores["one"].std()) > 0.01


@pytest.mark.parametrize("differs", ["weight", "layer", "pixels", "precision"])
def test_towers_that_see_otherwise_stay_apart(
    request: pytest.FixtureRequest, elsewhere: Path, differs: str
) -> None:
    policy = load(ModelSettings(path=str(request.getfixturevalue("world") / "base"), device="cpu"))
    judge = RewardModel.load(elsewhere).lmm
    base = judge.model.get_base_model()
    tower = base.model.vision_tower
    if differs == "weight":
        list(tower.parameters())[-1].data.flatten()[-1] += 1e-6
    elif differs == "layer":
        base.config.vision_feature_layer = -1
    elif differs == "pixels":
        judge.processor.image_processor.image_mean = [0.5, 0.5, 0.5]
    else:
        tower.to(torch.bfloat16)
    assert not lend_tower(policy, judge)
    assert base.model.vision_tower is tower is not policy.model.model.vision_tower


def test_every_step_samples_anew(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = request.getfixturevalue("world")
    write_records(tmp_path / "one.jsonl", read_records(folder / "prompts.jsonl", "prompt")[1:2])
    data = {"path": str(tmp_path / "one.jsonl"), "images": str(folder / "images")}
    ppo = trainer(folder, tmp_path / "run", data=data)
    first, again, second = (ppo.roll_out(step)[2].response_ids for step in (1, 1, 2))
    assert torch.equal(first, again)
    assert first.shape != second.shape or not torch.equal(first, second)
    assert len({tuple(row) for row in first.tolist()}) > 1


def test_learning_rates_follow_the_schedule(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    ppo = trainer(request.getfixturevalue("world"), tmp_path / "run", steps=5, value_lr=1e-2)
    _, sampled, rollout = ppo.roll_out(1)
    for step in range(5):
        found = ppo.update(step, sampled, rollout)
        factor = lr_factor(step, 5, 1, "cosine")
        rates = {name: group["lr"] for name, group in zip(LEARNERS, ppo.training.optimizer.param_groups)}
        assert rates == {POLICY: pytest.approx(3e-3 * factor), VALUE: pytest.approx(1e-2 * factor)}
        assert (found["lr"], found["lr/value"]) == (rates[POLICY], rates[VALUE])


def test_micro_batches_give_the_gradients_of_the_mini_batch(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue("world")
    gradients = []
    for name, micro in (("whole", 6), ("micro", 2)):
        s = settings(folder, tmp_path / name, micro_batch=micro, optim={"lr": 1e-9, "max_grad_norm": 1e9})
        ppo = Ppo(s, read_prompts(s), Accelerator(cpu=True), RunDir.create(s.output, s, "ppo"))
        _, sample, rollout = ppo.roll_out(0)
        ppo.gradient_step(0, [0, 3, 4, 7, 8, 11], sample, rollout)
        gradients.append({n: p.grad for who in LEARNERS for n, p in ppo.actors.named_parameters(who)})
    for key, whole in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], whole, atol=1e-5, rtol=1e-3)
    assert all(g is not None for g in gradients[0].values())
    # LoRA's B is zero at the start, so A gets no gradient yet; B of both adapters does
    moved = [n for n, g in gradients[0].items() if float(g.abs().max()) > 0]
    assert any("lora_B.policy" in n for n in moved)
    assert any("lora_B.value" in n for n in moved)


def test_gradients_are_clipped_each_learner_on_its_own(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue("world")
    s = settings(folder, tmp_path / "run", optim={"lr": 1e-9, "max_grad_norm": 1e-3})
    ppo = Ppo(s, read_prompts(s), Accelerator(cpu=True), RunDir.create(s.output, s, "ppo"))
    _, sample, rollout = ppo.roll_out(0)
    found = ppo.gradient_step(0, [0, 3, 4, 7, 8, 11], sample, rollout)
    for name, key in ((POLICY, "policy/grad_norm"), (VALUE, "val/grad_norm")):
        gradients = [p.grad.flatten() for _, p in ppo.actors.named_parameters(name) if p.grad is not None]
        assert float(torch.cat(gradients).norm()) == pytest.approx(1e-3, rel=1e-3)
        assert found[key] > 2e-3


def test_the_reward_model_may_see_other_pictures(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = request.getfixturevalue("world")
    (tmp_path / "dark").mkdir()
    for colour in COLOURS:
        PilImage.new("RGB", (32, 32), "black").save(tmp_path / "dark" / f"{colour}.png")
    found = []
    for name, more in (("own", {}), ("dark", {"reward_images": str(tmp_path / "dark")})):
        s = settings(folder, tmp_path / f"run-{name}", **more)
        ppo = Ppo(s, read_prompts(s), Accelerator(cpu=True), RunDir.create(s.output, s, "ppo"))
        found.append(ppo.roll_out(0))
    (prompts, _, own), (_, _, dark) = found
    assert torch.equal(own.response_ids, dark.response_ids)
    differ = (own.scores - dark.scores).abs() > 1e-4
    assert differ.tolist() == [p.image is not None for p in prompts]
