"""The rank reward: cosine similarities, rank of the positive, margin and ranking reward in one operator.

Source: ELVA (arXiv 2606.20280), rewards of stage 3. With s_i = cos(query, candidate_i) inside one rollout, sorted
in descending order, the positive at rank r and the negatives at ranks k (from 1):

    R_margin = max(0, s_pos − max_i s_neg,i − δ)
    R_rank   = s_pos / (1 + ln r) − γ Σ_{k≠r} s_(k) (ln k − 1)
    R_total  = α R_margin + ε R_rank

Ranks are constants for the derivative: R is piecewise linear in the similarities. The paper is silent on ties: here a
negative that ties with the positive stands before it (otherwise an encoder that maps everything to one point would
rank every positive first), and negatives that tie with each other stand in the order of their index.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from elva.ops import library
from elva.ops.advantage import advantage
from elva.ops.norms import in_range, inverse_norm
from elva.ops.rank_reward_check import check_options, check_scale, check_tensors

_OPTIONS = (
    "float delta, float gamma, bool normalize_gamma, float alpha, float epsilon, float log_base, "
    "bool clamp_negative_weight"
)
_INPUTS = "Tensor query, Tensor positive, Tensor negatives, Tensor? mask"
_OUTPUTS = (
    "Tensor similarities, Tensor rank, Tensor margin, Tensor ranking, Tensor total, "
    "Tensor weights, Tensor advantage"
)
_GRADIENTS = "Tensor grad_similarities, Tensor grad_margin, Tensor grad_ranking, Tensor grad_total"


class RankReward(NamedTuple):
    """Result of `rank_reward`; the floating-point fields are float32, or float64 for float64 input.

    similarities: [B, G, 1+N] cosine of the query with the positive (index 0) and each negative, in [−1, 1];
        0 for a masked negative. rank: [B, G] int64, the positive's rank, from 1 (best).
    margin, ranking, total: [B, G] R_margin, R_rank and R_total = α R_margin + ε R_rank.
    weights: [B, G, 1+N] ∂R_total/∂s of every similarity; 0 for a masked negative. Has no gradient.
    advantage: [B, G] of R_total over the G rollouts of its query, without gradient; None where it was not asked for.
    """

    similarities: Tensor
    rank: Tensor
    margin: Tensor
    ranking: Tensor
    total: Tensor
    weights: Tensor
    advantage: Tensor | None


def rank_reward(
    query: Tensor,
    positive: Tensor,
    negatives: Tensor,
    mask: Tensor | None = None,
    *,
    alpha: float = 0.4,
    epsilon: float = 0.6,
    delta: float = 0.1,
    gamma: float = 0.5,
    normalize_gamma: bool = True,
    log_base: float = math.e,
    clamp_negative_weight: bool = False,
    scale_rewards: str | None = None,
) -> RankReward:
    """Similarities, rank of the positive and ELVA's rewards for every query and rollout (module docstring).

    Args:
        query: [B, G, D] float32, float64, bfloat16 or float16; B queries, G rollouts. Need not be normalised.
        positive: [B, G, D], or [B, 1, D] when the rollouts share it; dtype and device of `query`.
        negatives: [B, G, N, D], or [B, 1, N, D] when the rollouts share them; N may be 0.
        mask: [B, G, N] or [B, 1, N] bool, True = use. Masked negatives are never read: they may hold NaN.
        alpha, epsilon: weights of the margin and the ranking reward (paper: 0.4 and 0.6).
        delta: margin δ, a difference of cosines. The paper does not give it.
        gamma: weight γ of the negatives in the ranking reward. The paper does not give it.
        normalize_gamma: divide `gamma` by Σ_{k=1}^{C} max(ln k − 1, 0), C = 1 + number of unmasked negatives
            (γ = 0 where that sum is 0), which makes it independent of the number of negatives.
        log_base: base of every logarithm above, > 1.
        clamp_negative_weight: max(ln k − 1, 0) instead of ln k − 1, which is negative at ranks 1 and 2: there the
            printed formula rewards a *higher* similarity of a negative.
        scale_rewards: None, or how R_total becomes group-relative advantages (names as in TRL): ``"group"`` gives
            (R − mean) / (std + 1e-4) over the G rollouts of a query, with the unbiased std; ``"none"`` R − mean. One
            rollout, or equal rewards, give exactly 0, a NaN among them NaN. On GPUs one program then ranks all
            rollouts of a query one after the other: no further launch, but B programs in that kernel instead of B·G.

    Returns:
        RankReward. Differentiable in similarities, margin, ranking and total; a zero vector has cosine 0 and gradient
        0, and among equally hard negatives the first takes the margin's gradient. Shared candidates get the sum over
        the rollouts.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, device or range; the message names it.

    Example:
        >>> query, positive, negatives = torch.randn(2, 8, 64), torch.randn(2, 8, 64), torch.randn(2, 1, 100, 64)
        >>> rank_reward(query, positive, negatives).total.shape
        torch.Size([2, 8])
    """
    check_tensors(query, positive, negatives, mask)
    check_options(delta, gamma, alpha, epsilon, log_base)
    check_scale(scale_rewards)
    outputs = torch.ops.elva.rank_reward.default(
        query,
        positive,
        negatives,
        mask,
        delta,
        gamma,
        normalize_gamma,
        alpha,
        epsilon,
        log_base,
        clamp_negative_weight,
        scale_rewards,
    )
    result = RankReward(*outputs)
    return result._replace(advantage=None) if scale_rewards is None else result


@library.without_autocast
def rank_reward_reference(
    query: Tensor,
    positive: Tensor,
    negatives: Tensor,
    mask: Tensor | None = None,
    *,
    alpha: float = 0.4,
    epsilon: float = 0.6,
    delta: float = 0.1,
    gamma: float = 0.5,
    normalize_gamma: bool = True,
    log_base: float = math.e,
    clamp_negative_weight: bool = False,
    scale_rewards: str | None = None,
) -> RankReward:
    """`rank_reward` in plain PyTorch, differentiated by autograd: the definition the back-ends are tested against.

    Same arguments, result and errors. Holds [B, G, 1+N, D] intermediates.
    """
    check_tensors(query, positive, negatives, mask)
    check_options(delta, gamma, alpha, epsilon, log_base)
    check_scale(scale_rewards)
    query, candidates, used = _gather(query, positive, negatives, mask)
    (query, _), (candidates, _) = in_range(query), in_range(candidates)
    # One reduction over one tensor for positive and negatives alike, so that equal vectors give equal bits.
    products = (query * candidates).sum(-1)
    similarities = products * inverse_norm(query).squeeze(-1) * inverse_norm(candidates).squeeze(-1)
    rank, margin_weight, ranking_weight = _weights(
        similarities.detach(), used, delta, gamma, normalize_gamma, log_base, clamp_negative_weight
    )
    margin = torch.relu(_gap(similarities, used) - delta)
    ranking = (ranking_weight * similarities).sum(-1)
    total = alpha * margin + epsilon * ranking
    weights = alpha * margin_weight + epsilon * ranking_weight
    advantages = None if scale_rewards is None else advantage(total.detach(), scale_rewards)
    return RankReward(similarities, rank, margin, ranking, total, weights, advantages)


def _gather(
    query: Tensor, positive: Tensor, negatives: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Query [B,G,1,D], candidates [B,G,1+N,D] (masked ones zero) in the accumulation dtype, used [B,G,1+N]."""
    groups, count = query.shape[1], negatives.shape[2]
    dtype = torch.promote_types(query.dtype, torch.float32)
    negatives = negatives.to(dtype).expand(-1, groups, -1, -1)
    used = torch.ones(*query.shape[:2], 1 + count, dtype=torch.bool, device=query.device)
    if mask is not None:
        used[..., 1:] = mask
        # A selection, not a product: padding may hold NaN.
        negatives = torch.where(used[..., 1:, None], negatives, 0.0)
    candidates = torch.cat([positive.to(dtype).expand(-1, groups, -1)[:, :, None], negatives], dim=2)
    return query.to(dtype)[:, :, None], candidates, used


def _gap(similarities: Tensor, used: Tensor) -> Tensor:
    """s_pos − max_i s_neg,i [B,G]; −inf without negatives, so that no margin is earned there."""
    if similarities.shape[-1] == 1:
        return torch.full_like(similarities[..., 0], -math.inf)
    hardest = similarities[..., 1:].masked_fill(~used[..., 1:], -math.inf).max(-1).values
    return torch.where(used[..., 1:].any(-1), similarities[..., 0] - hardest, -math.inf)


def _negative_ranks(similarities: Tensor, used: Tensor) -> Tensor:
    """Rank k of every negative among all candidates, from 1 [B,G,N] int64; meaningless where masked."""
    positive, negatives = similarities[..., :1], similarities[..., 1:]
    order = negatives.masked_fill(~used[..., 1:], -math.inf).argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(1, 1 + negatives.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places) + (positive > negatives)


def _weights(
    similarities: Tensor,
    used: Tensor,
    delta: float,
    gamma: float,
    normalize_gamma: bool,
    log_base: float,
    clamp_negative_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rank of the positive [B,G], and dR_margin/ds and dR_rank/ds [B,G,1+N]."""
    dtype, base = similarities.dtype, math.log(log_base)
    positive, negatives = similarities[..., :1], similarities[..., 1:]
    rank = 1 + ((negatives >= positive) & used[..., 1:]).sum(-1)

    scale: Tensor | float = gamma
    if normalize_gamma:
        places = torch.arange(1, 1 + similarities.shape[-1], device=rank.device, dtype=dtype)
        cumulative = (places.log() / base - 1).clamp(min=0).cumsum(0)
        norm = cumulative[used.sum(-1, keepdim=True) - 1]
        scale = torch.where(norm > 0, gamma / norm, 0.0)
    weight = _negative_ranks(similarities, used).to(dtype).log() / base - 1
    if clamp_negative_weight:
        weight = weight.clamp(min=0)
    weight = torch.where(used[..., 1:], -scale * weight, 0.0)
    ranking_weight = torch.cat([1 / (1 + rank.to(dtype).log()[..., None] / base), weight], dim=-1)

    margin_weight = torch.zeros_like(similarities)
    if negatives.shape[-1]:
        active = (_gap(similarities, used) > delta)[..., None].to(dtype)
        hardest = negatives.masked_fill(~used[..., 1:], -math.inf).max(-1, keepdim=True).indices
        margin_weight[..., :1] = active
        margin_weight.scatter_(-1, 1 + hardest, -active)
    return rank, margin_weight, ranking_weight


def _composite(
    query: Tensor, positive: Tensor, negatives: Tensor, mask: Tensor | None, *options: Any
) -> tuple[Tensor, ...]:
    """The operator where no kernel is registered for the device."""
    if query.device.type == "cpu":
        library.warn_without_native()
    delta, gamma, normalize_gamma, alpha, epsilon, log_base, clamp_negative_weight, scale_rewards = options
    *result, advantages = rank_reward_reference(
        query,
        positive,
        negatives,
        mask,
        alpha=alpha,
        epsilon=epsilon,
        delta=delta,
        gamma=gamma,
        normalize_gamma=normalize_gamma,
        log_base=log_base,
        clamp_negative_weight=clamp_negative_weight,
        scale_rewards=scale_rewards,
    )
    if advantages is None:
        advantages = result[0].new_empty(0)
    return *(output.contiguous() for output in result), advantages


def _composite_backward(
    grad_similarities: Tensor,
    grad_margin: Tensor,
    grad_ranking: Tensor,
    grad_total: Tensor,
    query: Tensor,
    positive: Tensor,
    negatives: Tensor,
    mask: Tensor | None,
    similarities: Tensor,
    delta: float,
    gamma: float,
    normalize_gamma: bool,
    alpha: float,
    epsilon: float,
    log_base: float,
    clamp_negative_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in closed form: with w_i = dL/ds_i and unit vectors q', c', dL/dc_i = w_i (q' − s_i c'_i) / |c_i|."""
    q, candidates, used = _gather(query, positive, negatives, mask)
    _, margin_weight, ranking_weight = _weights(
        similarities.detach(), used, delta, gamma, normalize_gamma, log_base, clamp_negative_weight
    )
    weight = grad_similarities + (grad_margin + alpha * grad_total)[..., None] * margin_weight
    weight = weight + (grad_ranking + epsilon * grad_total)[..., None] * ranking_weight
    weight = torch.where(used, weight, 0.0)[..., None]
    (q, length_q), (candidates, length_c) = in_range(q), in_range(candidates)
    inverse_q, inverse_c = inverse_norm(q), inverse_norm(candidates)
    unit_q, unit_c = q * inverse_q, candidates * inverse_c
    pull = weight * similarities[..., None]
    grad_query = (
        length_q * inverse_q * ((weight * unit_c).sum(2, keepdim=True) - pull.sum(2, keepdim=True) * unit_q)
    )
    grad_candidates = length_c * inverse_c * (weight * unit_q - pull * unit_c)
    grad_positive = grad_candidates[:, :, 0].sum_to_size(positive.shape)
    grad_negatives = grad_candidates[:, :, 1:].sum_to_size(negatives.shape)
    gradients = (grad_query[:, :, 0], grad_positive, grad_negatives)
    # Copies: an operator's outputs must not share memory with each other.
    dense = [gradient.to(query.dtype).clone(memory_format=torch.contiguous_format) for gradient in gradients]
    return dense[0], dense[1], dense[2]


def _triton(
    query: Tensor, positive: Tensor, negatives: Tensor, mask: Tensor | None, *options: Any
) -> tuple[Tensor, ...]:
    """The operator on CUDA devices. float64 is for checks, not for speed, so it has no kernel."""
    if query.dtype == torch.float64:
        return _composite(query, positive, negatives, mask, *options)
    from elva.ops.rank_reward_triton import forward

    check_tensors(query, positive, negatives, mask)
    check_scale(options[-1])
    return forward(query, positive, negatives, mask, *options)


def _triton_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    query, positive, negatives, mask = arguments[4:8]
    if query.dtype == torch.float64:
        return _composite_backward(*arguments)
    from elva.ops.rank_reward_triton import backward

    check_tensors(query, positive, negatives, mask)
    return backward(*arguments)


def _fake(
    query: Tensor, positive: Tensor, negatives: Tensor, mask: Tensor | None, *options: Any
) -> tuple[Tensor, ...]:
    check_tensors(query, positive, negatives, mask)
    dtype = torch.promote_types(query.dtype, torch.float32)
    rows = tuple(query.shape[:2])
    cells = (*rows, 1 + negatives.shape[2])
    return (
        query.new_empty(cells, dtype=dtype),
        query.new_empty(rows, dtype=torch.int64),
        query.new_empty(rows, dtype=dtype),
        query.new_empty(rows, dtype=dtype),
        query.new_empty(rows, dtype=dtype),
        query.new_empty(cells, dtype=dtype),
        query.new_empty(0 if options[-1] is None else rows, dtype=dtype),
    )


def _fake_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    query, positive, negatives = arguments[4:7]
    return (
        query.new_empty(query.shape),
        positive.new_empty(positive.shape),
        negatives.new_empty(negatives.shape),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:4], output[0])
    ctx.options = inputs[4:-1]  # all but scale_rewards
    ctx.mark_non_differentiable(output[5], output[6])


def _differentiate(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    grad_similarities, _, grad_margin, grad_ranking, grad_total, _, _ = grads
    gradients = torch.ops.elva.rank_reward_backward.default(
        grad_similarities, grad_margin, grad_ranking, grad_total, *ctx.saved_tensors, *ctx.options
    )
    return *gradients, None, *(None for _ in ctx.options), None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:9])
    ctx.options = inputs[9:]


def _differentiate_twice(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    """Second derivatives, for gradient penalties and the like: rare, so autograd through the closed form."""
    saved: list[Any] = [tensor if tensor is None else tensor.detach() for tensor in ctx.saved_tensors]
    inputs = [
        tensor.requires_grad_() for tensor in saved if tensor is not None and tensor.is_floating_point()
    ]
    with torch.enable_grad():
        gradients = _composite_backward(*saved, *ctx.options)
    found: list[Tensor | None] = list(torch.autograd.grad(gradients, inputs, grads))
    found.insert(7, None)  # the mask
    return *found, *(None for _ in ctx.options)


library.define(f"rank_reward({_INPUTS}, {_OPTIONS}, str? scale_rewards) -> ({_OUTPUTS})")
library.define(
    f"rank_reward_backward({_GRADIENTS}, {_INPUTS}, Tensor similarities, {_OPTIONS}) -> (Tensor, Tensor, Tensor)"
)
library.implement("rank_reward", _composite)
library.implement("rank_reward_backward", _composite_backward)
if library.triton_available():
    library.implement("rank_reward", _triton, "CUDA")
    library.implement("rank_reward_backward", _triton_backward, "CUDA")
library.register_fake("rank_reward", _fake)
library.register_fake("rank_reward_backward", _fake_backward)
library.register_autograd("rank_reward", _differentiate, _save)
library.register_autograd("rank_reward_backward", _differentiate_twice, _save_backward)
