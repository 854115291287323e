"""The mathematics of PPO as pure functions of tensors.

Shapes: B rollouts, R response positions. A row's real tokens come first, padding after; ``mask`` is 1 at
real tokens (the end token included) and 0 at padding. Padding never enters a sum, a mean or a count.
Losses come as sums with their token counts, so that micro-batches (and processes) add up exactly.

Sources: Schulman et al., "Proximal policy optimization algorithms" (2017); Schulman et al., "High-dimensional
continuous control using generalized advantage estimation" (2016); thesis, chapter 9 (eq. 9.2) and appendix H.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]


@dataclass
class Rollout:
    """Sampled responses and what the four models say of them. Each tensor's first dimension is B."""

    response_ids: Tensor  #: (B, R) right-padded
    mask: Tensor  #: (B, R), 1 at real response tokens
    complete: Tensor  #: (B,) bool: the end token came
    logprobs: Tensor  #: (B, R) of the policy that sampled them
    entropy: Tensor  #: (B, R) of the policy's distribution, in nats
    ref_logprobs: Tensor  #: (B, R) of the frozen reference
    values: Tensor  #: (B, R)
    scores: Tensor  #: (B,) the reward model's, unscaled
    parts: dict[str, Tensor]  #: symbolic rewards by name, each (B,)
    rewards: Tensor  #: (B,) scaled scores plus parts: of whole responses, ahead of the KL penalty
    kl: Tensor  #: (B, R) the penalty's KL, per token
    advantages: Tensor  #: (B, R)
    returns: Tensor  #: (B, R)

    def __len__(self) -> int:
        return self.response_ids.shape[0]


@dataclass
class PolicyLoss:
    """Sums over the real tokens of one (micro-)batch; divide by the whole mini-batch's count of tokens."""

    loss: Tensor  #: differentiable
    clipped: Tensor  #: tokens where the clipped branch was the larger loss
    approx_kl: Tensor  #: ½(log π_old − log π)²
    tokens: Tensor


@dataclass
class ValueLoss:
    """Sums over the real tokens of one (micro-)batch; divide by the whole mini-batch's count of tokens."""

    loss: Tensor  #: differentiable
    clipped: Tensor
    tokens: Tensor


def kl_penalty(
    logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, form: Literal["k1", "k3"] = "k1"
) -> Tensor:
    """Per-token penalty (B, R) >= 0; 0 at padding.

    "k1": max(log π − log π_ref, 0), as in the thesis's code. "k3": e^d − 1 − d with d = log π_ref − log π.

    Raises:
        ValueError: another ``form``.
    """
    d = ref_logprobs - logprobs
    if form == "k1":
        kl = (-d).clamp(min=0)
    elif form == "k3":
        kl = torch.expm1(d) - d
    else:
        raise ValueError(f"kl form is {form!r}; choose 'k1' or 'k3'")
    return torch.where(mask > 0, kl, 0)


def last_index(mask: Tensor) -> Tensor:
    """(B, R) -> (B,) position of each row's last real token.

    Raises:
        ValueError: a row without a real token, or with padding ahead of a real token.
    """
    counts = (mask > 0).sum(-1)
    if bool((counts == 0).any()):
        raise ValueError(f"rows {(counts == 0).nonzero().flatten().tolist()} have no real token; drop them")
    ragged = ((mask[:, 1:] > 0) & (mask[:, :-1] == 0)).any(-1)
    if bool(ragged.any()):
        raise ValueError(
            f"rows {ragged.nonzero().flatten().tolist()}: padding before a real token; pad right"
        )
    return counts - 1


def shaped_rewards(rewards: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Per-token rewards (B, R): −β·kl everywhere, plus the response's reward (B,) at its last real token.

    On purpose unlike the reference code, which adds it at the last position of the padded row.
    """
    shaped = torch.where(mask > 0, -kl_coef * kl, 0)
    return shaped.scatter_add(1, last_index(mask).unsqueeze(1), rewards.to(shaped.dtype).unsqueeze(1))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimates and returns, both (B, R), 0 at padding.

    δ_t = r_t + γ·V_{t+1} − V_t and A_t = δ_t + γλ·A_{t+1}, with V = A = 0 after the last real token, cut
    responses included. returns = A + V. For γ = λ = 1 this is the sum of rewards to come, minus V.
    """
    values = torch.where(mask > 0, values, 0)
    rewards = torch.where(mask > 0, rewards, 0)
    advantage = torch.zeros_like(values[:, 0])
    next_value = torch.zeros_like(advantage)
    columns = []
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        # rows are right-padded: until its last real token a row's advantage stays 0
        advantage = torch.where(mask[:, t] > 0, delta + gamma * lam * advantage, 0)
        next_value = values[:, t]
        columns.append(advantage)
    advantages = torch.stack(columns[::-1], dim=1)
    return advantages, advantages + values


def whiten(x: Tensor, mask: Tensor, reduce: Reduce | None = None, eps: float = 1e-8) -> Tensor:
    """(x − mean) / sqrt(variance + eps) with both taken over all real tokens; 0 at padding.

    ``reduce`` sums a tensor over all processes, so that one batch of rollouts is whitened as a whole however
    it is split (thesis, appendix H). The variance is the population's.
    """
    total = reduce or _alone
    real = mask > 0
    sums = total(torch.stack([torch.where(real, x, 0).sum(), real.sum().to(x.dtype)]))
    mean, count = sums[0] / sums[1], sums[1]
    centred = torch.where(real, x - mean, 0)
    variance = total(centred.square().sum()) / count
    return centred * torch.rsqrt(variance + eps)


def _alone(x: Tensor) -> Tensor:
    return x


def policy_loss(logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, clip: float) -> PolicyLoss:
    """The clipped surrogate as a loss: Σ max(−A·ρ, −A·clamp(ρ, 1 ± clip)) over real tokens, ρ = π/π_old.

    All arguments are (B, R); only ``logprobs`` carries a gradient.
    """
    real = mask > 0
    # masked ahead of the exponential: an infinite ratio at padding would make its zero gradient NaN
    log_ratio = torch.where(real, logprobs - old, 0)
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - clip, 1 + clip)
    loss = torch.where(real, torch.maximum(plain, bounded), 0).sum()
    clipped = ((bounded > plain) & real).sum()
    approx_kl = (0.5 * log_ratio.detach().square()).sum()
    return PolicyLoss(loss, clipped, approx_kl, real.sum())


def value_loss(values: Tensor, old: Tensor, returns: Tensor, mask: Tensor, clip: float) -> ValueLoss:
    """½·max((V − G)², (V_clipped − G)²) summed over real tokens, V_clipped within ``clip`` of the old value.

    All arguments are (B, R); only ``values`` carries a gradient.
    """
    real = mask > 0
    values = torch.where(real, values, 0)  # ahead of the square, for the same reason
    near = old + (values - old).clamp(-clip, clip)
    plain = (values - returns).square()
    bounded = (near - returns).square()
    loss = 0.5 * torch.where(real, torch.maximum(plain, bounded), 0).sum()
    return ValueLoss(loss, ((bounded > plain) & real).sum(), real.sum())


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor, reduce: Reduce | None = None) -> Tensor:
    """1 − Var(returns − values) / Var(returns) over real tokens -> (); 1 is perfect, 0 is a constant guess.

    ``reduce`` sums a tensor over all processes. NaN where the returns do not vary.
    """
    total = reduce or _alone
    real = mask > 0
    both = torch.stack([returns[real], (returns - values)[real]]).double()
    count = total(both.new_tensor(float(both.shape[1])))
    centred = both - (total(both.sum(1)) / count)[:, None]
    spread, left = total(centred.square().sum(1)) / count
    return (1 - left / spread if float(spread) > 0 else spread.new_full((), float("nan"))).float()
