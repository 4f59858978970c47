"""`shared_prefix_attention`, forward and backward, against G copies of each prompt and against one masked sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.problems import PROBLEMS
from elva.ops import PrefixLayout, shared_prefix_attention_reference
from elva.ops.shared_prefix_attention import visible

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
ATTENTION = PROBLEMS["shared_prefix_attention"]


def copies(query: Tensor, key: Tensor, value: Tensor, layout: PrefixLayout) -> Tensor:
    """Every completion a causal sequence of its own behind a copy of its prompt; the first copy's prompt is kept."""
    items, generations, split = len(layout.prompts), layout.generations, layout.prompt_tokens

    def rows(packed: Tensor) -> Tensor:
        prompts = packed[:split].unflatten(0, (items, 1, -1)).expand(-1, generations, -1, -1, -1)
        completions = packed[split:].unflatten(0, (items, generations, -1))
        return torch.cat([prompts, completions], 2).flatten(0, 1).transpose(1, 2)

    out = F.scaled_dot_product_attention(rows(query), rows(key), rows(value), is_causal=True)
    out = out.transpose(1, 2).unflatten(0, (items, generations))
    prompt = layout.prompts[0]
    return torch.cat([out[:, 0, :prompt].flatten(0, 1), out[:, :, prompt:].flatten(0, 2)])


def masked(query: Tensor, key: Tensor, value: Tensor, layout: PrefixLayout) -> Tensor:
    """The packed sequence as one, with its [T, T] mask."""
    mask = visible(layout).to(query.device)
    out = F.scaled_dot_product_attention(
        *(x.transpose(0, 1)[None] for x in (query, key, value)), attn_mask=mask
    )
    return out[0].transpose(0, 1)


CONTENDERS: dict[str, Callable[..., Tensor]] = {
    "elva": ATTENTION.call,
    "copies of the prompt": copies,
    "one masked sequence": masked,
}


def step(
    function: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, layout: Any
) -> list[Tensor]:
    out = function(query, key, value, layout)
    return [out, *torch.autograd.grad((out * out).sum(), (query, key, value))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", ATTENTION.sizes)
@pytest.mark.parametrize("contender", CONTENDERS)
def test_shared_prefix_attention(timed: Callable[..., Any], contender: str, size: str, device: str) -> None:
    shape = ATTENTION.sizes[size]
    check(CONTENDERS[contender], device)
    inputs = ATTENTION.inputs(shape, device, torch.float32)
    run = lambda: step(CONTENDERS[contender], *inputs)  # noqa: E731
    work = ATTENTION.work(shape, True, 4)
    timed("shared_prefix_attention", size, contender, device, work, run, rounds=5)


def check(function: Callable[..., Tensor], device: str) -> None:
    """Against the definition in float64, at a size that its mask allows."""
    *tensors, layout = ATTENTION.inputs((3, 40, 4, 6, 2, 32), device, torch.float32)
    exact = step(
        shared_prefix_attention_reference, *(x.detach().double().requires_grad_() for x in tensors), layout
    )
    for found, true in zip(step(function, *tensors, layout), exact, strict=True):
        torch.testing.assert_close(found.double(), true, rtol=1e-3, atol=1e-4)
