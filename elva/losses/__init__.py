"""Losses and rewards of ELVA, for any PyTorch loop: they need torch and nothing else.

from elva.losses import ELVALoss

loss = ELVALoss()(query, positive, negatives)   # [B, D], [B, D], [B, N, D]
"""

from __future__ import annotations

from elva.losses.cached_infonce import CachedInfoNCELoss
from elva.losses.elva import ELVALoss
from elva.losses.grpo import GRPOLoss
from elva.losses.infonce import InfoNCELoss
from elva.losses.rewards import elva_reward, group_advantage, margin_reward, ranking_reward
from elva.losses.tiered_rank import TieredRankingLoss

__all__ = [
    "CachedInfoNCELoss",
    "ELVALoss",
    "GRPOLoss",
    "InfoNCELoss",
    "TieredRankingLoss",
    "elva_reward",
    "group_advantage",
    "margin_reward",
    "ranking_reward",
]
