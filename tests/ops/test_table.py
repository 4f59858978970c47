"""The table holds every operator, and its passes are a call and autograd's gradients."""

from __future__ import annotations

import pytest
import torch

from elva import ops
from elva.ops.table import OPERATORS, converted


def test_every_operator_is_in_the_table() -> None:
    operators = {name.removesuffix("_reference") for name in vars(ops) if name.endswith("_reference")}
    assert set(OPERATORS) == operators


@pytest.mark.parametrize("name", OPERATORS)
def test_gradients_of_every_differentiable_argument_and_of_no_other(name: str) -> None:
    operator = OPERATORS[name]
    arguments = operator.example(torch.Generator().manual_seed(0))
    given = [f"gradient of {argument}" for argument in operator.differentiable if argument in arguments]
    found = operator.passes(operator.function, arguments)
    assert [key for key in found if key.startswith("gradient of")] == given
    assert not any(value.requires_grad for value in found.values())
    without = operator.passes(operator.function, arguments, leaves=())
    assert not any(key.startswith("gradient of") for key in without)
    for key, value in without.items():
        torch.testing.assert_close(value, found[key])


def test_summed_gradients_are_those_of_the_sum() -> None:
    operator = OPERATORS["infonce"]
    arguments = operator.example(torch.Generator().manual_seed(0))
    query = arguments["query"].clone().requires_grad_()
    ops.infonce(query, arguments["keys"]).sum().backward()
    found = operator.passes(operator.function, arguments, leaves=("query",), summed=True)
    torch.testing.assert_close(found["gradient of query"], query.grad)


def test_weights_are_the_same_in_every_dtype() -> None:
    operator = OPERATORS["infonce"]
    single = {"loss": torch.zeros(50)}
    double = {"loss": torch.zeros(50, dtype=torch.float64)}
    assert torch.equal(operator.weights(single)["loss"].double(), operator.weights(double)["loss"])


def test_only_floating_point_tensors_are_converted() -> None:
    found = converted({"x": torch.ones(2), "ids": torch.arange(2), "k": 3}, "cpu", torch.float16)
    assert (found["x"].dtype, found["ids"].dtype, found["k"]) == (torch.float16, torch.int64, 3)
