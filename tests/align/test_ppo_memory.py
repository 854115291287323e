"""PPO with less memory: quantized bases, activations computed again, logits in parts; the same results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers.modeling_layers import GradientCheckpointingLayer

from align.actors import LEARNERS, POLICY, VALUE, Actors, Sampled
from align.checkpoint import RunDir
from align.config import ConfigError, LoraSettings, ModelSettings, PpoSettings, resolve
from align.models import lmm as lmm_module
from align.models.lmm import logprobs_of
from align.models.memory import shard
from align.models.tiny import build_tiny_llava
from align.ppo import Ppo, read_prompts, run
from align.ppo_metrics import rollout_metrics
from align.reward_model import RewardInfo, RewardModel
from align.rl import Rollout
from tests.align.test_ppo import metrics, settings, world  # noqa: F401


def begun(s: PpoSettings) -> tuple[Ppo, Sampled, Rollout]:
    ppo = Ppo(s, read_prompts(s), Accelerator(cpu=True), RunDir.create(s.output, s, "ppo"))
    _, sampled, rollout = ppo.roll_out(0)
    return ppo, sampled, rollout


def gradients(ppo: Ppo) -> dict[str, Tensor]:
    named = [pair for name in LEARNERS for pair in ppo.actors.named_parameters(name)]
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


# --- activations computed again ---


def test_activations_computed_again_give_the_same_gradients(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """With a switch of adapters ahead of the backward pass they would not be."""
    folder = request.getfixturevalue("world")
    found, kept = [], []
    for again in (False, True):
        s = settings(
            folder,
            tmp_path / str(again),
            gradient_checkpointing=again,
            optim={"lr": 1e-9, "max_grad_norm": 1e9},
        )
        ppo, sampled, rollout = begun(s)
        # trained a little: a fresh adapter's B is zero, and the wrong adapter would give the same
        torch.manual_seed(5)
        for name in LEARNERS:
            for key, parameter in ppo.actors.named_parameters(name):
                if "lora_B" in key:
                    torch.nn.init.normal_(parameter.data, std=0.3)
        stored: list[int] = []

        def note(tensor: Tensor, stored: list[int] = stored) -> Tensor:
            stored.append(tensor.nbytes)
            return tensor

        with saved_tensors_hooks(note, lambda t: t):
            ppo.update(0, sampled, rollout)
        found.append(gradients(ppo))
        kept.append(sum(stored))
        layers = [m for m in ppo.actors.lmm.model.modules() if isinstance(m, GradientCheckpointingLayer)]
        assert layers and not any(layer.training for layer in layers)
    whole, again_ = found
    assert whole.keys() == again_.keys() and any(POLICY in key for key in whole)
    for key, gradient in whole.items():
        torch.testing.assert_close(again_[key], gradient, atol=1e-6, rtol=1e-4)
    assert max(float(g.abs().max()) for key, g in whole.items() if f".{VALUE}." in key) > 0
    assert kept[1] < 0.5 * kept[0]


def test_a_switch_ahead_of_the_backward_pass_would_spoil_the_gradients(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Why ``gradient_step`` goes backward before it switches: there is no error to notice it by."""
    folder = request.getfixturevalue("world")
    s = settings(folder, tmp_path, gradient_checkpointing=True)
    ppo, sampled, _ = begun(s)
    actors = ppo.actors
    torch.manual_seed(5)
    for name in LEARNERS:
        for key, parameter in actors.named_parameters(name):
            if "lora_B" in key:
                torch.nn.init.normal_(parameter.data, std=0.3)

    def policy_gradient(switch: bool) -> Tensor:
        for _, parameter in actors.named_parameters(POLICY):
            parameter.grad = None
        with actors.checkpointed():
            actors.use(POLICY)
            loss = actors.logprobs(sampled, [0, 1]).sum()
            if switch:
                actors.use(VALUE)
            loss.backward()
        grads = [p.grad for _, p in actors.named_parameters(POLICY)]
        return torch.cat([(torch.zeros(1) if g is None else g).flatten() for g in grads])

    right, wrong = policy_gradient(switch=False), policy_gradient(switch=True)
    assert right.shape != wrong.shape or not torch.allclose(right, wrong, atol=1e-4)


def test_weights_are_not_split_in_one_process(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = request.getfixturevalue("world")
    actors = Actors.load(settings(folder, tmp_path))
    with pytest.raises(ValueError, match="one; start two or more"):
        shard(actors.lmm.model, torch.device("cpu"))


def test_gradients_are_not_kept_through_the_next_rollout(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does the plan count them there."""
    kept: list[int] = []
    real = Ppo.roll_out

    def watched(self: Ppo, step: int) -> Any:
        kept.append(len(gradients(self)))
        return real(self, step)

    monkeypatch.setattr(Ppo, "roll_out", watched)
    run(settings(request.getfixturevalue("world"), tmp_path / "run", steps=2, save_every=0, keep_every=0))
    assert kept == [0, 0]


# --- logits in parts ---


@pytest.mark.parametrize("with_entropy", [False, True])
def test_logits_in_parts_give_the_same(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_entropy: bool
) -> None:
    lmm = Actors.load(settings(request.getfixturevalue("world"), tmp_path)).lmm
    size = lmm.model.config.get_text_config().hidden_size
    torch.manual_seed(0)
    hidden, targets = torch.randn(3, 7, size), torch.randint(0, 90, (3, 7))
    peaks: list[int] = []
    real = lmm_module.next_logits

    def watched(model: Any, states: Tensor) -> Tensor:
        peaks.append(states.shape[:-1].numel())
        return real(model, states)

    monkeypatch.setattr(lmm_module, "next_logits", watched)

    def once() -> tuple[Tensor, Tensor | None, Tensor]:
        states = hidden.clone().requires_grad_()
        chosen, entropy = logprobs_of(lmm.model, states, targets, 0.7, with_entropy)
        (chosen.sum() + (0 if entropy is None else entropy.square().sum())).backward()
        assert states.grad is not None
        return chosen.detach(), entropy, states.grad

    whole = once()
    assert peaks == [21]
    vocabulary = lmm.model.get_output_embeddings().weight.shape[0]
    monkeypatch.setattr(lmm_module, "LOGITS_AT_ONCE", 5 * vocabulary)
    peaks.clear()
    parts = once()
    # five positions at a time, and each part once more in the backward pass
    assert sorted(peaks) == sorted([5, 5, 5, 5, 1] * 2)
    torch.testing.assert_close(parts[0], whole[0])
    torch.testing.assert_close(parts[2], whole[2])
    assert (parts[1] is None) == (whole[1] is None) == (not with_entropy)
    if parts[1] is not None:
        torch.testing.assert_close(parts[1], whole[1])


def test_entropy_is_of_the_policy_at_its_temperature(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    s = settings(
        request.getfixturevalue("world"), tmp_path, generate={"max_new_tokens": 6, "temperature": 0.5}
    )
    ppo, sampled, rollout = begun(s)
    row = next(i for i, (_, image) in enumerate(sampled.items) if image is None)
    made = sampled.generated
    keep = torch.cat([made.prompt_mask[row], made.response_mask[row]]) > 0
    ids = torch.cat([made.prompt_ids[row], made.response_ids[row]])[keep][None]
    ppo.actors.use(POLICY)
    with torch.no_grad():
        logits = ppo.actors.lmm.model.get_base_model()(input_ids=ids).logits[0]
    n = int(made.response_mask[row].sum())
    expected = torch.distributions.Categorical(logits=logits[-n - 1 : -1] / 0.5).entropy()
    torch.testing.assert_close(rollout.entropy[row, :n], expected, atol=1e-4, rtol=1e-4)
    assert bool((rollout.entropy[rollout.mask == 0] == 0).all())
    average = float(rollout.entropy.sum() / rollout.mask.sum())
    assert rollout_metrics(rollout, s, ppo.sum)["policy/entropy_avg"] == pytest.approx(average)


# --- quantized bases ---


@pytest.fixture(scope="module")
def wide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like ``world``'s, with a base whose layers bitsandbytes can pack."""
    folder = tmp_path_factory.mktemp("wide")
    source = request.getfixturevalue("world")
    build_tiny_llava(folder / "base", "clip", hidden_size=64)
    for name in ("images", "prompts.jsonl"):
        (folder / name).symlink_to(source / name)
    info = RewardInfo(model=ModelSettings(path=str(folder / "base")), facts=["captions"])
    torch.manual_seed(1)
    reward = RewardModel.start(info, LoraSettings(r=4))
    for parameter in reward.parameters():
        torch.nn.init.normal_(parameter.data, std=0.2)
    reward.save(folder / "reward", "a card")
    return folder


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantized_base_trains_after_generation(wide: Path, tmp_path: Path, bits: int) -> None:
    """The base packs itself when it generates; policy and value must learn all the same."""
    model = {"path": str(wide / "base"), "device": "cpu", "bits": bits, "dtype": "bfloat16"}
    started: list[dict[str, Tensor]] = []
    real = Ppo.train

    class Watched(Ppo):
        def train(self, *args: Any) -> None:
            started.append(self.actors.weights())
            real(self, *args)
            started.append(self.actors.weights())

    s = settings(wide, tmp_path / "run", model=model, steps=2, keep_every=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("align.ppo.Ppo", Watched)
        run(s)
    first, second = metrics(tmp_path / "run")
    assert first["objective/kl"] == 0 and second["objective/kl"] != 0
    before, after = started
    moved = {name: float((after[name] - before[name]).abs().max()) for name in before}
    for who in LEARNERS:
        assert all(size > 0 for name, size in moved.items() if f"lora_B.{who}" in name)
    assert first["policy/grad_norm"] > 0 and first["val/grad_norm"] > 0


def test_quantized_weights_are_not_split() -> None:
    with pytest.raises(ConfigError, match=r"shard_base splits weights of 16 or 32 bits, and model.bits is 4"):
        resolve(
            PpoSettings,
            None,
            ["output=x", "model.path=x", "model.bits=4", "reward_model=x", "data.path=x", "shard_base=true"],
        )
