"""One step of GRPO and RLOO against values computed apart: plain forward passes, and advantages by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PilImage
from torch import Tensor

from align.checkpoint import RunDir
from align.config import ModelSettings
from align.group_rl import build, read_prompts, run
from align.models.lmm import Lmm, load
from align.render import Renderer
from align.reward_model import RewardModel
from data.schema import Message, Prompt
from tests.align.test_group_rl import metrics, settings, world  # noqa: F401

#: four groups of three
SCORES = [1.0, 2.0, 6.0, 0.0, 0.0, 0.0, 4.0, 0.0, -1.0, 2.0, 2.0, 5.0]
ONLY_SCORES = {"correct_choice": 0, "correct_no": 0, "length": {}, "incomplete": 0}


def sampled(
    folder: Path, output: Path, method: str, moved: bool = False, **changes: Any
) -> tuple[Any, list[Prompt], dict[str, Any]]:
    """A trainer, fresh or with a policy that has left its start; the prompts of its first step, and what it
    made of them."""
    own = settings(folder, output / "run", method, symbolic=ONLY_SCORES, reward_scale=1.0, **changes)
    prompts, lmm = read_prompts(own), load(own.model)
    with RunDir.create(own.output, own, method) as run_dir:
        trainer = build(lmm, Renderer(lmm.processor), own, prompts, run_dir)
    if moved:
        torch.manual_seed(7)
        for name, parameter in trainer.model.named_parameters():
            if ".default." in name and "lora_B" in name:
                torch.nn.init.normal_(parameter.data, std=0.2)
    inputs = [row for row in trainer.train_dataset.select(range(4)) for _ in range(3)]
    made = trainer._generate_and_score_completions(inputs)
    return trainer, [next(p for p in prompts if p.id == row["id"]) for row in inputs], made


@pytest.fixture
def fixed_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RewardModel, "score", lambda *_, **__: torch.tensor(SCORES))


def logprobs(lmm: Lmm, folder: Path, asked: list[Prompt], made: dict[str, Any], row: int) -> Tensor:
    """(n,) of a row's response at temperature 0.7, by transformers' own forward pass over that row alone."""
    prompt = asked[row]
    assert prompt.image is not None
    picture = PilImage.open(folder / "images" / str(prompt.image.path))
    renderer = Renderer(lmm.processor)
    batch = renderer.prompt_batch([([Message(role="user", content=prompt.question)], picture)])
    response = made["completion_ids"][row][made["completion_mask"][row].bool()]
    ids = torch.cat([batch["input_ids"][0], response])[None]
    with torch.no_grad():
        logits = lmm.model(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=batch["pixel_values"]
        ).logits
    said = (logits[0, -len(response) - 1 : -1] / 0.7).log_softmax(-1)
    return said.gather(1, response[:, None])[:, 0]


def base_and_policy(folder: Path, output: Path, trainer: Any) -> tuple[Lmm, Lmm]:
    trainer.model.save_pretrained(output / "policy", selected_adapters=["default"])
    base = str(folder / "base")
    policy = ModelSettings(path=base, adapter=str(output / "policy"), device="cpu")
    return load(ModelSettings(path=base, device="cpu")), load(policy)


COOL = {"max_new_tokens": 8, "temperature": 0.7}


def test_grpos_reference_is_the_base(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The base with the policy's adapter off; the old policy has it on. The reward model's is in neither."""
    folder = request.getfixturevalue("world")
    trainer, asked, made = sampled(folder, tmp_path, "grpo", moved=True, generate=COOL)
    base, policy = base_and_policy(folder, tmp_path, trainer)
    apart = []
    for row in range(12):
        n = int(made["completion_mask"][row].sum())
        expected = logprobs(base, folder, asked, made, row)
        torch.testing.assert_close(made["ref_per_token_logps"][row, :n], expected, atol=1e-4, rtol=1e-4)
        old = logprobs(policy, folder, asked, made, row)
        torch.testing.assert_close(made["old_per_token_logps"][row, :n], old, atol=1e-4, rtol=1e-4)
        apart.append(float((old - expected).abs().max()))
    assert min(apart) > 0.01


@pytest.mark.usefixtures("fixed_scores")
def test_rloos_advantage_is_over_the_mean_of_the_others(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """A fresh policy's KL is 0, whatever its weight: (1, 2, 6) is over (4, 3.5, 1.5) by (-3, -1.5, 4.5)."""
    folder = request.getfixturevalue("world")
    _, _, made = sampled(folder, tmp_path, "rloo", beta=5.0)
    expected = [-3, -1.5, 4.5, 0, 0, 0, 4.5, -1.5, -3, -1.5, -1.5, 3]
    assert made["advantages"].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.usefixtures("fixed_scores")
def test_rloos_reward_is_less_the_kl(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = request.getfixturevalue("world")
    trainer, asked, made = sampled(folder, tmp_path, "rloo", moved=True, beta=0.5, generate=COOL)
    base, policy = base_and_policy(folder, tmp_path, trainer)
    kl = [
        float((logprobs(policy, folder, asked, made, i) - logprobs(base, folder, asked, made, i)).sum())
        for i in range(12)
    ]
    assert max(map(abs, kl)) > 0.1
    rewards = [score - 0.5 * k for score, k in zip(SCORES, kl, strict=True)]
    for i in range(12):
        group = range(i // 3 * 3, i // 3 * 3 + 3)
        others = sum(rewards[k] for k in group if k != i) / 2
        assert float(made["advantages"][i]) == pytest.approx(rewards[i] - others, abs=1e-3)


@pytest.mark.usefixtures("fixed_scores")
@pytest.mark.parametrize(
    ("scale", "spreads"),
    [
        ("none", (1, 1, 1, 1)),
        # of (1, 2, 6) about 3: (4 + 1 + 9) / 2; of (4, 0, -1) about 1 the same; of (2, 2, 5) about 3: 6 / 2
        ("group", (math.sqrt(7), 1, math.sqrt(7), math.sqrt(3))),
        # of all twelve: (91 - 12 x 1.75²) / 11
        ("batch", (math.sqrt(54.25 / 11),) * 4),
    ],
)
def test_grpos_advantage_is_over_the_groups_mean(
    request: pytest.FixtureRequest, tmp_path: Path, scale: str, spreads: tuple[float, ...]
) -> None:
    """And in units of the spread of the group's rewards, of the whole step's, or as it is."""
    folder = request.getfixturevalue("world")
    _, _, made = sampled(folder, tmp_path, "grpo", scale_rewards=scale, beta=5.0)
    over = [(-2, -1, 3), (0, 0, 0), (3, -1, -2), (-1, -1, 2)]
    expected = [x / spread for group, spread in zip(over, spreads, strict=True) for x in group]
    assert made["advantages"].tolist() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_the_kl_starts_at_zero(request: pytest.FixtureRequest, tmp_path: Path, method: str) -> None:
    """One update a step, so that the first line is of a policy that has not learned yet."""
    folder = request.getfixturevalue("world")
    how = {"steps": 2, "num_iterations": 1, "minibatch": 12, "micro_batch": 6, "save_every": 0}
    optim = {"lr": 3e-3, "schedule": "constant"}
    run(settings(folder, tmp_path / "run", method, optim=optim, **how))
    first, second = (row["objective/kl_per_token"] for row in metrics(tmp_path / "run"))
    assert first == 0 and abs(second) > 1e-6
