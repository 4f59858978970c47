"""Log-probability and entropy of given tokens under a linear head, without the T×V logits.

    z_t = W h_t / τ;   logprob_t = z_t[target_t] − log Σ_v exp z_t[v];   entropy_t = −Σ_v p_t[v] log p_t[v]

The gradient in the hidden states is ``(W[target] − Σ_v p[v] W[v]) / τ``. Its second term is summed in the same sweep
over the vocabulary as the log-sum-exp, as flash attention sums its values, so that behind a frozen head (LoRA) the
backward is a scaling: 4TVH operations in all. A trained head costs one sweep more.

A few trainable rows of an otherwise frozen head may be held apart, as a [R, H] tensor in their place: they are scored
beside the sweep, which takes their logits as given and leaves them out of its second term.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from elva.ops import library
from elva.ops.linear_logprob_check import check_arguments
from elva.ops.linear_logprob_sums import of_sums

TILE_ELEMENTS = 1 << 21
"""Logits that exist at once, in the PyTorch back-end and in the backward of a trained head."""


class LinearLogprob(NamedTuple):
    """logprob: [T] float32 (float64 for float64 input), in nats, <= 0. Differentiable.

    entropy: [T] in nats, >= 0. A metric: it has no gradient (that would cost a sweep more).
    """

    logprob: Tensor
    entropy: Tensor


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    trainable_rows: Tensor | None = None,
    row_values: Tensor | None = None,
) -> LinearLogprob:
    """Log-probability of every target, and the entropy of its distribution (module docstring).

    Args:
        hidden: [T, H] float32, float64, bfloat16 or float16; leave padding out. Accumulated in float32 (float64).
        weight: [V, H], the head, in hidden's dtype. No gradient is computed where it needs none.
        targets: [T] int64, rows of weight.
        temperature: τ > 0.
        trainable_rows: [R] distinct rows of weight, int64: its gradient is then a sparse tensor of these rows alone
            (`[RET]` in a tied head); None: all rows.
        row_values: [R, H] in hidden's dtype, stand in the place of weight's rows `trainable_rows`, which keep no
            influence: weight gets no gradient then, row_values a dense one. None: weight's own.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, device or range; the message names it.

    Example:
        >>> linear_logprob(torch.tensor([[1.0, 0.0]]), torch.eye(2), torch.tensor([0])).logprob  # −log(1 + e⁻¹)
        tensor([-0.3133])
    """
    check_arguments(hidden, weight, targets, temperature, trainable_rows, row_values)
    library.refuse_tangents("elva::linear_logprob", weight)  # which the operator gets without
    differentiable = torch.is_grad_enabled() and hidden.requires_grad
    if trainable_rows is not None and row_values is None:
        row_values = F.embedding(trainable_rows, weight, sparse=True)
    logprob, entropy, _, _ = torch.ops.elva.linear_logprob.default(
        hidden, weight.detach(), targets, temperature, differentiable, trainable_rows, row_values
    )
    if torch.is_grad_enabled() and weight.requires_grad and trainable_rows is None:
        logprob = logprob + _HeadGradient.apply(
            weight, hidden.detach(), targets, logprob.detach(), temperature
        )
    return LinearLogprob(logprob, entropy.detach())


@library.without_autocast
def linear_logprob_reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    trainable_rows: Tensor | None = None,
    row_values: Tensor | None = None,
) -> LinearLogprob:
    """`linear_logprob` in plain PyTorch with all logits in memory; the gradient of weight is dense."""
    check_arguments(hidden, weight, targets, temperature, trainable_rows, row_values)
    if trainable_rows is not None:
        values = weight[trainable_rows] if row_values is None else row_values
        weight = weight.detach().index_copy(0, trainable_rows, values)
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    logprobs = (hidden.to(dtype) @ weight.to(dtype).T / temperature).log_softmax(-1)
    entropy = -(logprobs.detach().exp() * logprobs.detach()).sum(-1)
    return LinearLogprob(logprobs.gather(1, targets[:, None]).squeeze(1), entropy)


class _HeadGradient(torch.autograd.Function):
    """Zero forward; backward is the gradient of the log-probabilities in the whole head: one more sweep."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, hidden: Tensor, targets: Tensor, logprob: Tensor, temperature: float
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, targets, logprob)
        ctx.temperature = temperature
        return torch.zeros_like(logprob)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        grad = torch.ops.elva.linear_logprob_head_grad.default(grads[0], *ctx.saved_tensors, ctx.temperature)
        return grad, None, None, None, None


def _composite(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float,
    with_expected: bool,
    trainable_rows: Tensor | None = None,
    row_values: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator where no kernel is registered for the device: the same sweep in PyTorch."""
    if hidden.device.type == "cpu":
        library.warn_without_native()
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    rows = hidden.to(dtype)
    count, dim = rows.shape
    highest = rows.new_full((count,), -torch.inf)
    total, weighted, target = (rows.new_zeros(count) for _ in range(3))
    expected = rows.new_zeros(count if with_expected else 0, dim)
    if trainable_rows is None or row_values is None:
        trainable_rows, row_values = targets[:0], weight[:0]
    row_values = row_values.to(dtype)
    row_logits = rows @ row_values.T / temperature
    for first, head in _tiles(weight, count):
        head = head.to(dtype)
        logits = rows @ head.T / temperature
        logits = _replace(logits, trainable_rows, row_logits, first)
        own = (targets >= first) & (targets < first + head.shape[0])
        here = (targets - first).clamp(0, head.shape[0] - 1)
        target = torch.where(own, logits.gather(1, here[:, None]).squeeze(1), target)
        new = torch.maximum(highest, logits.amax(1))
        fade, below = (highest - new).exp(), logits - new[:, None]
        p = below.exp()
        moved = torch.where(total > 0, weighted + total * (highest - new), 0)
        total, weighted, highest = total * fade + p.sum(1), moved * fade + (p * below).sum(1), new
        if with_expected:
            p = _replace(p, trainable_rows, torch.zeros_like(row_logits), first)
            expected = expected * fade[:, None] + p @ head
    logsumexp = highest + total.log()
    if with_expected:
        p = (row_logits - logsumexp[:, None]).exp()
        expected = expected / total[:, None] + p @ row_values
    return *of_sums(target, highest, total, weighted), logsumexp, expected


def _replace(tile: Tensor, rows: Tensor, values: Tensor, first: int) -> Tensor:
    """A tile [T, W] that begins at row `first` of the head, with values [T, R] in the columns of these rows.

    A selection for each of the few rows: to look up which of them lie in the tile would make the host wait.
    """
    columns = first + torch.arange(tile.shape[1], device=tile.device)
    for row, value in zip(rows.unbind(), values.unbind(1), strict=True):
        tile = torch.where(columns == row, value[:, None], tile)
    return tile


def _hidden_gradient(
    grad_logprob: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    expected: Tensor,
    temperature: float,
    trainable_rows: Tensor | None = None,
    row_values: Tensor | None = None,
) -> Tensor:
    scale = (grad_logprob / temperature)[:, None]
    chosen = weight[targets]
    if trainable_rows is not None and row_values is not None:
        for row, value in zip(trainable_rows.unbind(), row_values.unbind(), strict=True):
            chosen = torch.where((targets == row)[:, None], value, chosen)
    chosen = chosen.to(expected.dtype)
    return (scale * (chosen - expected)).to(hidden.dtype)


def _head_gradient(
    grad_logprob: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor, logprob: Tensor, temperature: float
) -> Tensor:
    """Gradient of the whole head [V, H], tile by tile."""
    rows = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    own = (rows * weight[targets].to(rows.dtype)).sum(-1) / temperature
    logsumexp, scale = (own - logprob)[:, None], (grad_logprob / temperature)[:, None]
    grad = torch.empty_like(weight, memory_format=torch.contiguous_format)
    for first, head in _tiles(weight, hidden.shape[0]):
        p = (rows @ head.to(rows.dtype).T / temperature - logsumexp).exp_().mul_(scale)
        column = targets[:, None] - first
        inside = (column >= 0) & (column < head.shape[0])
        p.scatter_add_(1, column.clamp(0, head.shape[0] - 1), torch.where(inside, -scale, 0))
        grad[first : first + head.shape[0]] = -(p.T @ rows)
    return grad


def _row_gradient(
    grad_logprob: Tensor,
    hidden: Tensor,
    targets: Tensor,
    logsumexp: Tensor,
    temperature: float,
    trainable_rows: Tensor,
    row_values: Tensor,
) -> Tensor:
    """Gradient of the values [R, H] of some rows of the head."""
    rows = hidden.to(logsumexp.dtype)
    p = (rows @ row_values.to(rows.dtype).T / temperature - logsumexp[:, None]).exp()
    hit = (targets[:, None] == trainable_rows).to(p.dtype)
    scale = (grad_logprob / temperature)[:, None]
    return ((scale * (hit - p)).T @ rows).to(row_values.dtype)


def _tiles(weight: Tensor, count: int) -> Any:
    size = max(256, TILE_ELEMENTS // max(count, 1))
    for first in range(0, weight.shape[0], size):
        yield first, weight[first : first + size]


def _triton(hidden: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator on CUDA devices. float64 is for checks, not for speed, so it has no kernel."""
    if hidden.dtype == torch.float64:
        return _composite(hidden, *arguments)
    from elva.ops.linear_logprob_triton import forward

    return forward(hidden, *arguments)


def _fake(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, with_expected: bool, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    count, dim = hidden.shape
    tokens = [hidden.new_empty(count, dtype=dtype) for _ in range(3)]
    return *tokens, hidden.new_empty((count if with_expected else 0, dim), dtype=dtype)  # type: ignore[return-value]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, targets, ctx.temperature, _, trainable_rows, row_values = inputs
    ctx.save_for_backward(hidden, weight, targets, *output[2:], trainable_rows, row_values)


def _differentiate(ctx: Any, grad_logprob: Tensor, *_: Any) -> tuple[Any, ...]:
    hidden, weight, targets, logsumexp, expected, rows, row_values = ctx.saved_tensors
    grad_hidden = grad_values = None
    if ctx.needs_input_grad[0]:
        grad_hidden = torch.ops.elva.linear_logprob_hidden_grad.default(
            grad_logprob, hidden, weight, targets, expected, ctx.temperature, rows, row_values
        )
    if ctx.needs_input_grad[6]:
        grad_values = torch.ops.elva.linear_logprob_row_grad.default(
            grad_logprob, hidden, targets, logsumexp, ctx.temperature, rows, row_values
        )
    return grad_hidden, None, None, None, None, None, grad_values


library.define(
    "linear_logprob(Tensor hidden, Tensor weight, Tensor targets, float temperature, bool with_expected, "
    "Tensor? trainable_rows, Tensor? row_values) -> "
    "(Tensor logprob, Tensor entropy, Tensor logsumexp, Tensor expected)"
)
library.define(
    "linear_logprob_hidden_grad(Tensor grad_logprob, Tensor hidden, Tensor weight, Tensor targets, Tensor expected, "
    "float temperature, Tensor? trainable_rows, Tensor? row_values) -> Tensor"
)
library.define(
    "linear_logprob_head_grad(Tensor grad_logprob, Tensor hidden, Tensor weight, Tensor targets, Tensor logprob, "
    "float temperature) -> Tensor"
)
library.define(
    "linear_logprob_row_grad(Tensor grad_logprob, Tensor hidden, Tensor targets, Tensor logsumexp, float temperature, "
    "Tensor trainable_rows, Tensor row_values) -> Tensor"
)
library.implement("linear_logprob", _composite)
library.implement("linear_logprob_hidden_grad", _hidden_gradient)
library.implement("linear_logprob_head_grad", _head_gradient)
library.implement("linear_logprob_row_grad", _row_gradient)
if library.triton_available():
    library.implement("linear_logprob", _triton, "CUDA")
library.register_fake("linear_logprob", _fake)
library.register_fake("linear_logprob_hidden_grad", lambda *a: a[1].new_empty(a[1].shape))
library.register_fake("linear_logprob_head_grad", lambda *a: a[2].new_empty(a[2].shape))
library.register_fake("linear_logprob_row_grad", lambda *a: a[6].new_empty(a[6].shape))
library.register_autograd("linear_logprob", _differentiate, _save)
for _name in ("hidden_grad", "head_grad", "row_grad"):
    library.refuse_second_derivative(f"linear_logprob_{_name}")
