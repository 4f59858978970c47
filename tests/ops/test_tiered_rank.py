"""`tiered_rank` against its definition, written out here row by row without tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from elva.ops import TieredRank, library, tiered_rank, tiered_rank_reference
from elva.ops.tiered_rank import _composite, _composite_backward, _rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Result = tuple[TieredRank, Tensor]
DEFAULTS = {"temperature": 0.05, "num_tiers": 3, "false_negative_threshold": None, "tier_edges": None}


def run_autograd(function: Callable[..., TieredRank]) -> Callable[..., Result]:
    def run(
        similarity: Tensor, between: Tensor, mask: Tensor | None, upstream: Tensor, options: dict
    ) -> Result:
        similarity = similarity.detach().requires_grad_()
        out = function(similarity, between, mask, **options)
        (grad,) = torch.autograd.grad(out.logsumexp, similarity, upstream.to(out.logsumexp))
        return TieredRank(*(t.detach() for t in out)), grad

    return run


def run_fallback(
    similarity: Tensor, between: Tensor, mask: Tensor | None, upstream: Tensor, options: dict
) -> Result:
    rows = _rows(similarity, between, mask, **{**DEFAULTS, **options})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "_warned", True)
        out = _composite(*rows)
    grad = _composite_backward(upstream.to(out[0]), rows[0], out[2], out[0], rows[4])
    return TieredRank(*out), grad.to(similarity.dtype)


BACKENDS: dict[str, Callable[..., Result]] = {
    "operator": run_autograd(tiered_rank),
    "reference": run_autograd(tiered_rank_reference),
    "fallback": run_fallback,
}


def define_row(
    between: list[float], used: list[bool], options: dict[str, Any]
) -> tuple[list[int], list[int]]:
    """Ranks and tiers of one row."""
    ceiling, edges = options["false_negative_threshold"], options["tier_edges"]
    kept = [i for i, use in enumerate(used) if use and (ceiling is None or not between[i] > ceiling)]
    ranks, tiers = [0] * len(between), [0] * len(between)
    for i in kept:
        nearer = sum(between[j] > between[i] for j in kept)
        ranks[i] = 1 + nearer
        if edges is None:
            tiers[i] = 1 + nearer * options["num_tiers"] // len(kept)
        else:
            tiers[i] = 1 + sum(between[i] < edge for edge in edges)
    return ranks, tiers


def assert_as_defined(
    similarity: Tensor, between: Tensor, mask: Tensor | None, options: dict[str, Any], backend: str
) -> Result:
    options = {**DEFAULTS, **options}
    count = options["num_tiers"] if options["tier_edges"] is None else len(options["tier_edges"]) + 1
    generator = torch.Generator().manual_seed(7)
    upstream = torch.randn(similarity.shape[0], count, generator=generator).to(similarity.device)
    out, grad = BACKENDS[backend](similarity, between, mask, upstream, options)
    used = torch.ones_like(between, dtype=torch.bool) if mask is None else mask
    rows = [define_row(b, u, options) for b, u in zip(between.double().tolist(), used.tolist(), strict=True)]
    assert out.rank.tolist() == [ranks for ranks, _ in rows]
    assert out.tier.tolist() == [tiers for _, tiers in rows]

    exact, exact_grad = (
        torch.full((len(rows), count), -math.inf).double(),
        torch.zeros_like(similarity).double(),
    )
    for r, (_, tiers) in enumerate(rows):
        for t in range(1, count + 1):
            here = [i for i, tier in enumerate(tiers) if tier == t]
            if here:
                logits = similarity[r, here].double() / options["temperature"]
                exact[r, t - 1] = logits.logsumexp(0)
                exact_grad[r, here] = upstream[r, t - 1].double() * logits.softmax(0) / options["temperature"]
    plain, plain_grad = BACKENDS["reference"](similarity, between, mask, upstream, options)
    assert torch.equal(out.logsumexp == -math.inf, exact.to(out.logsumexp.device) == -math.inf)
    for value, other, true in ((out.logsumexp, plain.logsumexp, exact), (grad, plain_grad, exact_grad)):
        true = true.to(value.device)
        keep = true > -math.inf
        # A unit in the last place of a logit as large as 1/τ is 1/τ units of its exponential.
        small = torch.finfo(value.dtype).eps * (1 + true[keep].abs()) * (1 + 1 / options["temperature"])
        error, of_plain = (x[keep].double() - true[keep] for x in (value, other))
        assert (error.abs() <= 2 * of_plain.abs() + small).all()
    return out, grad


def problem(
    seed: int, rows: int, count: int, dtype: torch.dtype = torch.float32, distinct: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines to query and positive (of `distinct` values if given, so that they tie), and a mask."""
    generator = torch.Generator().manual_seed(seed)
    similarity, between = 2 * torch.rand(2, rows, count, generator=generator, dtype=torch.float64) - 1
    if distinct:
        between = (between * distinct).round() / distinct
    mask = torch.rand(rows, count, generator=generator) > 0.3
    return similarity.to(DEVICE, dtype), between.to(DEVICE, dtype), mask.to(DEVICE)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    rows=st.integers(0, 4),
    count=st.sampled_from([0, 1, 2, 7, 33, 70]),
    distinct=st.sampled_from([0, 1, 3]),
    num_tiers=st.integers(1, 6),
    threshold=st.sampled_from([None, 0.4, -2.0]),
    edges=st.sampled_from([None, (0.5,), (0.5, 0.0, -0.5)]),
    temperature=st.sampled_from([0.05, 1.0]),
    masked=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_definition(
    backend, seed, rows, count, distinct, num_tiers, threshold, edges, temperature, masked, dtype
):
    similarity, between, mask = problem(seed, rows, count, dtype, distinct)
    options = {
        "temperature": temperature,
        "num_tiers": num_tiers,
        "false_negative_threshold": threshold,
        "tier_edges": edges,
    }
    assert_as_defined(similarity, between, mask if masked else None, options, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_long_rows_and_strides(backend):
    similarity, between, mask = problem(0, 3, 1024)
    wide = [t.repeat_interleave(2, dim=1)[:, ::2] for t in (similarity, between, mask)]
    assert_as_defined(*wide, {}, backend)
    assert_as_defined(similarity.t().contiguous().t(), between, None, {"num_tiers": 40}, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_entries_may_hold_nan(backend):
    similarity, between, mask = problem(1, 4, 20)
    mask[2] = False
    poisoned = [t.masked_fill(~mask, math.nan) for t in (similarity, between)]
    upstream = torch.ones(4, 3, device=DEVICE)
    expected = BACKENDS[backend](similarity, between, mask, upstream, {})
    found = BACKENDS[backend](*poisoned, mask, upstream, {})
    for one, other in zip((*found[0], found[1]), (*expected[0], expected[1]), strict=True):
        assert torch.equal(one, other)
    assert not found[1][~mask].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_signed_zeros_tie_and_nan_is_nearest(backend):
    between = torch.tensor([[0.0, -0.0, 0.5, math.nan, -0.5, -math.nan]], device=DEVICE)
    similarity = torch.zeros_like(between)
    upstream = torch.ones(1, 3, device=DEVICE)
    out, _ = BACKENDS[backend](similarity, between, None, upstream, {"false_negative_threshold": 0.9})
    assert out.rank.tolist() == [[4, 4, 3, 1, 6, 1]]
    assert out.tier.tolist() == [[2, 2, 2, 1, 3, 1]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_in_use_is_not_hidden(backend):
    similarity = torch.tensor([[0.1, math.nan, 0.3], [0.1, 0.2, 0.3]], device=DEVICE)
    between = torch.tensor([[0.9, 0.1, 0.0]], device=DEVICE).expand(2, 3)
    out, _ = BACKENDS[backend](similarity, between, None, torch.ones(2, 3, device=DEVICE), {})
    assert out.logsumexp.isnan().tolist() == [[False, True, False], [False, False, False]]


def test_leading_dimensions():
    similarity, between, mask = (t.reshape(2, 3, 5) for t in problem(2, 6, 5))
    out = tiered_rank(similarity, between, mask)
    flat = tiered_rank(*(t.reshape(6, 5) for t in (similarity, between, mask)))
    assert out.rank.shape == (2, 3, 5)
    assert torch.equal(out.logsumexp.reshape(6, 3), flat.logsumexp)


@pytest.mark.parametrize("backend", ["operator", "reference"])
def test_gradcheck(backend):
    similarity, between, mask = problem(3, 3, 8, torch.float64)
    function = {"operator": tiered_rank, "reference": tiered_rank_reference}[backend]

    def finite(s: Tensor) -> Tensor:
        out = function(s, between, mask, temperature=0.5, num_tiers=4).logsumexp
        return out.masked_fill(out == -math.inf, 0)

    assert torch.autograd.gradcheck(finite, similarity.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype):
    similarity, between, mask = problem(4, 3, 9, dtype)
    edges = torch.tensor([0.3, -0.3], dtype=dtype, device=DEVICE)
    op = torch.ops.elva.tiered_rank.default
    torch.library.opcheck(op, (similarity.requires_grad_(), between, mask, None, 0.1, 3, math.inf))
    torch.library.opcheck(op, (similarity, between, None, edges, 0.1, 3, 0.5))
    logsumexp, _, tier = op(similarity, between, mask, None, 0.1, 3, math.inf)
    arguments = (torch.randn_like(logsumexp), similarity.detach(), tier, logsumexp.detach(), 0.1)
    torch.library.opcheck(torch.ops.elva.tiered_rank_backward.default, arguments)


def test_compiles_into_one_graph():
    similarity, between, mask = problem(5, 3, 9)

    def loss(s: Tensor) -> Tensor:
        out = tiered_rank(s, between, mask)
        return (out.logsumexp.clamp(min=-50) * out.logsumexp.new_tensor([1.0, 2.0, 3.0])).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    one, other = (similarity.clone().requires_grad_() for _ in range(2))
    loss(one).backward()
    compiled(other).backward()
    torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"similarity": torch.zeros(2, 3, dtype=torch.int64)},
            TypeError,
            "similarity must be floating point",
        ),
        (
            {"between": torch.zeros(2, 4)},
            ValueError,
            r"between must have the shape of similarity, \[2, 3\], got",
        ),
        ({"mask": torch.zeros(2, 3)}, TypeError, "mask must be bool"),
        ({"mask": torch.zeros(3, dtype=torch.bool)}, ValueError, "mask must have the shape of similarity"),
        ({"similarity": torch.tensor(1.0)}, ValueError, r"similarity must have shape \[..., N\]"),
        ({"temperature": 0.0}, ValueError, "temperature must be above 0 and finite, got 0.0"),
        ({"num_tiers": 0}, ValueError, "num_tiers must be at least 1 and at most 1024, got 0"),
        ({"num_tiers": 2.5}, TypeError, "num_tiers must be an int, got float"),
        ({"tier_edges": (0.2, 0.2)}, ValueError, "tier_edges must be strictly descending"),
        ({"false_negative_threshold": math.nan}, ValueError, "false_negative_threshold must be a number"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = {"similarity": torch.zeros(2, 3), "between": torch.zeros(2, 3), **change}
    for function in (tiered_rank, tiered_rank_reference):
        with pytest.raises(error, match=message):
            function(**arguments)


def test_second_derivatives_are_refused_not_zero():
    similarity, between, _ = problem(6, 2, 7)
    out = tiered_rank(similarity.requires_grad_(), between).logsumexp
    (grad,) = torch.autograd.grad(out.sum(), similarity, create_graph=True)
    with pytest.raises(NotImplementedError, match="elva::tiered_rank_backward has no derivative"):
        torch.autograd.grad(grad.sum(), similarity)
