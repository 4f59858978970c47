"""The Triton kernels of `rank_reward` without a GPU: run by the interpreter.

The interpreter replaces Triton's compiler for the whole process, so its tests run in a process of their own, which
`test_in_the_interpreter` starts on this same file. On a CUDA device test_rank_reward.py runs the compiled kernels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from elva.ops import rank_reward_reference

pytest.importorskip("triton", reason="Triton is not installed")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(
    not INTERPRETED, reason="run by test_in_the_interpreter, with TRITON_INTERPRET=1"
)
compiled = pytest.mark.skipif(INTERPRETED, reason="the interpreter has no compiler")
OPTIONS = (0.1, 0.5, True, 0.4, 0.6, math.e, False)
"""Of the backward; the forward takes scale_rewards behind them."""


@pytest.fixture(scope="module", autouse=True)
def poisoned_outputs() -> Iterator[None]:
    """Fresh memory is filled with NaN in this mode, so that a place which a kernel leaves out shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # some of CUDA's sums are not
    yield
    torch.use_deterministic_algorithms(False)


def reference(
    query: Tensor,
    positive: Tensor,
    negatives: Tensor,
    mask: Tensor | None,
    upstream: list[Tensor],
    options: tuple,
    scale_rewards: str,
) -> tuple[list[Tensor], list[Tensor]]:
    delta, gamma, normalize_gamma, alpha, epsilon, log_base, clamp_negative_weight = options
    inputs = [tensor.detach().requires_grad_() for tensor in (query, positive, negatives)]
    out = rank_reward_reference(
        *inputs,
        mask,
        delta=delta,
        gamma=gamma,
        normalize_gamma=normalize_gamma,
        alpha=alpha,
        epsilon=epsilon,
        log_base=log_base,
        clamp_negative_weight=clamp_negative_weight,
        scale_rewards=scale_rewards,
    )
    outputs = [out.similarities, out.margin, out.ranking, out.total]
    loss = sum((x * weight.to(x.dtype)).sum() for x, weight in zip(outputs, upstream, strict=True))
    gradients = torch.autograd.grad(loss, inputs)
    return [tensor.detach() for tensor in out], list(gradients)


def assert_backend(
    query: Tensor,
    positive: Tensor,
    negatives: Tensor,
    mask: Tensor | None,
    options: tuple = OPTIONS,
    scale_rewards: str = "group",
) -> list[Tensor]:
    """Error below twice that of plain PyTorch in the same dtype plus a small constant, against float64."""
    from elva.ops.rank_reward_triton import backward, forward

    generator = torch.Generator().manual_seed(1)
    rows = query.shape[:2]
    shapes = [(*rows, 1 + negatives.shape[2]), rows, rows, rows]
    upstream = [torch.randn(shape, generator=generator) for shape in shapes]
    inputs = (query, positive, negatives)
    out = forward(*inputs, mask, *options, scale_rewards)
    alone = forward(*inputs, mask, *options, None)
    assert alone[-1].numel() == 0
    assert all(torch.equal(*pair) for pair in zip(alone[:-1], out[:-1], strict=True))
    gradients = backward(*upstream, *inputs, mask, out[0], *options)
    plain, plain_gradients = reference(*inputs, mask, upstream, options, scale_rewards)
    exact, exact_gradients = reference(*(x.double() for x in inputs), mask, upstream, options, scale_rewards)

    assert torch.equal(out[1], exact[1])
    found, expected = [*out, *gradients], [*exact, *exact_gradients]
    for value, other, true in zip(found, [*plain, *plain_gradients], expected, strict=True):
        if value.dtype == torch.int64:
            continue
        assert value.dtype == other.dtype and value.shape == true.shape
        # One unit in the last place on top: the interpreter truncates to bfloat16 where hardware rounds.
        small = torch.finfo(value.dtype).eps * true.abs() + 2e-6
        assert ((value.double() - true).abs() <= 2 * (other.double() - true).abs() + small).all()
    return found


def draw(
    batch: int, groups: int, count: int, dim: int, shared: bool, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(batch + 10 * groups + 100 * count + dim)
    owners = 1 if shared else groups
    shapes = [(batch, groups, dim), (batch, owners, dim), (batch, owners, count, dim)]
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("batch", "groups", "count", "dim", "shared"),
    [(2, 3, 7, 5, True), (1, 2, 17, 300, False), (1, 1, 0, 3, False), (1, 1, 1, 1, True)],
)
def test_interpreted_kernels(
    batch: int, groups: int, count: int, dim: int, shared: bool, dtype: torch.dtype
) -> None:
    assert_backend(*draw(batch, groups, count, dim, shared, dtype), None)


@interpreted
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("rows", [1, 2])
def test_interpreted_mask_and_nan_padding(shared: bool, rows: int) -> None:
    query, positive, negatives = draw(2, 2, 70, 6, shared, torch.float32)
    mask = torch.rand(2, rows, 70, generator=torch.Generator().manual_seed(0)) > 0.4
    mask[1] = False
    dead = ~mask.expand(-1, 2, -1)
    dead = dead.all(1, keepdim=True) if shared else dead
    found = assert_backend(query, positive, negatives.masked_fill(dead[..., None], math.nan), mask)
    assert all(value.isfinite().all() for value in found)
    assert not found[-1].expand(-1, 2, -1, -1)[dead.expand(-1, 2, -1)].any()


@interpreted
@pytest.mark.parametrize(
    "options", [(-0.8, 0.01, False, 1.0, 1.0, 2.0, False), (0.1, 0.5, True, 0.4, 0.6, math.e, True)]
)
def test_interpreted_options_ties_zeros_and_strides(options: tuple) -> None:
    query, positive, negatives = draw(2, 2, 9, 6, False, torch.float32)
    negatives[:, :, 4] = positive
    negatives[:, :, 6] = negatives[:, :, 0]
    query[0, 0] = 0
    negatives[1, 1, 2] = 0
    wide = [x.repeat_interleave(2, dim=-1)[..., ::2] for x in (query, positive)]
    found = assert_backend(*wide, negatives.transpose(0, 2).contiguous().transpose(0, 2), None, options)
    # A zero query ties with everything: last among ten.
    assert found[1][0, 0] == 10
    assert not found[7][0, 0].any()
    assert not found[9][1, 1, 2].any()


@interpreted
def test_interpreted_collapsed_encoder_ranks_last() -> None:
    from elva.ops.rank_reward_triton import forward

    point = torch.randn(1, 1, 77, generator=torch.Generator().manual_seed(0))
    out = forward(point, point, point[:, :, None].expand(1, 1, 40, 77), None, *OPTIONS, None)
    assert out[1].item() == 41


@interpreted
@pytest.mark.parametrize("scale_rewards", ["group", "none"])
def test_interpreted_advantages(scale_rewards: str) -> None:
    query, positive, negatives = draw(3, 5, 4, 6, False, torch.float32)
    for tensor in (query, positive, negatives):
        tensor[1] = tensor[1, :1]  # equal rewards
    found = assert_backend(query, positive, negatives, None, scale_rewards=scale_rewards)
    assert not found[6][1].any() and found[6][[0, 2]].all()
    from elva.ops.rank_reward_triton import forward

    positive[0, 3] = math.nan
    advantage = forward(query, positive, negatives, None, *OPTIONS, scale_rewards)[-1]
    assert advantage[0].isnan().all()
    torch.testing.assert_close(advantage[1:], found[6][1:])


@pytest.mark.slow
@compiled
def test_in_the_interpreter(run_interpreted: Callable[[str], None]) -> None:
    run_interpreted(__file__)
