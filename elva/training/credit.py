"""From the embeddings of a step's rollouts to advantages, and to the loss that pulls on the embeddings themselves."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from elva.losses import ELVALoss, group_advantage
from elva.training.config import RLConfig
from elva.training.objective import Ranking, credit_items, pathwise_loss, rank_candidates


@dataclass
class Relations:
    """Who is whose candidate: ``positive [Q]`` indices, ``negatives`` and ``owned [Q, C]`` bool."""

    positive: torch.Tensor
    negatives: torch.Tensor
    owned: torch.Tensor


@dataclass
class Credit:
    """Rewards of a step, and advantages: ``queries [Q, G]``, ``candidates [C, G]`` or None without rollouts."""

    ranking: Ranking
    queries: torch.Tensor
    candidates: torch.Tensor | None


class Assessor:
    """Judges embeddings ``queries [Q, G, D]``, ``candidates [C, G or 1, D]`` as the configuration says."""

    def __init__(self, config: RLConfig) -> None:
        self.config = config
        self.surrogate_loss = ELVALoss(
            alpha=config.reward.alpha,
            epsilon=config.reward.epsilon,
            delta=config.reward.delta,
            temperature=config.surrogate.temperature,
            margin_temperature=config.surrogate.margin_temperature,
            tier_weight=config.surrogate.tier_weight,
        )

    @torch.no_grad()
    def credit(
        self,
        queries: torch.Tensor,
        candidates: torch.Tensor,
        relations: Relations,
        query_lengths: torch.Tensor,
        candidate_lengths: torch.Tensor | None,
    ) -> Credit:
        """Lengths ``[Q, G]`` and ``[C, G]`` in tokens; no candidates' lengths where they were not sampled."""
        arguments = (queries, candidates, relations.positive, relations.negatives, self.config.reward)
        if self.config.rl.credit == "item":
            ranking, shares = credit_items(*arguments)
            own = None if candidate_lengths is None else self._advantage(shares, candidate_lengths)
            return Credit(ranking, self._advantage(ranking.reward, query_lengths), own)
        ranking = rank_candidates(*arguments)
        advantages = self._advantage(ranking.reward, query_lengths)
        if candidate_lengths is None:
            return Credit(ranking, advantages, None)
        # one reward for all items of a rollout: a candidate of several queries takes the mean of theirs
        share = relations.owned.to(advantages.dtype)
        return Credit(ranking, advantages, share.T @ advantages / share.sum(0).clamp_min(1).unsqueeze(1))

    def embedding_loss(
        self, queries: torch.Tensor, candidates: torch.Tensor, relations: Relations
    ) -> torch.Tensor:
        """∇R at [RET] (pathwise) or a smooth ranking and margin loss there (surrogate); 0 for `score`."""
        rl = self.config.rl
        if rl.gradient == "score":
            return queries.new_zeros(())
        if rl.gradient == "pathwise":
            reward = rank_candidates(
                queries, candidates, relations.positive, relations.negatives, self.config.reward
            ).reward
            return pathwise_loss(reward, rl.scale_rewards, rl.max_completion_length)
        generations = queries.shape[1]
        negatives = candidates.squeeze(1)
        if candidates.shape[1] > 1:
            pool = candidates.transpose(0, 1).unsqueeze(0)
            negatives = pool.expand(len(queries), -1, -1, -1)
        positive = candidates[relations.positive].expand(-1, generations, -1)
        mask = relations.negatives.unsqueeze(1).expand(-1, generations, -1)
        return self.config.surrogate.weight * self.surrogate_loss(queries, positive, negatives, mask)

    def _advantage(self, reward: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        rl = self.config.rl
        cost = rl.length_penalty * lengths / rl.max_completion_length
        return group_advantage(reward - cost, scale_rewards=rl.scale_rewards)
