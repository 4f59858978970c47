"""The Triton kernel of `similarity_topk` without a GPU: run by the interpreter, in a process of its own.

On a CUDA device test_similarity_topk.py runs the compiled kernel.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from elva.ops.similarity_topk import _composite

pytest.importorskip("triton", reason="Triton is not installed")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(
    not INTERPRETED, reason="run by test_in_the_interpreter, with TRITON_INTERPRET=1"
)


def run(
    update: Callable[..., None], query: Tensor, blocks: list[Tensor], k: int, *options
) -> tuple[Tensor, Tensor]:
    ceiling, exclude, cosine = options
    values = torch.full((query.shape[0], k), -math.inf)
    indices = torch.full((query.shape[0], k), -1)
    offset = 0
    for block in blocks:
        update(query, block, ceiling, exclude, offset, cosine, False, values, indices)
        offset += block.shape[0]
    return values, indices


def assert_equal_to_sorting(query: Tensor, keys: Tensor, k: int, *options) -> None:
    from elva.ops.similarity_topk_triton import update

    # Whole numbers, so that both products are exact, and ties are many.
    found = run(update, query, list(keys.split(700)), k, *options)
    expected = run(_composite, query, [keys], k, *options)
    if options[2]:
        torch.testing.assert_close(found[0], expected[0])
    else:
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def problem(queries: int, keys: int, dim: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(keys)
    return tuple(torch.randint(-3, 4, (n, dim), generator=generator).float() for n in (queries, keys))


@interpreted
@pytest.mark.parametrize(
    ("keys", "k", "cosine"),
    [(1, 3, True), (40, 7, False), (1500, 20, True), (1030, 200, False), (0, 2, False)],
)
def test_interpreted_kernel(keys: int, k: int, cosine: bool) -> None:
    assert_equal_to_sorting(*problem(3, keys, 6), k, None, None, cosine)


@interpreted
def test_interpreted_ceiling_and_exclusions() -> None:
    query, keys = problem(3, 900, 5)
    exclude = torch.tensor([[-1, -1, 5], [1, 2, 800], [0, 7, 899]])
    assert_equal_to_sorting(query, keys, 20, torch.tensor([9.0, math.inf, -2.0]), exclude, False)


@interpreted
def test_interpreted_nan_zero_and_half() -> None:
    from elva.ops.similarity_topk_triton import update

    query = torch.tensor([[1.0, 1.0], [math.nan, 1.0]])
    pool = torch.tensor([[1.0, 0.0], [math.nan, 0.0], [-math.inf, 0.0], [0.0, -0.0], [-2.0, 0.5]])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        found = run(update, query.to(dtype), [pool.to(dtype)], 4, None, None, False)
        assert found[1].tolist() == [[0, 3, 4, -1], [-1, -1, -1, -1]]
    found = run(update, query, [pool], 4, None, None, True)
    assert found[1][0].tolist() == [0, 3, 4, -1]


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="starts the interpreter")
def test_in_the_interpreter(run_interpreted: Callable[[str], None]) -> None:
    run_interpreted(__file__)
