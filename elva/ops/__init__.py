"""Operators with one dispatcher schema and a back-end per device (docs/architecture.md, "Operators")."""

from __future__ import annotations

from elva.ops.infonce import infonce, infonce_reference
from elva.ops.linear_logprob import LinearLogprob, linear_logprob, linear_logprob_reference
from elva.ops.rank_reward import RankReward, rank_reward, rank_reward_reference
from elva.ops.shared_prefix_attention import (
    PrefixLayout,
    shared_prefix_attention,
    shared_prefix_attention_reference,
)
from elva.ops.similarity_topk import TopK, score_ceiling, similarity_topk, similarity_topk_reference
from elva.ops.tiered_rank import TieredRank, tiered_rank, tiered_rank_reference

__all__ = [
    "LinearLogprob",
    "PrefixLayout",
    "RankReward",
    "TieredRank",
    "TopK",
    "infonce",
    "infonce_reference",
    "linear_logprob",
    "linear_logprob_reference",
    "rank_reward",
    "rank_reward_reference",
    "score_ceiling",
    "shared_prefix_attention",
    "shared_prefix_attention_reference",
    "similarity_topk",
    "similarity_topk_reference",
    "tiered_rank",
    "tiered_rank_reference",
]
