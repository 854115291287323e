"""PPO's siblings in a chain: DPO, GRPO and best-of-n on the same labels, prompts and reward models."""

from __future__ import annotations

import math
from pathlib import Path

from apps.chain import Chain
from apps.scheduler import Step
from data.jsonl import read_json, write_json

#: responses of best-of-n
BEST_OF = 4


def siblings(chain: Chain) -> list[Step]:
    """The steps behind those of ``Chain.arm("ppo")`` and ``Chain.arm("ppo_fact")``.

    DPO learns from the labels that the reward models learn from. GRPO has Fact-RLHF's reward model, prompts,
    steps and number of responses. Best-of-n has RLHF's reward model, which needs nothing but the picture: it
    answers the descriptions at T = 0.7, and nothing else.
    """
    shared, rollouts = chain.plus | chain.pictures, chain.scale.rollouts
    labels = {"data.path": chain.at("labels/train.jsonl"), "holdout": 0}
    prompts = {
        "data.path": chain.at("data/prompts.jsonl"),
        "reward_model": chain.at("reward_fact"),
        "steps": chain.scale.ppo_steps,
        "rollouts": rollouts,
        "minibatch": rollouts // 2,
        "micro_batch": math.gcd(16, rollouts // 2),
    }
    described = {
        "data.path": chain.at("data/eval/describe.jsonl"),
        "reward_model": chain.at("reward"),
        "n": BEST_OF,
    }
    own = {"root": str(chain.root)}
    return [
        chain.stage("dpo", "dpo", "world/dpo", "labels", shared | labels),
        chain.evaluate(chain.plus | {"model.adapter": chain.at("dpo/policy")}, "dpo"),
        chain.stage("grpo", "grpo", "world/grpo", "reward_fact", shared | prompts),
        chain.evaluate(chain.plus | {"model.adapter": chain.at("grpo/policy")}, "grpo"),
        chain.stage("best_of", "best-of", "world/best_of", "reward", shared | described),
        Step("eval_best_of", score_best_of, own, ("best_of",), chain.root / "eval_best_of/DONE"),
    ]


def score_best_of(root: str) -> None:
    """Score the kept descriptions as the others at T = 0.7 are, into an evaluation's layout."""
    from align.config import ScoreSettings
    from apps import score

    folder = Path(root) / "eval_best_of"
    settings = ScoreSettings(
        output=str(folder / "t0.7"),
        benchmarks={"describe": f"{root}/data/eval/describe.jsonl"},
        images=f"{root}/data",
        world=f"{root}/data",
        answers=f"{root}/best_of/answers.jsonl",
        name=f"best of {BEST_OF}",
    )
    score.run(settings)
    found = read_json(folder / "t0.7/results.json")
    found["benchmarks"] = {"describe@0.7": found["benchmarks"]["describe"]}
    write_json(folder / "results.json", found)
    (folder / "DONE").touch()
