"""Rows of all processes in one tensor, with gradients back to where each row came from."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


class Gathered(NamedTuple):
    """``rows``: those of all ranks, in the order of the ranks; ``offset``: where this rank's begin."""

    rows: Tensor
    offset: int


def gather_rows(local: Tensor) -> Gathered:
    """All ranks' ``[N_r, ...]`` as one ``[sum N_r, ...]``, sent in their own dtype; N_r may differ between ranks.

    The gradient of a row is the sum of what all ranks' losses send to it. A collective: every rank must call it.
    """
    sizes = _sizes(local)
    offset = sum(sizes[: dist.get_rank()])
    return Gathered(_GatherRows.apply(local, sizes, offset), offset)


def place_of(local: Tensor) -> tuple[int, int]:
    """Where this rank's rows would begin among all ranks' rows, and how many there are. A collective."""
    sizes = _sizes(local)
    return sum(sizes[: dist.get_rank()]), sum(sizes)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, sizes: list[int], offset: int) -> Tensor:
        ctx.rows = slice(offset, offset + local.shape[0])
        # Collectives want equal shapes: shorter shards are padded, and cut again.
        padded = local.new_zeros(max(sizes), *local.shape[1:])
        padded[: local.shape[0]] = local
        received = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(received, padded)
        return torch.cat([part[:size] for part, size in zip(received, sizes, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.rows], None, None


def _sizes(local: Tensor) -> list[int]:
    size = torch.tensor([local.shape[0]], device=local.device)
    received = [torch.empty_like(size) for _ in range(dist.get_world_size())]
    dist.all_gather(received, size)
    return [int(part) for part in received]
