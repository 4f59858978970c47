"""The Triton kernels of `tiered_rank` without a GPU: run by the interpreter, in a process of its own.

On a CUDA device test_tiered_rank.py runs the compiled kernels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from elva.ops.tiered_rank import _composite, _composite_backward

pytest.importorskip("triton", reason="Triton is not installed")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(
    not INTERPRETED, reason="run by test_in_the_interpreter, with TRITON_INTERPRET=1"
)


def assert_backend(
    similarity: Tensor,
    between: Tensor,
    mask: Tensor | None = None,
    edges: Tensor | None = None,
    temperature: float = 0.05,
    num_tiers: int = 3,
    ceiling: float = math.inf,
) -> None:
    from elva.ops.tiered_rank_triton import backward, forward

    options = (mask, edges, temperature, num_tiers, ceiling)
    logsumexp, rank, tier = forward(similarity, between, *options)
    plain = _composite(similarity, between, *options)
    double_edges = None if edges is None else edges.double()
    exact = _composite(similarity.double(), between.double(), mask, double_edges, *options[2:])
    assert torch.equal(rank, exact[1])
    assert torch.equal(tier, exact[2])
    assert torch.equal(logsumexp == -math.inf, exact[0] == -math.inf)

    upstream = torch.randn(logsumexp.shape, generator=torch.Generator().manual_seed(0))
    grad = backward(upstream, similarity, tier, logsumexp, temperature)
    plain_grad = _composite_backward(upstream, similarity, plain[2], plain[0], temperature)
    exact_grad = _composite_backward(upstream.double(), similarity.double(), exact[2], exact[0], temperature)
    for value, other, true in ((logsumexp, plain[0], exact[0]), (grad, plain_grad, exact_grad)):
        keep = true > -math.inf
        error, of_plain = ((x[keep].double() - true[keep]).abs() for x in (value, other))
        small = torch.finfo(torch.float32).eps * (1 + true[keep].abs()) * (1 + 1 / temperature)
        assert (error <= 2 * of_plain + small).all()
    assert not grad[tier == 0].any()


def draw(rows: int, count: int, distinct: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows + 10 * count)
    similarity, between = 2 * torch.rand(2, rows, count, generator=generator) - 1
    if distinct:
        between = (between * distinct).round() / distinct
    return similarity, between, torch.rand(rows, count, generator=generator) > 0.3


@interpreted
@pytest.mark.parametrize(("rows", "count"), [(1, 1), (2, 0), (0, 3), (3, 64), (2, 131)])
@pytest.mark.parametrize("distinct", [0, 2])
def test_interpreted_kernels(rows: int, count: int, distinct: int) -> None:
    similarity, between, mask = draw(rows, count, distinct)
    assert_backend(similarity, between)
    assert_backend(similarity, between, mask, num_tiers=5, ceiling=0.6)


@interpreted
def test_interpreted_edges_empty_rows_and_nan_padding() -> None:
    similarity, between, mask = draw(3, 70)
    mask[1] = False
    poisoned = [t.masked_fill(~mask, math.nan) for t in (similarity, between)]
    assert_backend(*poisoned, mask, torch.tensor([0.5, 0.0]))
    assert_backend(*poisoned, mask, temperature=1.0, num_tiers=1)


@interpreted
def test_interpreted_signed_zeros_nan_and_strides() -> None:
    from elva.ops.tiered_rank_triton import forward

    between = torch.tensor([[0.0, -0.0, 0.5, math.nan, -0.5, math.inf]])
    _, rank, tier = forward(torch.zeros_like(between), between, None, None, 1.0, 3, math.inf)
    assert rank.tolist() == [[4, 4, 3, 1, 6, 2]]
    assert tier.tolist() == [[2, 2, 2, 1, 3, 1]]
    similarity, between, mask = draw(4, 9)
    assert_backend(*(x.t().contiguous().t() for x in (similarity, between, mask)))


@pytest.mark.skipif(INTERPRETED, reason="starts the interpreter")
def test_in_the_interpreter(run_interpreted: Callable[[str], None]) -> None:
    run_interpreted(__file__)
