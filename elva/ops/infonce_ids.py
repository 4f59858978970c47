"""From ids to what a kernel can compare: which keys are known positives of a query, and so no negatives of it."""

from __future__ import annotations

import torch
from torch import Tensor


def excluded_codes(query_ids: Tensor, key_ids: Tensor, pairs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """``(excluded [B, E], key_codes [M])`` int32: key m is no negative of query b where its code is in row b.

    Args:
        query_ids: ``[B]`` int64. key_ids: ``[M']`` int64 with M' <= M = ``count``; keys behind these have no id.
        pairs: ``[R, 2]`` int64, known positives: a query id and the id of one of its positives.

    E is the largest number of positives of a query id. Key ids are numbered densely, so that a negative code (padding:
    -1, no id: -2) stands for nothing.
    """
    known, codes = torch.unique(key_ids, return_inverse=True)
    key_codes = codes.new_full((count,), -2, dtype=torch.int32)
    key_codes[: key_ids.shape[0]] = codes.to(torch.int32)
    pairs = pairs[torch.isin(pairs[:, 1], known)]
    if pairs.shape[0] == 0 or query_ids.shape[0] == 0:
        return key_codes.new_empty(query_ids.shape[0], 0), key_codes
    numbered = torch.stack([pairs[:, 0], torch.searchsorted(known, pairs[:, 1].contiguous())], dim=1)
    owners, positives = torch.unique(numbered, dim=0).T.contiguous()
    first = torch.searchsorted(owners, query_ids.contiguous())
    behind = torch.searchsorted(owners, query_ids.contiguous(), right=True)
    place = first[:, None] + torch.arange(int((behind - first).max()), device=owners.device)
    found = positives[place.clamp(max=positives.shape[0] - 1)]
    return torch.where(place < behind[:, None], found, -1).to(torch.int32), key_codes
