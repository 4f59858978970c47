"""Cosines at any length of float32's range: in every operator, back-end and loss, forward and backward."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from elva import losses, ops
from elva.ops.norms import in_range, inverse_norm, unit

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
LENGTHS = (1.0, 1e20, 1e-22, 1e30, 1e-30, 3e19, 1e-19, 1e36, 1e-36)


def vectors(*shape: int, seed: int = 0) -> Tensor:
    """float32 vectors of very different lengths."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    lengths = torch.tensor(LENGTHS, dtype=torch.float64)
    places = (torch.arange(math.prod(shape[:-1])) + seed) % len(LENGTHS)
    return (
        (torch.nn.functional.normalize(drawn, dim=-1) * lengths[places].view(*shape[:-1], 1))
        .float()
        .to(DEVICE)
    )


def assert_rows_close(found: Tensor, exact: Tensor) -> None:
    """Each row within 1e-4 of its own size, which is as different as the vectors' lengths are."""
    error = (found.double() - exact.double()).norm(dim=-1)
    assert (error <= 1e-4 * exact.double().norm(dim=-1) + 1e-40).all()


def check(function: Callable[..., Any], exact: Callable[..., Any], inputs: list[Tensor]) -> None:
    """Values and the gradients of their sum against float64."""
    results = []
    for form, dtype in ((function, torch.float32), (exact, torch.float64)):
        leaves = [x.to(dtype).requires_grad_() for x in inputs]
        value = form(*leaves)
        results.append((value.detach(), torch.autograd.grad(value.sum(), leaves, materialize_grads=True)))
    torch.testing.assert_close(results[0][0].double(), results[1][0], rtol=1e-5, atol=1e-5)
    for found, expected in zip(results[0][1], results[1][1], strict=True):
        assert_rows_close(found, expected)


FORMS = ["operator", "reference"]


def form_of(name: str, form: str) -> Callable[..., Any]:
    return getattr(ops, name if form == "operator" else f"{name}_reference")


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_rank_reward(form: str, shared: bool) -> None:
    function = form_of("rank_reward", form)
    inputs = [vectors(3, 3, 40), vectors(3, 3, 40, seed=5), vectors(3, 1 if shared else 3, 20, 40, seed=2)]
    check(lambda *x: function(*x).total, lambda *x: ops.rank_reward_reference(*x).total, inputs)
    check(lambda *x: function(*x).similarities, lambda *x: ops.rank_reward_reference(*x).similarities, inputs)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_infonce(form: str, bidirectional: bool) -> None:
    options = {"temperature": 0.3, "bidirectional": bidirectional}
    function = form_of("infonce", form)
    check(
        lambda *x: function(*x, **options),
        lambda *x: ops.infonce_reference(*x, **options),
        [vectors(9, 40), vectors(30, 40, seed=5)],
    )


@pytest.mark.parametrize("screen", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_similarity_topk_by_cosine(form: str, screen: bool) -> None:
    query, keys = vectors(9, 40), vectors(3000, 40, seed=5)
    found = form_of("similarity_topk", form)(query, keys, 10, similarity="cosine", screen=screen)
    exact = ops.similarity_topk_reference(query.double(), keys.double(), 10, similarity="cosine")
    assert torch.equal(found.indices, exact.indices)
    torch.testing.assert_close(found.values.double(), exact.values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("of_query", "of_keys"),
    [(1e18, 1e18), (1e-18, 1e-18), (1e-22, 1.0), (1.0, 1e-22), (1e30, 1e5), (1e-30, 1e30), (3e37, 1e-2)],
)
def test_a_screen_finds_what_float32_finds_near_the_ends_of_its_range(
    of_query: float, of_keys: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    query, keys = (torch.randn(n, 64, generator=generator).to(DEVICE) for n in (7, 3000))
    query, keys = query * of_query, keys * of_keys
    found = ops.similarity_topk(query, keys, 10, screen=True)
    exact = ops.similarity_topk_reference(query.double(), keys.double(), 10)
    assert torch.equal(found.indices, exact.indices)
    torch.testing.assert_close(found.values.double(), exact.values, rtol=1e-5, atol=0.0)


def test_a_screen_with_numbers_that_bfloat16_rounds_to_infinity() -> None:
    keys = torch.zeros(200, 4, device=DEVICE)
    keys[:, 0] = torch.linspace(1e38, 3.4e38, 200)
    keys[7, 0] = -3.4e38
    query = torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]], device=DEVICE)
    found = ops.similarity_topk(query, keys, 3, screen=True)
    assert found.indices.tolist() == [[199, 198, 197], [7, 0, 1]]


ROWS = [vectors(9, 40), vectors(9, 40, seed=5), vectors(9, 20, 40, seed=2)]
LOSSES: dict[str, Callable[..., Tensor]] = {
    "InfoNCELoss": lambda q, p, n: losses.InfoNCELoss(temperature=0.3)(q, p, negatives=n),
    "ELVALoss": lambda *x: losses.ELVALoss(temperature=0.3)(*x),
    "ELVALoss, reward": lambda *x: losses.ELVALoss(form="reward")(*x),
    "TieredRankingLoss": lambda *x: losses.TieredRankingLoss(temperature=0.3)(*x),
    "margin_reward": losses.margin_reward,
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str) -> None:
    check(LOSSES[name], LOSSES[name], [x.clone() for x in ROWS])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_rule(dtype: torch.dtype) -> None:
    tiny = torch.finfo(torch.promote_types(dtype, torch.float32)).tiny
    given = torch.tensor(
        [[3.0, -5.0], [0.0, 0.0], [tiny / 2, 0.0], [tiny, 0.0], [1 / tiny, 3 / tiny], [math.inf, 1.0]],
        dtype=dtype,
    )
    scaled, scale = in_range(given)
    assert scale.flatten().tolist() == [0.25, 0.0, 0.0, 1 / tiny, tiny, 1.0]
    expected = [[0.75, -1.25], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [1.0, 3.0], [math.inf, 1.0]]
    assert scaled.tolist() == expected
    assert in_range(torch.tensor([[math.nan, 1.0]], dtype=dtype))[1].item() == 1.0
    assert inverse_norm(scaled)[1:4].flatten().tolist() == [0.0, 0.0, 1.0]


def test_no_width_is_a_zero_vector() -> None:
    assert unit(torch.ones(2, 0)).shape == (2, 0)


@pytest.mark.skipif(not INTERPRETED, reason="run by test_in_the_interpreter, with TRITON_INTERPRET=1")
@pytest.mark.parametrize("shared", [False, True])
def test_interpreted_rank_reward(shared: bool) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from elva.ops.rank_reward_triton import backward, forward

    options = (0.1, 0.5, True, 0.4, 0.6, math.e, False)
    inputs = [vectors(2, 2, 20), vectors(2, 2, 20, seed=5), vectors(2, 1 if shared else 2, 9, 20, seed=2)]
    leaves = [x.double().requires_grad_() for x in inputs]
    exact = ops.rank_reward_reference(*leaves)
    expected = torch.autograd.grad(exact.total.sum(), leaves)
    similarities, _, margin, *_, total = forward(*inputs, None, *options, None)[:5]
    torch.testing.assert_close(similarities.double(), exact.similarities, rtol=1e-5, atol=1e-5)
    zero = torch.zeros_like(margin)
    upstream = (torch.zeros_like(similarities), zero, zero, torch.ones_like(total))
    for found, gradient in zip(
        backward(*upstream, *inputs, None, similarities, *options), expected, strict=True
    ):
        assert_rows_close(found, gradient)


@pytest.mark.skipif(not INTERPRETED, reason="run by test_in_the_interpreter, with TRITON_INTERPRET=1")
def test_interpreted_similarity_topk(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from elva.ops import similarity_topk_triton

    monkeypatch.setattr(similarity_topk_triton, "CHUNK", 64)
    query, keys = vectors(5, 20), vectors(100, 20, seed=5)
    values, indices = torch.full((5, 4), -math.inf), torch.full((5, 4), -1)
    similarity_topk_triton.update(query, keys, None, None, 0, True, False, values, indices)
    exact = ops.similarity_topk_reference(query.double(), keys.double(), 4, similarity="cosine")
    assert torch.equal(indices, exact.indices)
    torch.testing.assert_close(values.double(), exact.values, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="starts the interpreter")
def test_in_the_interpreter(run_interpreted: Callable[[str], None]) -> None:
    run_interpreted(__file__)
