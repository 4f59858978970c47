"""The rule for errors: what it lets pass, and above all what it does not."""

from __future__ import annotations

import math

import pytest
import torch

from elva.ops.accuracy import Accuracy, accuracy, least_accurate

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def exact(seed: int = 0) -> torch.Tensor:
    return torch.randn(40, 30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_passes_and_one_percent_does_not(dtype: torch.dtype) -> None:
    true = exact()
    plain = true.to(dtype)
    assert accuracy(plain, plain, true).passes
    wrong = accuracy((1.01 * true).to(dtype), plain, true)
    assert not wrong.passes
    assert wrong.of == "norm"


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_wrong_element_is_seen(dtype: torch.dtype) -> None:
    true = exact()
    found = true.to(dtype)
    place = int(true.abs().argmax())
    found.view(-1)[place] *= 1.03
    wrong = accuracy(found, true.to(dtype), true)
    assert not wrong.passes
    assert wrong.of == "worst element"


def test_twice_the_error_of_plain_pytorch_is_the_limit() -> None:
    true = exact()
    off = 1e-3 * torch.ones_like(true)
    plain = (true + off).float()
    assert accuracy((true + 1.9 * off).float(), plain, true).passes
    assert not accuracy((true + 2.1 * off).float(), plain, true).passes


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_must_be_so_in_both(bad: float) -> None:
    true = exact()
    found = true.float()
    found[3, 4] = bad
    assert not accuracy(found, true.float(), true).passes
    true[3, 4] = bad
    assert accuracy(found, true.float(), true).passes
    other = true.float()
    other[3, 4] = 0.0
    assert not accuracy(other, found, true).passes


def test_a_nan_of_plain_pytorch_excuses_nothing() -> None:
    true = exact()
    plain = true.float()
    plain[0, 0] = math.nan
    assert not accuracy(1.01 * true.float(), plain, true).passes


def test_whole_numbers_must_be_equal() -> None:
    true = torch.arange(5)
    assert accuracy(true.clone(), true, true).passes
    assert not accuracy(true + 1, true, true).passes


def test_zeros_and_nothing() -> None:
    zeros = torch.zeros(4, dtype=torch.float64)
    assert accuracy(zeros.float(), zeros.float(), zeros).passes
    assert not accuracy(zeros.float() + 1e-3, zeros.float(), zeros).passes
    empty = torch.zeros(0, 3)
    assert accuracy(empty, empty, empty.double()).passes


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"found, plain and exact have the shapes \[2\], \[2\], \[3\]"):
        accuracy(torch.zeros(2), torch.zeros(2), torch.zeros(3))


def test_the_least_accurate_of_several_is_named() -> None:
    true = exact()
    found = {"loss": true.float(), "gradient": 1.02 * true.float(), "rank": torch.arange(3)}
    plain = {**found, "gradient": true.float()}
    exact_ones = {"loss": true, "gradient": true, "rank": torch.arange(3)}
    worst = least_accurate(found, plain, exact_ones)
    assert worst.of.startswith("gradient") and not worst.passes
    worst = least_accurate({**found, "rank": torch.arange(3) + 1}, plain, exact_ones)
    assert worst.of == "rank" and worst.error == math.inf


def test_no_number_is_no_pass() -> None:
    assert not Accuracy(math.nan, 1.0).passes
    assert Accuracy(math.nan, 1.0).share == math.inf
