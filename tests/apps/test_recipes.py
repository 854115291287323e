"""Every shipped recipe is a valid one, and says what the thesis says (chapter 9, appendix H)."""

from __future__ import annotations

from pathlib import Path

import pytest

from align import config
from align.config import EvalSettings, PpoSettings, RewardSettings, RunSettings, SftSettings, resolve
from apps import cli, shipped
from data.formats import choose
from data.mix import MixSettings

ALL = sorted(str(path.relative_to(shipped.RECIPES)) for path in shipped.RECIPES.rglob("*.yaml"))
MIXES = [name for name in ALL if name.startswith("data/")]
RECIPES = [name for name in ALL if name not in MIXES]


def _class(name: str) -> type[RunSettings]:
    """The first words of a recipe's name are its stage: ``sft_plus`` is one for ``align sft``."""
    words = Path(name).stem.split("_")
    stage = next(s for s in ("-".join(words[:n]) for n in (2, 1)) if s in cli.STAGES)
    return getattr(config, cli.STAGES[stage].settings)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_parses(name: str) -> None:
    assert resolve(_class(name), shipped.RECIPES / name).output.startswith("runs/")


@pytest.mark.parametrize("name", MIXES)
def test_mixtures_parse_and_name_known_formats(name: str) -> None:
    settings = resolve(MixSettings, shipped.RECIPES / name)
    for source in settings.sources.values():
        fmt = choose(source.format or "", source.given or settings.kind)
        assert fmt.name == source.format
        assert fmt.required <= source.options.keys() <= fmt.options.keys()


@pytest.mark.parametrize("size", ["7b", "13b"])
def test_every_stage_has_a_recipe(size: str) -> None:
    for stage in ("sft", "sft_plus", "reward", "reward_fact", "ppo", "eval"):
        assert f"llava15_{size}/{stage}.yaml" in RECIPES


def test_outputs_do_not_collide() -> None:
    outputs = [resolve(_class(name), shipped.RECIPES / name).output for name in RECIPES]
    assert len(set(outputs)) == len(outputs)


@pytest.mark.parametrize("size", ["7b", "13b"])
def test_thesis_numbers(size: str) -> None:
    folder = shipped.RECIPES / f"llava15_{size}"
    ppo = resolve(PpoSettings, folder / "ppo.yaml")
    assert (ppo.rollouts, ppo.epochs, ppo.minibatch, ppo.steps) == (512, 2, 256, 500)
    assert (ppo.optim.lr, ppo.optim.schedule, ppo.optim.warmup_steps, ppo.optim.max_grad_norm) == (
        3e-5,
        "cosine",
        5,
        1,
    )
    assert (ppo.kl_coef, ppo.gamma, ppo.lam, ppo.clip, ppo.value_clip, ppo.value_coef) == (
        0.1,
        1,
        1,
        0.2,
        0.2,
        0.1,
    )
    assert (ppo.generate.max_new_tokens, ppo.generate.temperature) == (896, 1.0)
    assert ppo.symbolic.length == {"general": -10, "detail": -40, "complex": 2.5}
    assert (ppo.symbolic.correct_choice, ppo.symbolic.incomplete) == (2, -8)
    assert ppo.lora.r == 64
    for name in ("reward", "reward_fact"):
        reward = resolve(RewardSettings, folder / f"{name}.yaml")
        assert (reward.optim.lr, reward.epochs, reward.holdout, reward.lora.r) == (2e-5, 1, 500, 64)
        assert (reward.centre, reward.batch_size * reward.grad_accum) == (1e-3, 32)
    assert reward.max_facts == {"captions": 5, "rationales": 3} and reward.facts == ["captions", "rationales"]


def test_the_7b_policy_is_judged_by_the_13b_reward_model() -> None:
    ppo = resolve(PpoSettings, shipped.RECIPES / "llava15_7b/ppo.yaml")
    reward = resolve(RewardSettings, shipped.RECIPES / "llava15_13b/reward_fact.yaml")
    assert ppo.reward_model == reward.output
    assert ppo.model.path != reward.model.path


@pytest.mark.parametrize("size", ["7b", "13b"])
def test_each_stage_starts_from_the_one_before(size: str) -> None:
    folder = shipped.RECIPES / f"llava15_{size}"
    sft = resolve(SftSettings, folder / "sft_plus.yaml")
    ppo = resolve(PpoSettings, folder / "ppo.yaml")
    assert ppo.model.adapters == [f"{sft.output}/adapter"]
    judged = resolve(EvalSettings, folder / "eval.yaml")
    assert judged.model.adapters == [f"{sft.output}/adapter", f"{ppo.output}/policy"]


def test_what_is_learned_from_is_not_what_is_evaluated() -> None:
    """Best-of-n writes conversations to learn; the study gives it others, and evaluates its answers."""
    found = {name: getattr(resolve(_class(name), shipped.RECIPES / name), "data", None) for name in RECIPES}
    paths = {name: data.path for name, data in found.items() if data is not None}
    assert paths["world/best_of.yaml"] == paths["world/ppo.yaml"] == "runs/world/data/prompts.jsonl"
    assert not [name for name, path in paths.items() if "/eval/" in str(path)]
