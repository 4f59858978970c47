"""The problems on which the operators are measured: sizes, inputs, the call, and the work that no form can avoid.

The benchmarks (`test_<op>.py`) and `profile_kernel.py` both take them from here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import Work
from elva.ops import (
    PrefixLayout,
    infonce,
    linear_logprob,
    rank_reward,
    shared_prefix_attention,
    similarity_topk,
    tiered_rank,
)
from elva.ops.infonce import SCORE_BUDGET

Shape = tuple[int, ...]
TEMPERATURE = 0.05
TIERS = 3


@dataclass(frozen=True)
class Problem:
    """One operator.

    ``dims`` names the numbers of a shape. ``inputs(shape, device, dtype)`` draws the same tensors every time, on the
    device itself; those that need a gradient say so. ``call`` is elva's operator on them, and returns what a loss would
    be made of. ``work(shape, backward, itemsize)`` is that of the forward alone or of both passes, its products in
    float32; ``work_in`` that with the products in the inputs' dtype.
    """

    dims: str
    sizes: dict[str, Shape]
    inputs: Callable[[Shape, str, torch.dtype], list[Any]]
    call: Callable[..., Tensor]
    work: Callable[[Shape, bool, int], Work]
    differentiable: bool = True

    def work_in(self, dtype: torch.dtype, shape: Shape, backward: bool) -> Work:
        return replace(self.work(shape, backward, dtype.itemsize), dtype=str(dtype).removeprefix("torch."))


def input_dtype(device: str) -> torch.dtype:
    """The dtype of the benchmarks' inputs: on a GPU half precision, which its tensor cores are for."""
    return torch.bfloat16 if device == "cuda" else torch.float32


def generator_on(device: str) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(0)


def normal(generator: torch.Generator, shape: Shape, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device).to(dtype)


def _infonce_inputs(shape: Shape, device: str, dtype: torch.dtype) -> list[Tensor]:
    """Query and keys [B, D]."""
    generator = generator_on(device)
    return [normal(generator, shape, dtype).requires_grad_() for _ in range(2)]


def _infonce_work(shape: Shape, backward: bool, itemsize: int) -> Work:
    batch, dim = shape
    # Kept scores: one product forward, two backward; computed again, one more.
    products = (3 if 4 * batch * batch <= SCORE_BUDGET else 4) if backward else 1
    return Work(
        bytes=itemsize * (4 if backward else 2) * batch * dim, flops=2 * products * batch * batch * dim
    )


def _linear_logprob_inputs(shape: Shape, device: str, dtype: torch.dtype) -> list[Tensor]:
    """Hidden states [T, H], a frozen head [V, H], targets [T]."""
    tokens, dim, vocabulary = shape
    generator = generator_on(device)
    hidden = normal(generator, (tokens, dim), dtype).requires_grad_()
    weight = (torch.randn(vocabulary, dim, generator=generator, device=device) / dim**0.5).to(dtype)
    return [hidden, weight, torch.randint(0, vocabulary, (tokens,), generator=generator, device=device)]


def _linear_logprob_work(shape: Shape, backward: bool, itemsize: int) -> Work:
    tokens, dim, vocabulary = shape
    # Logits once, and for a gradient their probabilities times the head once.
    return Work(
        bytes=itemsize * (vocabulary * dim + (2 if backward else 1) * tokens * dim),
        flops=(4 if backward else 2) * tokens * vocabulary * dim,
    )


def _rank_reward_inputs(shape: Shape, device: str, dtype: torch.dtype) -> list[Tensor]:
    """Query [B, G, D], positive [B, Gn, D] and negatives [B, Gn, N, D]."""
    batch, rollouts, owners, count, dim = shape
    generator = generator_on(device)
    shapes = [(batch, rollouts, dim), (batch, owners, dim), (batch, owners, count, dim)]
    return [normal(generator, size, dtype).requires_grad_() for size in shapes]


def _rank_reward_work(shape: Shape, backward: bool, itemsize: int) -> Work:
    batch, rollouts, owners, count, dim = shape
    elements = batch * dim * (rollouts + owners * (1 + count))
    # Forward reads the inputs; backward reads them again and writes as much.
    return Work(bytes=(3 if backward else 1) * itemsize * elements, flops=(10 if backward else 4) * elements)


def _similarity_topk_inputs(shape: Shape, device: str, dtype: torch.dtype) -> list[Any]:
    """Unit vectors, queries [Q, D] and keys [M, D], and k."""
    queries, pool, dim, k = shape
    generator = generator_on(device)
    vectors = (
        F.normalize(torch.randn(count, dim, generator=generator, device=device), dim=1)
        for count in (queries, pool)
    )
    return [*(drawn.to(dtype) for drawn in vectors), k]


def _similarity_topk_work(shape: Shape, backward: bool, itemsize: int) -> Work:
    queries, pool, dim, _ = shape
    return Work(bytes=itemsize * dim * (queries + pool), flops=2 * queries * pool * dim)


def _tiered_rank_inputs(shape: Shape, device: str, dtype: torch.dtype) -> list[Tensor]:
    """Similarities to the query and to the positive [R, N], uniform in [−1, 1]."""
    generator = generator_on(device)
    similarity, between = (2 * torch.rand(2, *shape, generator=generator, device=device) - 1).to(dtype)
    return [similarity.requires_grad_(), between]


def _tiered_rank_work(shape: Shape, backward: bool, itemsize: int) -> Work:
    rows, count = shape
    # Two vectors in, rank and tier (int64) out; the backward reads similarity and tier again and writes a gradient.
    cell = 2 * itemsize + 2 * 8 + ((2 * itemsize + 8) if backward else 0)
    return Work(bytes=rows * count * cell, flops=0)


def _shared_prefix_attention_inputs(shape: Shape, device: str, dtype: torch.dtype) -> list[Any]:
    """Query [T, H, D], key, value [T, K, D] and the layout: N prompts of P tokens, G completions of R behind each."""
    items, prompt, generations, completion, heads, shared, dim = shape
    layout = PrefixLayout((prompt,) * items, (completion,) * (items * generations), generations)
    generator = generator_on(device)
    sizes = [(layout.tokens, count, dim) for count in (heads, shared, shared)]
    return [*(normal(generator, size, dtype).requires_grad_() for size in sizes), layout]


def _shared_prefix_attention_work(shape: Shape, backward: bool, itemsize: int) -> Work:
    items, prompt, generations, completion, heads, shared, dim = shape
    pairs = items * (prompt**2 / 2 + generations * completion * (prompt + completion / 2))
    tokens = items * (prompt + generations * completion)
    # Two products a pair forward, five backward; inputs and output, then their gradients too.
    return Work(
        bytes=itemsize * (4 if backward else 2) * tokens * (heads + shared) * dim,
        flops=2 * dim * heads * pairs * (7 if backward else 2),
    )


PROBLEMS = {
    "infonce": Problem(
        "B,D",
        {"paper, 960 x 3584": (960, 3584), "4,096 x 512": (4096, 512), "large, 32,768 x 512": (32_768, 512)},
        _infonce_inputs,
        lambda query, keys: infonce(query, keys, temperature=TEMPERATURE),
        _infonce_work,
    ),
    "linear_logprob": Problem(
        "T,H,V",
        {"256 x 1,024 x 32k": (256, 1024, 32_000), "large, 1,024 x 1,024 x 152k": (1024, 1024, 151_936)},
        _linear_logprob_inputs,
        lambda hidden, weight, targets: linear_logprob(hidden, weight, targets).logprob,
        _linear_logprob_work,
    ),
    # The paper's stage 3 has candidates per rollout (Gn = G).
    "rank_reward": Problem(
        "B,G,Gn,N,D",
        {"paper, per rollout": (8, 8, 8, 100, 1536), "shared by the rollouts": (8, 8, 1, 100, 1536)},
        _rank_reward_inputs,
        lambda query, positive, negatives: rank_reward(query, positive, negatives).total,
        _rank_reward_work,
    ),
    "shared_prefix_attention": Problem(
        "N,P,G,R,H,K,D",
        {"16 items, P 256, G 8, R 16": (16, 256, 8, 16, 16, 16, 32)},
        _shared_prefix_attention_inputs,
        shared_prefix_attention,
        _shared_prefix_attention_work,
    ),
    "similarity_topk": Problem(
        "Q,M,D,k",
        {
            "1,024 of 50k, k 50": (1024, 50_000, 768, 50),
            "large, 1,024 of 200k, k 100": (1024, 200_000, 768, 100),
        },
        _similarity_topk_inputs,
        lambda query, keys, k: similarity_topk(query, keys, k).values,
        _similarity_topk_work,
        differentiable=False,
    ),
    "tiered_rank": Problem(
        "R,N",
        {"paper, 960 x 100": (960, 100), "960 x 512": (960, 512)},
        _tiered_rank_inputs,
        lambda similarity, between: (
            tiered_rank(similarity, between, temperature=TEMPERATURE, num_tiers=TIERS).logsumexp
        ),
        _tiered_rank_work,
    ),
}
