import torch

from elva.training.config import RewardSettings
from elva.training.objective import credit_items, rank_candidates


def group(seed: int, queries=3, generations=4, candidates=6, own=1, width=5):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(queries, generations, width, generator=generator, dtype=torch.float64)
    c = torch.randn(candidates, own, width, generator=generator, dtype=torch.float64)
    positive = torch.randperm(candidates, generator=generator)[:queries]
    negatives = torch.rand(queries, candidates, generator=generator) > 0.3
    negatives[torch.arange(queries), positive] = False
    return q, c, positive, negatives


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
        alone = rank_candidates(q, c[:, g : g + 1], positive, negatives, config)
        weighted = (alone.weights * alone.similarities).mean(1)
        for row in range(len(q)):
            expected[positive[row], g] += weighted[row, 0]
            expected[:, g] += weighted[row, 1:]
    torch.testing.assert_close(shares, expected)
