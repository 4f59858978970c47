"""Group-relative advantages, as in TRL: the definition behind `rank_reward` and `elva.losses.group_advantage`."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-4
"""Added to the standard deviation, as in TRL."""


def advantage(rewards: Tensor, scale_rewards: str) -> Tensor:
    """A = R − mean of the group, divided by (std + 1e-4) unless `scale_rewards` is ``"none"``; std is the unbiased one.

    Args:
        rewards: [B, G] floating point, G rollouts of each of B queries.
        scale_rewards: ``"group"``: std of each group; ``"batch"``: of all B × G rewards; ``"none"``.

    Returns:
        [B, G] in the dtype of `rewards`. A group of one rollout or of equal rewards gets exactly 0, a group with a NaN
        gets NaN.
    """
    if rewards.shape[1] < 2:
        return rewards - rewards
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    # Equal rewards round to a mean that is not quite theirs.
    equal = rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)
    centred = torch.where(equal, 0.0, centred)
    if scale_rewards == "none":
        return centred
    std = rewards.std(dim=1, keepdim=True) if scale_rewards == "group" else rewards.std()
    return centred / (std + EPSILON)
