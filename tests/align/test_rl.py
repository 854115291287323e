"""Every figure here was computed by hand or by an independent loop."""

from __future__ import annotations

import math

import pytest
import torch

from align.rl import (
    explained_variance,
    gae,
    kl_penalty,
    last_index,
    policy_loss,
    shaped_rewards,
    value_loss,
    whiten,
)

MASK = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])


def ragged(*shape: int, seed: int = 0) -> tuple[torch.Generator, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, shape[1] + 1, (shape[0],), generator=generator)
    return generator, (torch.arange(shape[1])[None] < lengths[:, None]).float()


def test_kl_k1_is_the_positive_part():
    logp = torch.tensor([[-1.0, -2.0, -0.5], [-1.0, 0.0, 0.0]])
    ref = torch.tensor([[-1.5, -1.0, -0.5], [-3.0, -9.0, -9.0]])
    assert kl_penalty(logp, ref, MASK, "k1").tolist() == [[0.5, 0.0, 0.0], [2.0, 0.0, 0.0]]


def test_kl_k3_by_hand():
    logp = torch.tensor([[-1.0, -2.0, -0.5], [-1.0, 0.0, 0.0]])
    ref = torch.tensor([[-1.5, -1.0, -0.5], [-3.0, -9.0, math.inf]])
    expected = [[math.exp(-0.5) - 0.5, math.e - 2, 0.0], [math.exp(-2) + 1, 0.0, 0.0]]
    torch.testing.assert_close(kl_penalty(logp, ref, MASK, "k3"), torch.tensor(expected))


def test_k3_is_an_unbiased_kl():
    policy, reference = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    per_token = kl_penalty(policy.log()[None], reference.log()[None], torch.ones(1, 3), "k3")[0]
    exact = (policy * (policy / reference).log()).sum()
    torch.testing.assert_close((policy * per_token).sum(), exact)


def test_unknown_kl_form():
    with pytest.raises(ValueError, match="'k1' or 'k3'"):
        kl_penalty(MASK, MASK, MASK, "k2")  # type: ignore[arg-type]


def test_score_lands_on_the_last_real_token():
    kl = torch.tensor([[0.5, 0.0, 1.0], [2.0, 7.0, 7.0]])
    shaped = shaped_rewards(torch.tensor([3.0, -1.0]), kl, MASK, kl_coef=0.1)
    torch.testing.assert_close(shaped, torch.tensor([[-0.05, 0.0, 2.9], [-1.2, 0.0, 0.0]]))


def test_last_index_refuses_what_is_not_right_padded():
    assert last_index(MASK).tolist() == [2, 0]
    with pytest.raises(ValueError, match=r"rows \[1\] have no real token"):
        last_index(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    with pytest.raises(ValueError, match=r"rows \[0\]: padding before"):
        last_index(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))


def test_gae_with_ones_is_reward_to_go_minus_value():
    generator, mask = ragged(5, 7)
    rewards = torch.randn(5, 7, generator=generator) * mask
    values = torch.randn(5, 7, generator=generator)
    advantages, returns = gae(rewards, values, mask, 1.0, 1.0)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(advantages, (to_go - values) * mask)
    torch.testing.assert_close(returns, to_go * mask)


def test_gae_by_hand():
    rewards = torch.tensor([[0.0, 1.0, 2.0]])
    values = torch.tensor([[0.5, 1.0, 1.5]])
    # δ = (0 + .9·1 − .5, 1 + .9·1.5 − 1, 2 − 1.5) = (.4, 1.35, .5); factor γλ = .45
    advantages, returns = gae(rewards, values, torch.ones(1, 3), 0.9, 0.5)
    expected = [0.4 + 0.45 * (1.35 + 0.45 * 0.5), 1.35 + 0.45 * 0.5, 0.5]
    torch.testing.assert_close(advantages, torch.tensor([expected]))
    torch.testing.assert_close(returns, advantages + values)


def test_gae_never_reads_padding():
    generator, mask = ragged(4, 6, seed=1)
    rewards, values = torch.randn(2, 4, 6, generator=generator)
    clean = gae(rewards * mask, values * mask, mask, 0.99, 0.95)
    noise = torch.where(mask > 0, 0.0, math.nan)
    dirty = gae(rewards + noise, values + noise, mask, 0.99, 0.95)
    for a, b in zip(clean, dirty):
        assert torch.equal(a, b)


def test_whiten_over_real_tokens_only():
    x = torch.tensor([[1.0, 2.0, 3.0], [6.0, 100.0, math.nan]])
    # mean 3, population variance (4 + 1 + 0 + 9) / 4 = 3.5
    expected = torch.tensor([[-2.0, -1.0, 0.0], [3.0, 0.0, 0.0]]) / math.sqrt(3.5)
    torch.testing.assert_close(whiten(x, MASK), expected)


def test_whiten_of_parts_equals_whiten_of_the_whole():
    generator, mask = ragged(6, 5, seed=2)
    x = torch.randn(6, 5, generator=generator)
    real = x[mask > 0]
    over_all = [torch.stack([real.sum(), mask.sum()]), (real - real.mean()).square().sum()]
    handed_in: list[list[torch.Tensor]] = []
    joined = []
    for part in (slice(0, 2), slice(2, 6)):
        handed_in.append([])

        def all_reduce(own: torch.Tensor, calls: list[torch.Tensor] = handed_in[-1]) -> torch.Tensor:
            calls.append(own)
            return over_all[len(calls) - 1]

        joined.append(whiten(x[part], mask[part], all_reduce))
    torch.testing.assert_close(torch.cat(joined), whiten(x, mask))
    for first, second, expected in zip(*handed_in, over_all):
        torch.testing.assert_close(first + second, expected)


def test_policy_loss_by_hand():
    ratio = torch.tensor([[1.5, 0.5, 1.1], [0.5, 1.0, 1.0]])
    advantages = torch.tensor([[1.0, -1.0, 2.0], [1.0, 50.0, 50.0]])
    found = policy_loss(ratio.log(), torch.zeros(2, 3), advantages, MASK, clip=0.2)
    # gains are capped (1.5 → 1.2; 0.5 with A < 0 → 0.8), losses are not (0.5 with A > 0 stays)
    assert found.loss.item() == pytest.approx(-1.2 + 0.8 - 2.2 - 0.5)
    assert found.clipped.item() == 2
    assert found.tokens.item() == 4
    logs = [math.log(r) for r in (1.5, 0.5, 1.1, 0.5)]
    assert found.approx_kl.item() == pytest.approx(sum(0.5 * v * v for v in logs))


def test_policy_gradient_at_ratio_one_is_minus_advantage():
    generator, mask = ragged(4, 5, seed=3)
    logp = torch.randn(4, 5, generator=generator, requires_grad=True)
    advantages = torch.randn(4, 5, generator=generator)
    policy_loss(logp, logp.detach(), advantages, mask, 0.2).loss.backward()
    torch.testing.assert_close(logp.grad, -advantages * mask)


def test_infinite_padding_leaves_gradients_finite():
    logp = torch.tensor([[-1.0, 200.0, 0.0], [-2.0, math.inf, 0.0]], requires_grad=True)
    mask = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    policy_loss(logp, torch.full((2, 3), -300.0) + 299 * mask, torch.ones(2, 3), mask, 0.2).loss.backward()
    assert torch.isfinite(logp.grad).all()
    assert (logp.grad[:, 1:] == 0).all()
    values = logp.detach().clone().requires_grad_()
    value_loss(values, torch.zeros(2, 3), torch.ones(2, 3), mask, 0.2).loss.backward()
    assert torch.isfinite(values.grad).all()
    assert (values.grad[:, 1:] == 0).all()


def test_value_loss_by_hand():
    values = torch.tensor([[1.0, 0.1, 2.0], [0.0, 9.0, 9.0]])
    old = torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    returns = torch.tensor([[1.0, 1.0, 0.0], [3.0, 0.0, 0.0]])
    # clipped values .2, .1, 2, 0 → max squares .8², .9², 4, 9
    found = value_loss(values, old, returns, MASK, clip=0.2)
    assert found.loss.item() == pytest.approx(0.5 * (0.64 + 0.81 + 4 + 9))
    assert found.clipped.item() == 1
    assert found.tokens.item() == 4


def test_splitting_a_batch_leaves_losses_and_gradients_alone():
    generator, mask = ragged(6, 5, seed=4)
    logp, old, advantages, values, returns = torch.randn(5, 6, 5, generator=generator)

    def gradients(parts: list[slice]) -> tuple[torch.Tensor, torch.Tensor, float, float]:
        a, b = logp.clone().requires_grad_(), values.clone().requires_grad_()
        total, clipped = 0.0, 0
        for p in parts:
            policy = policy_loss(a[p], old[p], advantages[p], mask[p], 0.2)
            value = value_loss(b[p], old[p], returns[p], mask[p], 0.2)
            loss = (policy.loss + value.loss) / mask.sum()
            loss.backward()
            total += loss.item()
            clipped += int(policy.clipped + value.clipped)
        return a.grad, b.grad, total, clipped

    whole = gradients([slice(0, 6)])
    split = gradients([slice(0, 1), slice(1, 4), slice(4, 6)])
    for x, y in zip(whole, split):
        torch.testing.assert_close(torch.as_tensor(x), torch.as_tensor(y))


def test_explained_variance_of_several_processes_is_that_of_their_batch() -> None:
    torch.manual_seed(0)
    values, returns, mask = torch.randn(4, 5), torch.randn(4, 5) + 2, torch.ones(4, 5)
    mask[1, 3:] = 0
    whole = explained_variance(values, returns, mask)
    halves: list[list[torch.Tensor]] = [[], []]
    # two processes in turn: first each notes what it would send, then gets the sums
    for _ in range(4):
        for k, rows in enumerate((slice(0, 2), slice(2, 4))):
            sent: list[torch.Tensor] = []

            def both(x: torch.Tensor, sent: list[torch.Tensor] = sent, k: int = k) -> torch.Tensor:
                sent.append(x)
                n = len(sent) - 1
                return x + halves[1 - k][n] if n < len(halves[1 - k]) else x

            found = explained_variance(values[rows], returns[rows], mask[rows], both)
            halves[k] = sent
    torch.testing.assert_close(found, whole)


def test_explained_variance():
    returns = torch.tensor([[1.0, 2.0, 3.0], [6.0, 0.0, 0.0]])
    junk = torch.tensor([[0.0, 0.0, 0.0], [0.0, 9.0, -9.0]])
    assert explained_variance(returns + junk, returns, MASK).item() == 1.0
    assert explained_variance(torch.full((2, 3), 5.0), returns, MASK).item() == pytest.approx(0.0)
    # residuals .5, 1, 1.5, 3: variance is a quarter of the returns'
    assert explained_variance(returns / 2, returns, MASK).item() == pytest.approx(0.75)
    assert math.isnan(explained_variance(returns, torch.ones(2, 3), MASK).item())
