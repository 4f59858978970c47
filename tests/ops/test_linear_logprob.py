"""`linear_logprob` against all logits in float64."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from elva.ops import LinearLogprob, library, linear_logprob, linear_logprob_reference
from elva.ops.linear_logprob import _composite, _hidden_gradient

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def run_fallback(hidden: Tensor, weight: Tensor, targets: Tensor, **options: Any) -> LinearLogprob:
    """The PyTorch back-end, whose backward is written out: hooked to autograd here."""

    class Fallback(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, hidden: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(library, "_warned", True)
                logprob, entropy, _, ctx.expected = _composite(
                    hidden, weight.detach(), targets, temperature, True
                )
            ctx.hidden, ctx.temperature = hidden, temperature
            return logprob, entropy

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
            saved = (ctx.hidden, weight.detach(), targets, ctx.expected, ctx.temperature)
            return _hidden_gradient(grads[0], *saved), None

    return LinearLogprob(*Fallback.apply(hidden, options.get("temperature", 1.0)))


def run_as_on_a_gpu(hidden: Tensor, weight: Tensor, targets: Tensor, **options: Any) -> LinearLogprob:
    """`run_fallback` with what a GPU's launcher rounds: probabilities go to their product in the head's dtype."""
    product = Tensor.__matmul__

    def rounded(p: Tensor, head: Tensor) -> Tensor:
        # the products of the sweep with the head itself, not with its transpose
        return product(p.to(weight.dtype).to(p.dtype) if head.shape[1] == weight.shape[1] else p, head)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "__matmul__", rounded)
        return run_fallback(hidden, weight, targets, **options)


FROZEN: dict[str, Callable[..., LinearLogprob]] = {
    "operator": linear_logprob,
    "reference": linear_logprob_reference,
    "fallback": run_fallback,
    "as on a GPU": run_as_on_a_gpu,
}
ROUNDS_PROBABILITIES = {run_as_on_a_gpu, *([linear_logprob] if DEVICE == "cuda" else [])}


def problem(
    seed: int, count: int, dim: int, vocabulary: int, dtype: torch.dtype = torch.float32, spread: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, dim, generator=generator).to(DEVICE, dtype)
    weight = (spread * torch.randn(vocabulary, dim, generator=generator)).to(DEVICE, dtype)
    return hidden, weight, torch.randint(0, vocabulary, (count,), generator=generator).to(DEVICE)


def results(
    function: Callable[..., LinearLogprob],
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    head: bool,
    **options: Any,
) -> list[Tensor]:
    """logprob, entropy, gradient of hidden, and of weight on request, for fixed upstream gradients."""
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_(head)
    out = function(hidden, weight, targets, **options)
    wanted = [hidden, weight] if head else [hidden]
    grads = torch.autograd.grad(out.logprob, wanted, upstream(targets).to(out.logprob))
    return [out.logprob.detach(), out.entropy, *grads]


def upstream(targets: Tensor) -> Tensor:
    return torch.randn(targets.shape[0], generator=torch.Generator().manual_seed(5))


def rounding_of_probabilities(
    function: Callable[..., LinearLogprob], weight: Tensor, targets: Tensor, temperature: float
) -> float:
    """What the gradient may be off by where p is half precision in its product with the head: unit · Σ p |W|."""
    if function not in ROUNDS_PROBABILITIES or weight.dtype.itemsize > 2 or not targets.numel():
        return 0.0
    unit = torch.finfo(weight.dtype).eps
    return unit * float(weight.abs().max()) * float(upstream(targets).abs().max()) / temperature


def assert_as_defined(
    function: Callable[..., LinearLogprob],
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    head: bool,
    **options: Any,
) -> None:
    found = results(function, hidden, weight, targets, head, **options)
    plain = results(linear_logprob_reference, hidden, weight, targets, head, **options)
    exact = results(linear_logprob_reference, hidden.double(), weight.double(), targets, head, **options)
    temperature = options.get("temperature", 1.0)
    logits = hidden.double() @ weight.double().T / temperature
    rounding = rounding_of_probabilities(function, weight, targets, temperature)
    assert_as_exact(found, plain, exact, logits, rounding)


def assert_as_exact(
    found: list[Tensor], plain: list[Tensor], exact: list[Tensor], logits: Tensor, rounding: float = 0.0
) -> None:
    """Errors below twice those of plain PyTorch, and a little that grows with the logits; gradients: and `rounding`."""
    largest = 1 + float(logits.abs().max()) if logits.numel() else 1.0
    for index, (value, other, true) in enumerate(zip(found, plain, exact, strict=True)):
        assert value.dtype == other.dtype and value.shape == true.shape
        error, of_plain = (value.double() - true).abs(), (other.double() - true).abs()
        # Units in the last place of the logits, which the exponential makes relative errors.
        bound = (
            4
            * torch.finfo(torch.float32).eps
            * largest
            * (1 + true.abs().max().item() if true.numel() else 1)
        )
        small = bound + torch.finfo(value.dtype).eps * true.abs() + (rounding if index > 1 else 0)
        assert (error <= 2 * of_plain + small).all()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    count=st.sampled_from([0, 1, 5, 33]),
    dim=st.sampled_from([1, 7, 32]),
    vocabulary=st.sampled_from([1, 2, 255, 257, 1000]),
    temperature=st.sampled_from([0.3, 1.0]),
    spread=st.sampled_from([0.0, 1.0, 5.0]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
@pytest.mark.parametrize("backend", FROZEN)
def test_equals_the_definition(backend, seed, count, dim, vocabulary, temperature, spread, dtype):
    inputs = problem(seed, count, dim, vocabulary, dtype, spread)
    assert_as_defined(FROZEN[backend], *inputs, head=False, temperature=temperature)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tile", [1 << 12, 1 << 21])
def test_a_trained_head(monkeypatch, dtype, tile):
    monkeypatch.setattr(sys.modules["elva.ops.linear_logprob"], "TILE_ELEMENTS", tile)
    assert_as_defined(linear_logprob, *problem(0, 9, 16, 700, dtype), head=True, temperature=0.7)


def test_trainable_rows_get_a_sparse_gradient():
    hidden, weight, targets = problem(1, 12, 8, 50)
    targets[:4] = torch.tensor([3, 3, 17, 40])
    rows = torch.tensor([17, 3, 49], device=DEVICE)
    found = results(linear_logprob, hidden, weight, targets, True, trainable_rows=rows)
    expected = results(linear_logprob_reference, hidden, weight, targets, True, trainable_rows=rows)
    assert found[3].is_sparse
    torch.testing.assert_close(found[3].to_dense(), expected[3], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[2], expected[2], rtol=0, atol=1e-5)


def some_rows(vocabulary: int) -> Tensor:
    """First, last and inner rows, in no order: they lie in different tiles."""
    return torch.tensor(
        sorted({0, vocabulary - 1, vocabulary // 2, 17 % vocabulary}, reverse=True), device=DEVICE
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("count", "vocabulary"), [(0, 9), (1, 1), (33, 5), (9, 700), (3000, 2000)])
def test_values_in_the_place_of_rows(dtype: torch.dtype, count: int, vocabulary: int):
    hidden, weight, targets = problem(1, count, 8, vocabulary, dtype)
    rows = some_rows(vocabulary)
    values = torch.randn(len(rows), 8, generator=torch.Generator().manual_seed(2)).to(weight)
    targets[: 2 * len(rows)] = rows.repeat(2)[:count]
    # Of the rows that are replaced nothing may be left.
    weight[rows] = 100.0

    def step(function: Callable[..., LinearLogprob], *inputs: Tensor) -> list[Tensor]:
        h, w, v = (x.detach().requires_grad_() for x in inputs)
        out = function(h, w, targets, temperature=0.7, trainable_rows=rows, row_values=v)
        grads = torch.autograd.grad(
            out.logprob, (h, v, w), upstream(targets).to(out.logprob), allow_unused=True
        )
        assert grads[2] is None or not grads[2].any()
        return [out.logprob.detach(), out.entropy, *grads[:2]]

    inputs = (hidden, weight, values)
    exact = [x.double() for x in inputs]
    logits = exact[0] @ exact[1].index_copy(0, rows, exact[2]).T / 0.7
    plain = step(linear_logprob_reference, *inputs)
    head = weight.index_copy(0, rows, values)
    rounding = rounding_of_probabilities(linear_logprob, head, targets, 0.7)
    assert_as_exact(
        step(linear_logprob, *inputs), plain, step(linear_logprob_reference, *exact), logits, rounding
    )


@pytest.mark.parametrize("with_expected", [False, True])
def test_backends_put_the_values_into_both_products(monkeypatch, with_expected):
    monkeypatch.setattr(sys.modules["elva.ops.linear_logprob"], "TILE_ELEMENTS", 1 << 11)
    hidden, weight, targets = problem(1, 7, 8, 900, torch.float64)
    rows = some_rows(900)
    values = torch.randn(len(rows), 8, dtype=torch.float64).to(DEVICE)
    arguments = (hidden, weight, targets, 0.7, with_expected, rows, values)
    whole = (hidden, weight.index_copy(0, rows, values), *arguments[2:5], None, None)
    for function in (torch.ops.elva.linear_logprob.default, _composite):
        for value, expected in zip(function(*arguments), function(*whole), strict=True):
            torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("backend", FROZEN)
def test_many_tiles(backend):
    assert_as_defined(FROZEN[backend], *problem(2, 3000, 4, 2000), head=False)


@pytest.mark.parametrize("backend", FROZEN)
def test_extreme_logits(backend):
    hidden = torch.tensor([[1.0], [-1.0]], device=DEVICE)
    weight = torch.tensor([[-1000.0], *[[0.0]] * 300, [1000.0]], device=DEVICE)
    out = FROZEN[backend](hidden, weight, torch.tensor([301, 301], device=DEVICE))
    assert out.logprob.tolist() == [0.0, -2000.0]
    assert out.entropy.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("backend", FROZEN)
@pytest.mark.parametrize("place", [0, 299, 599])
def test_what_is_nearly_certain_is_as_accurate_as_what_is_not(monkeypatch, backend, place):
    """Logits of 1,000 whose distances are exact: rounding by the logits' size would be 1e-4."""
    monkeypatch.setattr(sys.modules["elva.ops.linear_logprob"], "TILE_ELEMENTS", 256)
    logits = torch.full((600,), 988.0)
    logits[place] = 1000.0
    hidden = torch.ones(1, 1, device=DEVICE)
    out = FROZEN[backend](hidden, logits[:, None].to(DEVICE), torch.tensor([place], device=DEVICE))
    exact = logits.double().log_softmax(0)
    torch.testing.assert_close(out.logprob.double().cpu(), exact[[place]], rtol=0, atol=1e-5)
    entropy = -(exact.exp() * exact).sum()[None]
    torch.testing.assert_close(out.entropy.double().cpu(), entropy, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", FROZEN)
def test_nan_is_not_hidden_and_stays_in_its_row(backend):
    hidden, weight, targets = problem(3, 3, 4, 600)
    hidden[1] = math.nan
    out = FROZEN[backend](hidden, weight, targets)
    assert out.logprob.isnan().tolist() == [False, True, False]


def test_strides():
    hidden, weight, targets = problem(4, 6, 10, 300)
    wide = [x.repeat_interleave(2, dim=1)[:, ::2] for x in (hidden, weight)]
    assert_as_defined(linear_logprob, *wide, targets, head=True)
    assert_as_defined(
        linear_logprob, hidden.t().contiguous().t(), weight.t().contiguous().t(), targets, head=False
    )


def test_gradcheck():
    hidden, weight, targets = problem(5, 4, 3, 6, torch.float64)
    inputs = (hidden.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(
        lambda h, w: linear_logprob(h, w, targets, temperature=0.8).logprob, inputs
    )
    rows = torch.tensor([4, int(targets[0])], device=DEVICE)
    options: dict[str, Any] = {"temperature": 0.8, "trainable_rows": rows}
    values = torch.randn(2, 3, dtype=torch.float64).to(DEVICE).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda h, v: linear_logprob(h, weight, targets, row_values=v, **options).logprob, (inputs[0], values)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    hidden, weight, targets = problem(6, 4, 8, 40, dtype)
    op = torch.ops.elva.linear_logprob.default
    rows = torch.tensor([1, 5], device=DEVICE)
    values = torch.randn(2, 8, device=DEVICE).to(dtype)
    for apart in ((None, None), (rows, values.requires_grad_())):
        torch.library.opcheck(op, (hidden.requires_grad_(), weight, targets, 0.8, True, *apart))
    hidden, values = hidden.detach(), values.detach()
    torch.library.opcheck(op, (hidden, weight, targets, 0.8, False, None, None))
    logprob, _, logsumexp, _ = op(hidden, weight, targets, 0.8, False, None, None)
    arguments = (torch.ones_like(logprob), hidden, weight, targets, logprob, 0.8)
    torch.library.opcheck(torch.ops.elva.linear_logprob_head_grad.default, arguments)
    arguments = (torch.ones_like(logprob), hidden, targets, logsumexp, 0.8, rows, values)
    torch.library.opcheck(torch.ops.elva.linear_logprob_row_grad.default, arguments)


def test_compiles_into_one_graph():
    hidden, weight, targets = problem(7, 4, 8, 40)

    rows = torch.tensor([3], device=DEVICE)

    def loss(h: Tensor, values: Tensor) -> Tensor:
        trained = linear_logprob(h, weight, targets, trainable_rows=rows, row_values=values)
        return (linear_logprob(h, weight, targets).logprob + trained.logprob).sum()

    one, other = ([x.clone().requires_grad_() for x in (hidden, weight[:1])] for _ in range(2))
    loss(*one).backward()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(*other).backward()
    for eager, compiled in zip(one, other, strict=True):
        torch.testing.assert_close(eager.grad, compiled.grad)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "hidden has dtype torch.int64"),
        (
            {"weight": torch.zeros(5, 3).double()},
            TypeError,
            "weight has dtype torch.float64; expected that of hidden",
        ),
        ({"hidden": torch.zeros(3)}, ValueError, r"hidden has shape \[3\]; expected \[T, H\]"),
        ({"weight": torch.zeros(5, 4)}, ValueError, r"weight has shape \[5, 4\]; expected \[V, 3\]"),
        ({"targets": torch.zeros(2)}, TypeError, "targets has dtype torch.float32; expected torch.int64"),
        (
            {"targets": torch.zeros(3, dtype=torch.int64)},
            ValueError,
            r"targets has shape \[3\]; expected \[2\]",
        ),
        ({"targets": torch.tensor([0, 5])}, ValueError, "targets holds 5; expected 0 to 4"),
        ({"trainable_rows": torch.tensor([-1])}, ValueError, "trainable_rows holds -1"),
        (
            {"row_values": torch.zeros(1, 3)},
            ValueError,
            "row_values is given without trainable_rows; expected the rows that it replaces",
        ),
        (
            {"row_values": torch.zeros(1, 2), "trainable_rows": torch.tensor([4])},
            ValueError,
            r"row_values has shape \[1, 2\]; expected \[1, 3\]",
        ),
        (
            {"row_values": torch.zeros(1, 3).double(), "trainable_rows": torch.tensor([4])},
            TypeError,
            "row_values has dtype torch.float64; expected that of hidden, torch.float32",
        ),
        ({"temperature": 0.0}, ValueError, "temperature is 0.0; expected a finite number above 0"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], error: type[Exception], message: str):
    arguments = {
        "hidden": torch.zeros(2, 3),
        "weight": torch.zeros(5, 3),
        "targets": torch.zeros(2, dtype=torch.int64),
        **change,
    }
    for function in (linear_logprob, linear_logprob_reference):
        with pytest.raises(error, match=message):
            function(**arguments)


@pytest.mark.parametrize("trained", ["hidden", "head", "rows"])
def test_second_derivatives_are_refused_not_zero(trained):
    hidden, weight, targets = problem(8, 3, 4, 9)
    rows = torch.tensor([2], device=DEVICE) if trained == "rows" else None
    values = None if rows is None else weight[rows]
    wanted = {"hidden": hidden, "head": weight, "rows": values}[trained].requires_grad_()
    logprob = linear_logprob(hidden, weight, targets, trainable_rows=rows, row_values=values).logprob
    (grad,) = torch.autograd.grad(logprob.sum(), wanted, create_graph=True)
    with pytest.raises(RuntimeError, match=r"has no derivative of its own|once_differentiable"):
        torch.autograd.grad(grad.square().sum(), wanted)
