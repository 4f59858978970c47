"""Attention of G completions behind one prompt that is computed once.

A packed sequence holds the prompts of all items, then their completions, item by item. A prompt's token sees the
prompt's earlier tokens; a completion's token sees its item's whole prompt and its completion's earlier tokens. That is
three pieces without any mask over the whole sequence: prompts causal, completions × prompt as one rectangle,
completions causal. The last two are merged by their log-sum-exps; each piece's backward takes the merged output and
log-sum-exp.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from elva.ops import library
from elva.ops.checks import check_devices
from elva.ops.varlen_attention import Backend, Piece
from elva.ops.varlen_backends import BACKENDS

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class PrefixLayout:
    """Tokens in a packed sequence: ``prompts``, N lengths >= 1, then ``completions``, N · ``generations`` lengths >= 1.

    Completion g of item i is number i · generations + g.

    Raises:
        ValueError: no prompt, a length below 1, or completions that are not generations per prompt.
    """

    prompts: tuple[int, ...]
    completions: tuple[int, ...]
    generations: int

    def __post_init__(self) -> None:
        if not self.prompts or min(self.prompts) < 1:
            raise ValueError(f"prompts must be lengths of at least 1, got {list(self.prompts)}")
        if self.generations < 1 or len(self.completions) != len(self.prompts) * self.generations:
            raise ValueError(
                f"completions must be {len(self.prompts)} x generations = {self.generations} lengths, "
                f"got {len(self.completions)}"
            )
        if min(self.completions) < 1:
            raise ValueError(f"completions must be lengths of at least 1, got {list(self.completions)}")

    @property
    def prompt_tokens(self) -> int:
        return sum(self.prompts)

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + sum(self.completions)


def shared_prefix_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PrefixLayout,
    *,
    scale: float | None = None,
    backend: str = "sdpa",
) -> Tensor:
    """Attention in a packed sequence (module docstring), with its own backward.

    Args:
        query: [T, H, D] float32, float64, bfloat16 or float16, T = layout.tokens. key, value: [T, Hkv, D], H a multiple
            of Hkv; dtype and device of query.
            Under autocast all three are taken in its dtype, as `F.scaled_dot_product_attention` takes them.
        layout: which tokens are whose.
        scale: factor of the products, by default 1/sqrt(D).
        backend: "sdpa" (PyTorch's kernels, CPU and GPU), "flash_attention_2" or "xformers".

    Returns:
        [T, H, D] in query's dtype.

    Raises:
        ValueError: shapes or devices that do not fit, or an unknown backend. TypeError: several dtypes without
            autocast, or no floating-point ones. The message names the argument.
        ImportError: a backend that is not installed.
    """
    query, key, value = library.in_autocast_dtype(query, key, value)
    _check(query, key, value, layout, backend)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    arguments = (list(layout.prompts), list(layout.completions), layout.generations, scale, backend)
    return torch.ops.elva.shared_prefix_attention.default(query, key, value, *arguments)[0]


@library.without_autocast
def shared_prefix_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, layout: PrefixLayout, *, scale: float | None = None
) -> Tensor:
    """The same in plain PyTorch with a [T, T] mask, in float64 for float64 input; differentiable by autograd."""
    _check(query, key, value, layout, "sdpa")
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    seen = visible(layout).to(query.device)
    weights = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, value)


def visible(layout: PrefixLayout) -> Tensor:
    """[T, T] bool: the token of the row attends to that of the column."""
    items = torch.arange(len(layout.prompts))
    lengths = torch.tensor([*layout.prompts, *layout.completions])
    owner = torch.cat([items, items.repeat_interleave(layout.generations)]).repeat_interleave(lengths)
    segment = torch.arange(len(lengths)).repeat_interleave(lengths)
    order = torch.arange(layout.tokens)
    is_prompt = order < layout.prompt_tokens
    same = segment[:, None] == segment
    prefix = (owner[:, None] == owner) & ~is_prompt[:, None] & is_prompt
    return (same & (order[:, None] >= order)) | prefix


def _check(query: Tensor, key: Tensor, value: Tensor, layout: PrefixLayout, backend: str) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.ndim != 3 or tensor.shape[0] != layout.tokens or tensor.shape[2] != query.shape[-1]:
            raise ValueError(
                f"{name} must be [{layout.tokens}, heads, {query.shape[-1]}], got {list(tensor.shape)}"
            )
    if key.shape != value.shape or query.shape[1] % key.shape[1]:
        raise ValueError(
            "key and value must have one shape, and query's heads a multiple of theirs, got "
            f"{list(query.shape)}, {list(key.shape)} and {list(value.shape)}"
        )
    if query.dtype not in DTYPES:
        raise TypeError(f"query has dtype {query.dtype}; expected one of {', '.join(map(str, DTYPES))}")
    for name, tensor in (("key", key), ("value", value)):
        if tensor.dtype != query.dtype:
            raise TypeError(f"{name} has dtype {tensor.dtype}; expected that of query, {query.dtype}")
    check_devices(query=query, key=key, value=value)
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")


@dataclass(frozen=True)
class _Pieces:
    prompts: Piece
    rectangle: Piece
    completions: Piece


def _pieces(prompts: Sequence[int], completions: Sequence[int], generations: int, scale: float) -> _Pieces:
    behind = [sum(completions[i : i + generations]) for i in range(0, len(completions), generations)]
    before, after = tuple(prompts), tuple(completions)
    return _Pieces(
        Piece(before, before, True, scale),
        Piece(tuple(behind), before, False, scale),
        Piece(after, after, True, scale),
    )


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prompts: list[int],
    completions: list[int],
    generations: int,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    pieces, kernel, split = (
        _pieces(prompts, completions, generations, scale),
        _kernel(backend, query),
        sum(prompts),
    )
    first, first_sums = kernel.forward(query[:split], key[:split], value[:split], pieces.prompts)
    far, far_sums = kernel.forward(query[split:], key[:split], value[:split], pieces.rectangle)
    near, near_sums = kernel.forward(query[split:], key[split:], value[split:], pieces.completions)
    sums = torch.logaddexp(far_sums, near_sums)
    merged = far * (far_sums - sums).exp().unsqueeze(-1) + near * (near_sums - sums).exp().unsqueeze(-1)
    return torch.cat([first, merged.to(first.dtype)]), torch.cat([first_sums, sums])


def _backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    prompts: list[int],
    completions: list[int],
    generations: int,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    pieces, kernel, split = (
        _pieces(prompts, completions, generations, scale),
        _kernel(backend, query),
        sum(prompts),
    )
    grad_out = grad_out.contiguous()
    before, after = slice(None, split), slice(split, None)

    def piece(queries: slice, keys: slice, of: Piece) -> tuple[Tensor, Tensor, Tensor]:
        inputs = (grad_out[queries], query[queries], key[keys], value[keys], out[queries], logsumexp[queries])
        return kernel.backward(*inputs, of)

    first = piece(before, before, pieces.prompts)
    far = piece(after, before, pieces.rectangle)
    near = piece(after, after, pieces.completions)
    return (
        torch.cat([first[0], far[0] + near[0]]),
        torch.cat([first[1] + far[1], near[1]]),
        torch.cat([first[2] + far[2], near[2]]),
    )


def _kernel(backend: str, query: Tensor) -> Backend:
    return BACKENDS[backend](query.device, query.dtype)


def _fake(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    sums = torch.promote_types(query.dtype, torch.float32)
    return query.new_empty(query.shape), query.new_empty(query.shape[:2], dtype=sums)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs[:3], *output)
    ctx.options = inputs[3:]


def _differentiate(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Any, ...]:
    grads = torch.ops.elva.shared_prefix_attention_backward.default(
        grad_out, *ctx.saved_tensors, *ctx.options
    )
    return *grads, *(None for _ in range(5))


_LAYOUT = "int[] prompts, int[] completions, int generations, float scale, str backend"
library.define(
    f"shared_prefix_attention(Tensor query, Tensor key, Tensor value, {_LAYOUT}) -> (Tensor out, Tensor logsumexp)"
)
library.define(
    "shared_prefix_attention_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor out, "
    f"Tensor logsumexp, {_LAYOUT}) -> (Tensor grad_query, Tensor grad_key, Tensor grad_value)"
)
library.implement("shared_prefix_attention", _forward)
library.implement("shared_prefix_attention_backward", _backward)
library.register_fake("shared_prefix_attention", _fake)
library.register_fake(
    "shared_prefix_attention_backward", lambda *a: tuple(x.new_empty(x.shape) for x in a[1:4])
)
library.register_autograd("shared_prefix_attention", _differentiate, _save)
library.refuse_second_derivative("shared_prefix_attention_backward")
