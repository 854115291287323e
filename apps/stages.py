"""The stages that a recipe runs, for the command line and the chains. Nothing heavy is imported here."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Stage:
    """A command that takes a recipe: ``module.run(settings)`` does the work."""

    module: str
    #: name of its settings class in ``align.config``
    settings: str
    #: the setting that ``--limit`` sets
    limit: str
    help: str


STAGES = {
    "sft": Stage("align.sft", "SftSettings", "data.limit", "supervised fine-tuning on conversations"),
    "sample": Stage(
        "align.sample", "SampleSettings", "data.limit", "sample responses for annotators to compare"
    ),
    "reward": Stage("align.reward", "RewardSettings", "data.limit", "train a reward model on preferences"),
    # spelled "align reward audit"
    "reward-audit": Stage(
        "apps.reward_audit", "RewardAuditSettings", "limit", "what a reward model's scores depend on"
    ),
    "ppo": Stage("align.ppo", "PpoSettings", "data.limit", "reinforcement learning against a reward model"),
    "dpo": Stage("align.preference", "DpoSettings", "data.limit", "direct preference optimization, by TRL"),
    "grpo": Stage(
        "align.group_rl", "GrpoSettings", "data.limit", "group relative policy optimization, by TRL"
    ),
    "rloo": Stage(
        "align.group_rl", "RlooSettings", "data.limit", "REINFORCE with a leave-one-out baseline, by TRL"
    ),
    "best-of": Stage(
        "align.best_of", "BestOfSettings", "data.limit", "the best of n responses by a reward model"
    ),
    "rounds": Stage(
        "apps.rounds.run", "RoundsSettings", "prompts.limit", "sample, label, reward model and PPO in rounds"
    ),
    "eval": Stage("apps.evaluate", "EvalSettings", "limit", "run benchmarks and write a report"),
    # spelled "align eval score"
    "eval-score": Stage("apps.score", "ScoreSettings", "limit", "score answers from files, without a model"),
}


def run_stage(name: str, settings: Any) -> Any:
    """Run one stage with its settings; PPO keeps a page of its rollouts beside its metrics."""
    run = importlib.import_module(STAGES[name].module).run
    if name != "ppo":
        return run(settings)
    from apps.rollout_page import following

    with following() as watch:
        return run(settings, watch=watch)
