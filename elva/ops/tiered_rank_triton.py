"""Launches the Triton kernels of `tiered_rank`. Imported at the first call on a CUDA device: it needs triton.

With ``TRITON_INTERPRET=1`` set before the import, both functions also run on CPU tensors.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from elva.kernels.tiered_rank import logsumexp_kernel, ranks_kernel, similarity_gradients_kernel

BLOCK_PAIRS = 64
BLOCK = 256


def forward(
    similarity: Tensor,
    between: Tensor,
    mask: Tensor | None,
    edges: Tensor | None,
    temperature: float,
    num_tiers: int,
    ceiling: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """logsumexp [R,T], rank and tier [R,N]; arguments as the operator's, float32."""
    rows, count = similarity.shape
    rank = similarity.new_empty((rows, count), dtype=torch.int64)
    tier = torch.empty_like(rank)
    logsumexp = similarity.new_empty((rows, num_tiers))
    similarity, between = similarity.contiguous(), between.contiguous()
    # Without a mask or edges any pointer does, since it is not read.
    flags = between if mask is None else mask.contiguous().view(torch.uint8)
    with torch.cuda.device_of(similarity):
        if rank.numel():
            ranks_kernel[(rows, triton.cdiv(count, BLOCK_PAIRS))](
                between,
                flags,
                between if edges is None else edges.contiguous(),
                rank,
                tier,
                count,
                num_tiers,
                ceiling,
                HAS_MASK=mask is not None,
                HAS_EDGES=edges is not None,
                BLOCK=BLOCK_PAIRS,
            )
        if rows:
            logsumexp_kernel[(rows, num_tiers)](
                similarity, tier, logsumexp, count, num_tiers, 1 / temperature, BLOCK=BLOCK
            )
    return logsumexp, rank, tier


def backward(
    grad_logsumexp: Tensor, similarity: Tensor, tier: Tensor, logsumexp: Tensor, temperature: float
) -> Tensor:
    """Gradient of similarity [R,N]."""
    grad = similarity.new_empty(similarity.shape)
    if grad.numel() == 0:
        return grad
    with torch.cuda.device_of(similarity):
        similarity_gradients_kernel[(triton.cdiv(grad.numel(), BLOCK),)](
            grad_logsumexp.contiguous(),
            similarity.contiguous(),
            tier.contiguous(),
            logsumexp.contiguous(),
            grad,
            grad.numel(),
            similarity.shape[1],
            logsumexp.shape[1],
            1 / temperature,
            BLOCK=BLOCK,
        )
    return grad
