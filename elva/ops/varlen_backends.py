"""The attention kernels that packed attention can stand on; each is somebody else's, called as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from elva.ops.varlen_attention import Backend, Piece, by_segments, to_packed, to_rows

aten = torch.ops.aten


def _cpu_forward(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, ...]:
    return aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, is_causal=causal, scale=scale)


def _cpu_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, ...]:
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad_out, query, key, value, out, logsumexp, 0.0, causal, scale=scale
    )


def _scores(query: Tensor, key: Tensor, causal: bool, scale: float) -> Tensor:
    """``[segments, Hkv, group, Lq, Lk]`` in the dtype of sums."""
    sums = torch.promote_types(query.dtype, torch.float32)
    grouped = query.unflatten(1, (key.shape[1], -1)).to(sums)
    scores = grouped @ key.unsqueeze(2).to(sums).transpose(-1, -2) * scale
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return scores


def _math_forward(
    query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float
) -> tuple[Tensor, ...]:
    scores = _scores(query, key, causal, scale)
    sums = scores.logsumexp(-1)
    out = (scores - sums.unsqueeze(-1)).exp() @ value.unsqueeze(2).to(scores.dtype)
    return out.flatten(1, 2).to(query.dtype), sums.flatten(1, 2)


def _math_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, ...]:
    scores = _scores(query, key, causal, scale)
    groups = (key.shape[1], -1)
    grouped = [x.unflatten(1, groups).to(scores.dtype) for x in (grad_out, query, out)]
    weights = (scores - logsumexp.unflatten(1, groups).unsqueeze(-1)).exp()
    grad_value = (weights.transpose(-1, -2) @ grouped[0]).sum(2)
    towards = grouped[0] @ value.unsqueeze(2).to(scores.dtype).transpose(-1, -2)
    grad_scores = weights * (towards - (grouped[0] * grouped[2]).sum(-1, keepdim=True)) * scale
    grad_query = (grad_scores @ key.unsqueeze(2).to(scores.dtype)).flatten(1, 2)
    grad_key = (grad_scores.transpose(-1, -2) @ grouped[1]).sum(2)
    return grad_query.to(query.dtype), grad_key.to(key.dtype), grad_value.to(value.dtype)


def _dense_rows(backend: Backend) -> Backend:
    """The back-end with a copy of inputs whose last dimension has gaps: its kernels would read over them."""

    def dense(x: Tensor) -> Tensor:
        return x if x.stride(-1) == 1 else x.contiguous()

    def forward(query: Tensor, key: Tensor, value: Tensor, piece: Piece) -> tuple[Tensor, Tensor]:
        return backend.forward(dense(query), dense(key), dense(value), piece)

    def backward(
        grad_out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        logsumexp: Tensor,
        piece: Piece,
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = (dense(grad_out), dense(query), dense(key), dense(value), dense(out))
        return backend.backward(*rows, logsumexp, piece)

    return Backend(forward, backward)


CPU = _dense_rows(by_segments(_cpu_forward, _cpu_backward))
MATH = by_segments(_math_forward, _math_backward)


@lru_cache(maxsize=64)
def _bounds(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """``[segments + 1]`` int32: where each segment begins, and where the last one ends."""
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return ends.to(device)


def _extent(piece: Piece, device: torch.device) -> tuple[Tensor, Tensor, int, int]:
    bounds = (_bounds(piece.query_lengths, device), _bounds(piece.key_lengths, device))
    return *bounds, max(piece.query_lengths), max(piece.key_lengths)


def _torch_flash_forward(query: Tensor, key: Tensor, value: Tensor, piece: Piece) -> tuple[Tensor, Tensor]:
    out, sums, *_ = aten._flash_attention_forward(
        query, key, value, *_extent(piece, query.device), 0.0, piece.causal, False, scale=piece.scale
    )
    return out, sums.T.contiguous()


def _torch_flash_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, logsumexp: Tensor, piece: Piece
) -> tuple[Tensor, Tensor, Tensor]:
    seed = torch.empty(2, dtype=torch.uint64, device=query.device)  # of a dropout that there is not
    return aten._flash_attention_backward(
        grad_out,
        query,
        key,
        value,
        out,
        logsumexp.T.contiguous(),
        *_extent(piece, query.device),
        0.0,
        piece.causal,
        seed,
        seed,
        scale=piece.scale,
    )


TORCH_FLASH = _dense_rows(Backend(_torch_flash_forward, _torch_flash_backward))


def _sdpa(device: torch.device, dtype: torch.dtype) -> Backend:
    """PyTorch's own: flash kernels on CPUs, and on GPUs in half precision; plain products elsewhere."""
    if device.type == "cpu":
        return CPU
    half = dtype in (torch.float16, torch.bfloat16)
    return TORCH_FLASH if device.type == "cuda" and half else MATH


def _flash_attn(device: torch.device, dtype: torch.dtype) -> Backend:
    """The flash-attn package."""
    interface = _imported("flash_attn.flash_attn_interface", "flash-attn")
    _require_gpu("flash_attention_2", device, dtype, (torch.float16, torch.bfloat16))

    def options(query: Tensor, piece: Piece) -> dict[str, Any]:
        names = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
        extent = dict(zip(names, _extent(piece, query.device), strict=True))
        return {**extent, "dropout_p": 0.0, "softmax_scale": piece.scale, "causal": piece.causal}

    def forward(query: Tensor, key: Tensor, value: Tensor, piece: Piece) -> tuple[Tensor, Tensor]:
        out, sums, *_ = interface._flash_attn_varlen_forward(query, key, value, **options(query, piece))
        return out, sums.T.contiguous()

    def backward(
        grad_out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        logsumexp: Tensor,
        piece: Piece,
    ) -> tuple[Tensor, Tensor, Tensor]:
        grads = (torch.empty_like(query), torch.empty_like(key), torch.empty_like(value))
        interface._flash_attn_varlen_backward(
            grad_out,
            query,
            key,
            value,
            out,
            logsumexp.T.contiguous(),
            *grads,
            **options(query, piece),
            window_size_left=-1,
            window_size_right=-1,
            softcap=0.0,
            alibi_slopes=None,
            deterministic=False,
        )
        return grads

    return _dense_rows(Backend(forward, backward))


def _xformers(device: torch.device, dtype: torch.dtype) -> Backend:
    """xformers' memory-efficient attention.

    Its kernels for half precision hold the log-sum-exps ``[1, H, T]``, one segment behind the other; that for float32
    holds them ``[segments, H, longest]`` with something behind the shorter ones. The backward chooses by their shape.
    """
    fmha = _imported("xformers.ops.fmha", "xformers")
    _require_gpu("xformers", device, dtype, (torch.float16, torch.bfloat16, torch.float32))

    def bias(piece: Piece) -> Any:
        mask = fmha.attn_bias.BlockDiagonalMask.from_seqlens(piece.query_lengths, piece.key_lengths)
        return mask.make_causal() if piece.causal else mask

    def forward(query: Tensor, key: Tensor, value: Tensor, piece: Piece) -> tuple[Tensor, Tensor]:
        rows = _expanded(query, key, value)
        out, sums = fmha.memory_efficient_attention_forward_requires_grad(
            *rows, attn_bias=bias(piece), scale=piece.scale
        )
        if len(sums) == 1:
            return out[0], sums[0, :, : query.shape[0]].T.contiguous()
        rows = sums[:, :, : max(piece.query_lengths)].unsqueeze(-1)
        return out[0], to_packed(rows, piece.query_lengths).squeeze(-1).contiguous()

    def backward(
        grad_out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        logsumexp: Tensor,
        piece: Piece,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if query.dtype == torch.float32:
            sums = to_rows(logsumexp.unsqueeze(-1), piece.query_lengths).squeeze(-1).contiguous()
        else:
            sums = logsumexp.T.contiguous()[None]
        found = fmha.memory_efficient_attention_backward(
            grad_out[None],
            out[None],
            sums,
            *_expanded(query, key, value),
            attn_bias=bias(piece),
            scale=piece.scale,
        )
        shared = (x[0].unflatten(1, (key.shape[1], -1)).sum(2) for x in found[1:])
        return found[0][0], *shared

    return _dense_rows(Backend(forward, backward))


def _expanded(query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    """``[1, T, H, D]`` each: key and value heads repeated for the query heads that share them."""
    groups = query.shape[1] // key.shape[1]
    return [query[None], *(x.repeat_interleave(groups, dim=1)[None] for x in (key, value))]


def _imported(module: str, package: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"backend: {package} is not installed; pip install {package}, or 'sdpa'") from error


def _require_gpu(name: str, device: torch.device, dtype: torch.dtype, dtypes: Sequence[torch.dtype]) -> None:
    if device.type != "cuda" or dtype not in dtypes:
        known = ", ".join(str(x) for x in dtypes)
        raise ValueError(f"backend {name!r} needs a GPU and {known}; got {device} and {dtype}. Use 'sdpa'")


BACKENDS: dict[str, Callable[[torch.device, torch.dtype], Backend]] = {
    "sdpa": _sdpa,
    "flash_attention_2": _flash_attn,
    "xformers": _xformers,
}
