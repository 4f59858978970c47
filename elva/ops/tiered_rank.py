"""Rank and tier of every negative by its similarity to the positive, and one log-sum-exp per tier.

Source: the tier loss, docs/method.md. All that a loss over tiers needs of N negatives are T numbers:

    tier_i = 1 + floor((r_i − 1) T / n)                    quantiles, r_i = rank of s(positive, n_i) among n used ones
    lse_t  = log Σ_{i in tier t} exp(s(query, n_i) / τ)

so that no pairs of negatives are formed. Ranks and tiers are constants for the derivative:
``d lse_t / d s_i = [i in t] exp(s_i/τ − lse_t) / τ``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from elva.ops import library
from elva.ops.tiered_rank_check import check_options, check_tensors

_OPTIONS = "float temperature, int num_tiers, float ceiling"


class TieredRank(NamedTuple):
    """Result of `tiered_rank`.

    logsumexp: [..., T] float32 (float64 for float64 input), −inf for an empty tier. Differentiable in the
        similarity to the query.
    rank, tier: [..., N] int64, from 1 (nearest to the positive); 0 for a negative that is left out. Equal
        similarities have one rank, the smallest, and one tier.
    """

    logsumexp: Tensor
    rank: Tensor
    tier: Tensor


def tiered_rank(
    similarity: Tensor,
    between: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 0.05,
    num_tiers: int = 3,
    false_negative_threshold: float | None = None,
    tier_edges: Sequence[float] | None = None,
) -> TieredRank:
    """Ranks, tiers and the log-sum-exp of every tier (module docstring).

    Args:
        similarity: [..., N] similarity of the query with each negative, any floating dtype; N may be 0.
        between: [..., N] similarity of the positive with each negative; treated as a constant.
        mask: [..., N] bool, True = use. Masked entries may hold NaN. A NaN of `between` counts as the nearest.
        temperature: τ > 0.
        num_tiers: T >= 1; the tiers are quantiles of `between` among the row's negatives in use.
        false_negative_threshold: negatives with `between` above it are suspected false negatives, tier 0, left out.
        tier_edges: strictly descending values of `between` that replace the quantiles: tier 1 is
            ``>= tier_edges[0]``, and so on; then T = ``len(tier_edges) + 1`` and `num_tiers` is not used.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, device or range; the message names it.

    Example:
        >>> similarity, between = torch.tensor([0.5, 0.1, 0.2]), torch.tensor([0.3, 0.9, 0.6])
        >>> tiered_rank(similarity, between, temperature=1.0).tier
        tensor([3, 1, 2])
    """
    rows = _rows(similarity, between, mask, temperature, num_tiers, false_negative_threshold, tier_edges)
    return _shaped(torch.ops.elva.tiered_rank.default(*rows), similarity.shape)


@library.without_autocast
def tiered_rank_reference(
    similarity: Tensor,
    between: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 0.05,
    num_tiers: int = 3,
    false_negative_threshold: float | None = None,
    tier_edges: Sequence[float] | None = None,
) -> TieredRank:
    """`tiered_rank` in plain PyTorch, differentiated by autograd: the definition the back-ends are tested against."""
    rows = _rows(similarity, between, mask, temperature, num_tiers, false_negative_threshold, tier_edges)
    return _shaped(_define(*rows), similarity.shape)


def _rows(
    similarity: Tensor,
    between: Tensor,
    mask: Tensor | None,
    temperature: float,
    num_tiers: int,
    false_negative_threshold: float | None,
    tier_edges: Sequence[float] | None,
) -> tuple[Any, ...]:
    """The operator's arguments: checked, two-dimensional, in the accumulation dtype."""
    check_tensors(similarity, between, mask)
    check_options(temperature, num_tiers, false_negative_threshold, tier_edges)
    dtype = torch.float64 if torch.float64 in (similarity.dtype, between.dtype) else torch.float32
    shape = (math.prod(similarity.shape[:-1]), similarity.shape[-1])
    edges = None
    if tier_edges is not None:
        num_tiers = len(tier_edges) + 1
        edges = torch.tensor(tier_edges, dtype=dtype, device=similarity.device)
    return (
        similarity.to(dtype).reshape(shape),
        between.detach().to(dtype).reshape(shape),
        None if mask is None else mask.reshape(shape),
        edges,
        temperature,
        num_tiers,
        math.inf if false_negative_threshold is None else false_negative_threshold,
    )


def _shaped(result: tuple[Tensor, Tensor, Tensor], shape: torch.Size) -> TieredRank:
    logsumexp, rank, tier = result
    return TieredRank(
        logsumexp.reshape(*shape[:-1], logsumexp.shape[-1]), rank.reshape(shape), tier.reshape(shape)
    )


def _define(
    similarity: Tensor,
    between: Tensor,
    mask: Tensor | None,
    edges: Tensor | None,
    temperature: float,
    num_tiers: int,
    ceiling: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition on rows [R, N]."""
    used = ~(between > ceiling)
    if mask is not None:
        used = used & mask
    nearer = _nearer(torch.where(used, between, -torch.inf))
    if edges is None:
        tier = 1 + nearer * num_tiers // used.sum(dim=1, keepdim=True).clamp(min=1)
    else:
        tier = 1 + (between[..., None] < edges).sum(dim=-1)
    tier = torch.where(used, tier, 0)
    logits = similarity / temperature
    # A finite floor: the log-sum-exp of an empty tier then has a gradient (of zero) and not NaN.
    floor = torch.finfo(logits.dtype).min / 2
    heads = []
    for t in range(1, num_tiers + 1):
        here = tier == t
        # A selection on both sides, so that NaN in masked entries reaches neither value nor gradient.
        head = torch.where(here, logits, floor).logsumexp(dim=1)
        heads.append(torch.where(here.any(dim=1), head, -torch.inf))
    return torch.stack(heads, dim=1), torch.where(used, nearer + 1, 0), tier


def _nearer(values: Tensor) -> Tensor:
    """For every value, how many of its row are larger (equal values get one number, NaN is the largest)."""
    if values.shape[1] == 0:
        return values.long()
    ordered, order = values.sort(dim=1, descending=True, stable=True)
    place = torch.arange(values.shape[1], device=values.device).expand_as(order)
    starts = torch.ones_like(order, dtype=torch.bool)
    both_nan = ordered[:, 1:].isnan() & ordered[:, :-1].isnan()
    starts[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]) & ~both_nan
    first = torch.where(starts, place, 0).cummax(dim=1).values
    return torch.empty_like(order).scatter_(1, order, first)


def _composite(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The operator where no kernel is registered for the device."""
    if arguments[0].device.type == "cpu":
        library.warn_without_native()
    return _define(*arguments)


def _composite_backward(
    grad_logsumexp: Tensor, similarity: Tensor, tier: Tensor, logsumexp: Tensor, temperature: float
) -> Tensor:
    here = (tier - 1).clamp(min=0)
    share = (similarity / temperature - logsumexp.gather(1, here)).exp()
    return torch.where(tier > 0, grad_logsumexp.gather(1, here) * share / temperature, 0)


def _triton(similarity: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The operator on CUDA devices. float64 is for checks, not for speed, so it has no kernel."""
    if similarity.dtype == torch.float64:
        return _composite(similarity, *arguments)
    from elva.ops.tiered_rank_triton import forward

    return forward(similarity, *arguments)


def _triton_backward(grad_logsumexp: Tensor, *arguments: Any) -> Tensor:
    if grad_logsumexp.dtype == torch.float64:
        return _composite_backward(grad_logsumexp, *arguments)
    from elva.ops.tiered_rank_triton import backward

    return backward(grad_logsumexp, *arguments)


def _fake(
    similarity: Tensor,
    between: Tensor,
    mask: Tensor | None,
    edges: Tensor | None,
    temperature: float,
    num_tiers: int,
    ceiling: float,
) -> tuple[Tensor, Tensor, Tensor]:
    rank = similarity.new_empty(similarity.shape, dtype=torch.int64)
    return similarity.new_empty(similarity.shape[0], num_tiers), rank, torch.empty_like(rank)


def _fake_backward(
    grad_logsumexp: Tensor, similarity: Tensor, tier: Tensor, logsumexp: Tensor, temperature: float
) -> Tensor:
    return similarity.new_empty(similarity.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logsumexp, _, tier = output
    ctx.save_for_backward(inputs[0], tier, logsumexp)
    ctx.temperature = inputs[4]


def _differentiate(ctx: Any, grad_logsumexp: Tensor, *_: None) -> tuple[Any, ...]:
    gradient = torch.ops.elva.tiered_rank_backward.default(
        grad_logsumexp, *ctx.saved_tensors, ctx.temperature
    )
    return gradient, *(None for _ in range(6))


library.define(
    "tiered_rank(Tensor similarity, Tensor between, Tensor? mask, Tensor? edges, "
    f"{_OPTIONS}) -> (Tensor logsumexp, Tensor rank, Tensor tier)"
)
library.define(
    "tiered_rank_backward(Tensor grad_logsumexp, Tensor similarity, Tensor tier, Tensor logsumexp, "
    "float temperature) -> Tensor"
)
library.implement("tiered_rank", _composite)
library.implement("tiered_rank_backward", _composite_backward)
if library.triton_available():
    library.implement("tiered_rank", _triton, "CUDA")
    library.implement("tiered_rank_backward", _triton_backward, "CUDA")
library.register_fake("tiered_rank", _fake)
library.register_fake("tiered_rank_backward", _fake_backward)
library.register_autograd("tiered_rank", _differentiate, _save)
library.refuse_second_derivative("tiered_rank_backward")
