"""Log-probability and entropy of given tokens under a linear head, without the T×V logits.

    z_t = W h_t / τ;   logprob_t = z_t[target_t] − log Σ_v exp z_t[v];   entropy_t = −Σ_v p_t[v] log p_t[v]

The gradient in the hidden states is ``(W[target] − Σ_v p[v] W[v]) / τ``. Its second term is summed in the same sweep
over the vocabulary as the log-sum-exp, as flash attention sums its values, so that behind a frozen head (LoRA) the
backward is a scaling: 4TVH operations in all. A trained head costs one sweep more.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from elva.ops import library
from elva.ops.linear_logprob_check import check_arguments

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
) -> LinearLogprob:
    """Log-probability of every target, and the entropy of its distribution (module docstring).

    Args:
        hidden: [T, H] float32, float64, bfloat16 or float16; leave padding out. Accumulated in float32 (float64).
        weight: [V, H], the head, in hidden's dtype. No gradient is computed where it needs none.
        targets: [T] int64, rows of weight.
        temperature: τ > 0.
        trainable_rows: [R] distinct rows of weight, int64: its gradient is then a sparse tensor of these rows alone
            (`[RET]` in a tied head); None: all rows.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape or range; the message names it.

    Example:
        >>> linear_logprob(torch.tensor([[1.0, 0.0]]), torch.eye(2), torch.tensor([0])).logprob  # −log(1 + e⁻¹)
        tensor([-0.3133])
    """
    check_arguments(hidden, weight, targets, temperature, trainable_rows)
    differentiable = torch.is_grad_enabled() and hidden.requires_grad
    logprob, entropy, _, _ = torch.ops.elva.linear_logprob.default(
        hidden, weight.detach(), targets, temperature, differentiable
    )
    if torch.is_grad_enabled() and weight.requires_grad:
        logprob = logprob + _HeadGradient.apply(
            weight, hidden.detach(), targets, logprob.detach(), temperature, trainable_rows
        )
    return LinearLogprob(logprob, entropy.detach())


def linear_logprob_reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    trainable_rows: Tensor | None = None,
) -> LinearLogprob:
    """`linear_logprob` in plain PyTorch with all logits in memory; the gradient of weight is dense."""
    check_arguments(hidden, weight, targets, temperature, trainable_rows)
    if trainable_rows is not None:
        fixed = torch.ones(weight.shape[0], 1, dtype=torch.bool, device=weight.device)
        fixed[trainable_rows] = False
        weight = torch.where(fixed, weight.detach(), weight)
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    logprobs = (hidden.to(dtype) @ weight.to(dtype).T / temperature).log_softmax(-1)
    entropy = -(logprobs.detach().exp() * logprobs.detach()).sum(-1)
    return LinearLogprob(logprobs.gather(1, targets[:, None]).squeeze(1), entropy)


class _HeadGradient(torch.autograd.Function):
    """Zero forward; backward is the gradient of the log-probabilities in the head: one more sweep."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        hidden: Tensor,
        targets: Tensor,
        logprob: Tensor,
        temperature: float,
        trainable_rows: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(weight, hidden, targets, logprob, trainable_rows)
        ctx.temperature = temperature
        return torch.zeros_like(logprob)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        weight, hidden, targets, logprob, rows = ctx.saved_tensors
        arguments = (grads[0], hidden, weight, targets, logprob, ctx.temperature)
        if rows is None:
            return torch.ops.elva.linear_logprob_head_grad.default(*arguments), *(None for _ in range(5))
        grad = torch.ops.elva.linear_logprob_row_grad.default(*arguments, rows)
        sparse = torch.sparse_coo_tensor(rows[None], grad, weight.shape, check_invariants=False)
        return sparse, *(None for _ in range(5))


def _composite(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, with_expected: bool
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
    for first, head in _tiles(weight, count):
        head = head.to(dtype)
        logits = rows @ head.T / temperature
        own = (targets >= first) & (targets < first + head.shape[0])
        here = (targets - first).clamp(0, head.shape[0] - 1)
        target = torch.where(own, logits.gather(1, here[:, None]).squeeze(1), target)
        new = torch.maximum(highest, logits.amax(1))
        fade, p = (highest - new).exp(), (logits - new[:, None]).exp()
        total, weighted, highest = total * fade + p.sum(1), weighted * fade + (p * logits).sum(1), new
        if with_expected:
            expected = expected * fade[:, None] + p @ head
    logsumexp = highest + total.log()
    if with_expected:
        expected = expected / total[:, None]
    return target - logsumexp, logsumexp - weighted / total, logsumexp, expected


def _hidden_gradient(
    grad_logprob: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    expected: Tensor,
    temperature: float,
) -> Tensor:
    scale = (grad_logprob / temperature)[:, None]
    return (scale * (weight[targets].to(expected.dtype) - expected)).to(hidden.dtype)


def _head_gradient(
    grad_logprob: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor, logprob: Tensor, temperature: float
) -> Tensor:
    """Gradient of the whole head [V, H], tile by tile."""
    rows, scale, logsumexp = _recomputed(grad_logprob, hidden, weight, targets, logprob, temperature)
    grad = torch.empty_like(weight, memory_format=torch.contiguous_format)
    for first, head in _tiles(weight, hidden.shape[0]):
        p = (rows @ head.to(rows.dtype).T / temperature - logsumexp).exp_().mul_(scale)
        own = ((targets >= first) & (targets < first + head.shape[0])).nonzero()[:, 0]
        p[own, targets[own] - first] -= scale[own, 0]
        grad[first : first + head.shape[0]] = -(p.T @ rows)
    return grad


def _row_gradient(
    grad_logprob: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    logprob: Tensor,
    temperature: float,
    trainable_rows: Tensor,
) -> Tensor:
    """Gradient of some rows of the head [R, H]."""
    rows, scale, logsumexp = _recomputed(grad_logprob, hidden, weight, targets, logprob, temperature)
    p = (rows @ weight[trainable_rows].to(rows.dtype).T / temperature - logsumexp).exp()
    hit = (targets[:, None] == trainable_rows).to(p.dtype)
    return ((scale * (hit - p)).T @ rows).to(weight.dtype)


def _recomputed(
    grad_logprob: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor, logprob: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states in the accumulation dtype, dL/dlogprob / τ and the log-sum-exps, both [T, 1]."""
    rows = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    own = (rows * weight[targets].to(rows.dtype)).sum(-1) / temperature
    return rows, (grad_logprob / temperature)[:, None], (own - logprob)[:, None]


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
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, with_expected: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    count, dim = hidden.shape
    tokens = [hidden.new_empty(count, dtype=dtype) for _ in range(3)]
    return *tokens, hidden.new_empty((count if with_expected else 0, dim), dtype=dtype)  # type: ignore[return-value]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, targets, ctx.temperature, _ = inputs
    ctx.save_for_backward(hidden, weight, targets, output[3])


def _differentiate(ctx: Any, grad_logprob: Tensor, *_: Any) -> tuple[Any, ...]:
    hidden, weight, targets, expected = ctx.saved_tensors
    grad = torch.ops.elva.linear_logprob_hidden_grad.default(
        grad_logprob, hidden, weight, targets, expected, ctx.temperature
    )
    return grad, None, None, None, None


library.define(
    "linear_logprob(Tensor hidden, Tensor weight, Tensor targets, float temperature, bool with_expected) -> "
    "(Tensor logprob, Tensor entropy, Tensor logsumexp, Tensor expected)"
)
library.define(
    "linear_logprob_hidden_grad(Tensor grad_logprob, Tensor hidden, Tensor weight, Tensor targets, Tensor expected, "
    "float temperature) -> Tensor"
)
_HEAD = "Tensor grad_logprob, Tensor hidden, Tensor weight, Tensor targets, Tensor logprob, float temperature"
library.define(f"linear_logprob_head_grad({_HEAD}) -> Tensor")
library.define(f"linear_logprob_row_grad({_HEAD}, Tensor trainable_rows) -> Tensor")
library.implement("linear_logprob", _composite)
library.implement("linear_logprob_hidden_grad", _hidden_gradient)
library.implement("linear_logprob_head_grad", _head_gradient)
library.implement("linear_logprob_row_grad", _row_gradient)
if library.triton_available():
    library.implement("linear_logprob", _triton, "CUDA")
library.register_fake("linear_logprob", _fake)
library.register_fake("linear_logprob_hidden_grad", lambda *a: a[1].new_empty(a[1].shape))
library.register_fake("linear_logprob_head_grad", lambda *a: a[2].new_empty(a[2].shape))
library.register_fake("linear_logprob_row_grad", lambda *a: a[2].new_empty(a[6].shape[0], a[2].shape[1]))
library.register_autograd("linear_logprob", _differentiate, _save)
for _name in ("hidden_grad", "head_grad", "row_grad"):
    library.refuse_second_derivative(f"linear_logprob_{_name}")
