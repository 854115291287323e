"""What a step of PPO is measured by, under the names that TRL's PPO gave."""

from __future__ import annotations

import torch
from torch import Tensor

from align.config import PpoSettings
from align.rl import Reduce, Rollout, explained_variance, kl_penalty

#: per-token means of an update
LOSSES = (
    "loss/policy_avg",
    "policy/clipfrac_avg",
    "policy/approxkl_avg",
    "loss/value_avg",
    "val/clipfrac_avg",
)


def rollout_metrics(rollout: Rollout, settings: PpoSettings, total: Reduce) -> dict[str, float]:
    """Means over the step's responses, of all processes together; ``total`` sums a tensor over them.

    ``objective/kl`` is the sum over a response of log π − log π_ref, ``objective/kl_k3`` of the k3 estimate,
    ``objective/entropy`` of −log π; ``policy/entropy_avg`` is the mean of the distributions' entropies over
    tokens. ``reward/<name>`` are the parts whose sum is ``objective/rewards``. The first step has
    ``sampling/logprob_gap`` besides, see ``drawn_gap``.
    """
    mask = rollout.mask
    ratio = torch.where(mask > 0, rollout.logprobs - rollout.ref_logprobs, 0)
    penalty = -settings.kl_coef * rollout.kl.sum(1)
    per_row = {
        "objective/kl": ratio.sum(1),
        "objective/kl_k3": kl_penalty(rollout.logprobs, rollout.ref_logprobs, mask, "k3").sum(1),
        "objective/entropy": -torch.where(mask > 0, rollout.logprobs, 0).sum(1),
        "objective/scores": rollout.scores,
        "objective/rewards": rollout.rewards,
        "objective/non_score_reward": penalty,
        "objective/rlhf_reward": rollout.rewards + penalty,
        "reward/model": settings.reward_scale * rollout.scores,
        **{f"reward/{name}": part for name, part in rollout.parts.items()},
        "response/length": mask.sum(1).float(),
        "response/incomplete": (~rollout.complete).float(),
    }
    sums = total(torch.stack([x.float().sum() for x in per_row.values()]))
    count = total(sums.new_tensor(float(len(rollout))))
    tokens = total(mask.sum().float())
    return dict(zip(per_row, (sums / count).tolist())) | {
        "val/explained_var": float(explained_variance(rollout.values, rollout.returns, mask, total)),
        "policy/entropy_avg": float(total(rollout.entropy.sum()) / tokens),
    }


def drawn_gap(drawn: Tensor, scored: Tensor, mask: Tensor, total: Reduce) -> tuple[float, float]:
    """Mean |difference| of the log-probabilities (B, R) of tokens as drawn and as scored, of all processes
    together: of all real tokens, and of the responses' first ones."""
    gap = torch.where(mask > 0, (drawn - scored).abs(), 0)
    parts = (gap.sum(), mask.sum(), gap[:, 0].sum(), mask[:, 0].sum())
    every, tokens, first, rows = total(torch.stack([x.float() for x in parts])).tolist()
    return every / tokens, first / rows
