import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elva.ops import rank_reward_reference
from elva.training.config import RewardSettings
from elva.training.objective import credit_items, rank_candidates, similarity_weights


def group(seed: int, queries=3, generations=4, candidates=6, own=1, width=5):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(queries, generations, width, generator=generator, dtype=torch.float64)
    c = torch.randn(candidates, own, width, generator=generator, dtype=torch.float64)
    positive = torch.randperm(candidates, generator=generator)[:queries]
    negatives = torch.rand(queries, candidates, generator=generator) > 0.3
    negatives[torch.arange(queries), positive] = False
    return q, c, positive, negatives


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("clamp", [True, False])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_weights_are_the_rewards_gradient(seed, normalize, clamp):
    """w = dR/ds, checked by moving one similarity: in two dimensions a unit vector is free to have any cosine."""
    config = RewardSettings(delta=-0.2, normalize_gamma=normalize, gamma=0.3, clamp_negative_weight=clamp)
    generator = torch.Generator().manual_seed(seed)
    s = (torch.rand(1, 1, 6, generator=generator, dtype=torch.float64) * 1.8 - 0.9).requires_grad_()
    keys = torch.stack([s, (1 - s**2).sqrt()], dim=-1)
    valid = torch.rand(1, 5, generator=generator) > 0.2
    result = rank_reward_reference(
        torch.tensor([[[1.0, 0.0]]], dtype=torch.float64),
        keys[:, :, 0],
        keys[:, :, 1:],
        valid.unsqueeze(1),
        alpha=config.alpha,
        epsilon=config.epsilon,
        delta=config.delta,
        gamma=config.gamma,
        normalize_gamma=normalize,
        clamp_negative_weight=clamp,
    )
    (expected,) = torch.autograd.grad(result.total.sum(), s)
    torch.testing.assert_close(similarity_weights(s.detach(), valid, config), expected, atol=1e-9, rtol=1e-9)


def test_rollout_g_meets_rollout_g():
    q, c, positive, negatives = group(0, own=4)
    config = RewardSettings()
    together = rank_candidates(q, c, positive, negatives, config)
    for g in range(4):
        alone = rank_candidates(q[:, g : g + 1], c[:, g : g + 1], positive, negatives, config)
        torch.testing.assert_close(together.reward[:, g : g + 1], alone.reward)


def test_item_credit_averages_over_candidate_rollouts_and_scatters_shares():
    q, c, positive, negatives = group(1, own=3)
    config = RewardSettings()
    ranking, shares = credit_items(q, c, positive, negatives, config)
    rewards = [rank_candidates(q, c[:, g : g + 1], positive, negatives, config).reward for g in range(3)]
    torch.testing.assert_close(ranking.reward, torch.stack(rewards).mean(0))
    expected = torch.zeros_like(shares)
    for g in range(3):
        similarities = rank_candidates(q, c[:, g : g + 1], positive, negatives, config).similarities
        weighted = (similarity_weights(similarities, negatives, config) * similarities).mean(1)
        for row in range(len(q)):
            expected[positive[row], g] += weighted[row, 0]
            expected[:, g] += weighted[row, 1:]
    torch.testing.assert_close(shares, expected)
