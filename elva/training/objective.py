"""From embeddings of rollouts and candidates to rewards, and to whom they are credited."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from elva.ops import rank_reward
from elva.training.config import RewardSettings


@dataclass
class Ranking:
    """Rewards of one micro-batch.

    ``reward [Q, G]``; ``rank [Q, G]`` of the positive; ``similarities [Q, G, 1 + C]``, positive first, and ``weights``,
    ∂reward/∂similarities (ranks are constants), both 0 where masked.
    """

    reward: torch.Tensor
    rank: torch.Tensor
    similarities: torch.Tensor
    weights: torch.Tensor


def rank_candidates(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    positive: torch.Tensor,
    negatives: torch.Tensor,
    settings: RewardSettings,
) -> Ranking:
    """Every query rollout ranks its candidates; rollout g of a query meets rollout g of a candidate (docs/method.md).

    Args:
        queries: [Q, G, D]. candidates: [C, Gc, D], Gc = G (per rollout) or 1 (shared by the rollouts).
        positive: [Q] int64, index of each query's positive. negatives: [Q, C] bool, True = a negative of it.
    """
    pool = candidates.transpose(0, 1).unsqueeze(0).expand(len(queries), -1, -1, -1)
    mask = negatives.unsqueeze(1).expand(-1, pool.shape[1], -1)
    result = rank_reward(queries, candidates[positive], pool, mask, **asdict(settings))
    return Ranking(result.total, result.rank, result.similarities, result.weights)


def credit_items(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    positive: torch.Tensor,
    negatives: torch.Tensor,
    settings: RewardSettings,
) -> tuple[Ranking, torch.Tensor]:
    """`credit: item`: all G × G similarities, so that each rollout is judged by what it did itself.

    A query rollout's reward is its mean over the candidates' rollouts. A candidate's rollout is credited with its
    first-order share w·s (w = ∂R/∂s) of the rewards of all queries that rank it: returned as [C, Gc]. Similarities
    and weights are those of the candidates' first rollouts.
    """
    rankings, shares = [], []
    for own in range(candidates.shape[1]):
        ranking = rank_candidates(queries, candidates[:, own : own + 1], positive, negatives, settings)
        share = (ranking.weights * ranking.similarities).mean(1)
        credit = share[:, 1:].sum(0).index_add(0, positive, share[:, 0])
        rankings.append(ranking)
        shares.append(credit)
    reward = torch.stack([ranking.reward for ranking in rankings]).mean(0)
    rank = torch.stack([ranking.rank for ranking in rankings]).float().mean(0)
    first = rankings[0]
    return Ranking(reward, rank, first.similarities, first.weights), torch.stack(shares, dim=1)


def pathwise_loss(reward: torch.Tensor, scale_rewards: str, max_completion_length: int) -> torch.Tensor:
    """The second half of ∇E[R]: R's own gradient, through the embeddings, on the scale of the score term.

    `GRPOLoss` with ``max_completion_length`` L follows (1 − 1/G)/L · E[R ∇log p] / (std + 1e-4): 1/L from its token
    average, 1 − 1/G because a rollout's reward is part of the mean that it is compared with. The same factors here
    make the sum of both terms proportional to ∇E[R] (exactly so with ``scale_rewards="none"``).

    Args:
        reward: [Q, G] with gradient; G = 1 gives 0, as the score term does.
    """
    generations = reward.shape[1]
    if generations == 1:
        return 0 * reward.sum()
    scale: torch.Tensor | float = 1.0
    if scale_rewards == "group":
        scale = reward.detach().std(1, keepdim=True) + 1e-4
    elif scale_rewards == "batch":
        scale = reward.detach().std() + 1e-4
    return -(reward / scale).mean() * (1 - 1 / generations) / max_completion_length
