"""Which attention implementation to run: flash-attn, then xformers, then PyTorch's own (SDPA)."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from elva.ops.library import in_autocast_dtype

CHOICES = ("auto", "flash_attention_2", "xformers", "sdpa", "eager")


def _importable(module: str) -> bool:
    try:
        importlib.import_module(module)
    except Exception:  # a wheel built for another torch fails in many ways, all of which mean "not usable"
        return False
    return True


def resolve_attention(name: str, device: torch.device | str, dtype: torch.dtype | None) -> str:
    """The name to give to transformers as ``attn_implementation``.

    ``auto`` takes the first that works on ``device`` and ``dtype``. ImportError names a missing package and
    what to do; ValueError an unknown name or a combination that cannot work.
    """
    if name not in CHOICES:
        raise ValueError(f"attn_implementation: {name!r} given, expected one of {', '.join(CHOICES)}")
    on_gpu = torch.device(device).type == "cuda"
    half = dtype in (torch.float16, torch.bfloat16)
    if name == "auto":
        if on_gpu and half and _importable("flash_attn"):
            return "flash_attention_2"
        if on_gpu and _importable("xformers.ops"):
            return _registered_xformers()
        return "sdpa"
    if name == "flash_attention_2":
        _require("flash_attn", "flash-attn", name)
        if not (on_gpu and half):
            raise ValueError(
                f"attn_implementation: {name!r} needs a CUDA device and float16 or bfloat16; "
                f"given device {device} and dtype {dtype}. Pass dtype=torch.bfloat16 or "
                "attn_implementation='sdpa'"
            )
    if name == "xformers":
        _require("xformers.ops", "xformers", name)
        if not on_gpu:
            raise ValueError(
                f"attn_implementation: {name!r} needs a CUDA device; given {device}. "
                "Pass attn_implementation='sdpa'"
            )
        return _registered_xformers()
    return name


def _require(module: str, package: str, name: str) -> None:
    if not _importable(module):
        raise ImportError(
            f"attn_implementation: {name!r} needs the package {package}, which cannot be imported here. "
            f"Install it (pip install {package}) or pass attn_implementation='auto' or 'sdpa'"
        )


def _registered_xformers() -> str:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register("xformers", xformers_attention)
    AttentionMaskInterface.register("xformers", sdpa_mask)
    return "xformers"


def xformers_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """xformers' memory-efficient attention in transformers' convention.

    ``query`` [B, H, Lq, D], ``key`` and ``value`` [B, Hkv, Lk, D]; ``attention_mask`` bool [B, 1, Lq, Lk]
    (True = attend) or None (causal where the module is). Returns [B, Lq, H, D]. All three are taken in
    autocast's dtype, or without autocast in ``value``'s: xformers knows of no autocast, and wants one dtype.
    """
    from xformers.ops import LowerTriangularMask, memory_efficient_attention

    query, key, value = in_autocast_dtype(query.to(value.dtype), key.to(value.dtype), value)
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (key, value))
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    bias: Any = None
    if attention_mask is not None:
        bias = _additive_bias(attention_mask, query)
    elif causal and query.shape[2] > 1:
        bias = LowerTriangularMask()
    out = memory_efficient_attention(
        *(x.transpose(1, 2) for x in (query, key, value)), attn_bias=bias, p=dropout, scale=scaling
    )
    return out, None


def _additive_bias(mask: Tensor, query: Tensor) -> Tensor:
    """Bool [B, 1, Lq, Lk] → additive [B, H, Lq, Lk] in the query's dtype, rows padded to 8 for the kernel."""
    batch, heads, length = query.shape[:3]
    keys = mask.shape[-1]
    stored = query.new_zeros(batch, mask.shape[1], length, -(-keys // 8) * 8)
    bias = stored[..., :keys]
    # Finite, because a row of padding attends to nothing and -inf everywhere would give NaN.
    bias.masked_fill_(~mask.expand(batch, -1, length, keys), torch.finfo(query.dtype).min)
    return bias.expand(batch, heads, length, keys)
