"""Forward-mode derivatives through an operator or a loss are an error, or right; PyTorch would take them for 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from elva import losses
from elva.ops.table import OPERATORS

LEAVES = [
    (name, leaf)
    for name, operator in OPERATORS.items()
    for leaf in operator.differentiable or ("query", "keys")
]


def problem(name: str, leaf: str) -> dict[str, Any]:
    arguments = OPERATORS[name].example(torch.Generator().manual_seed(0))
    if leaf == "temperature":
        arguments["temperature"] = torch.tensor(0.5)
    if leaf == "row_values":
        arguments["trainable_rows"] = torch.tensor([3])
        arguments["row_values"] = torch.ones(1, 32)
    return arguments


def tangent_of(function: Callable[[Tensor], Tensor], at: Tensor, how: str) -> Tensor | None:
    direction = torch.ones_like(at)
    if how == "jvp":
        return torch.func.jvp(function, (at,), (direction,))[1]
    with forward_ad.dual_level():
        tracked = forward_ad.make_dual(at.requires_grad_(how == "with reverse mode"), direction)
        return forward_ad.unpack_dual(function(tracked)).tangent


@pytest.mark.parametrize("how", ["dual", "with reverse mode", "jvp"])
@pytest.mark.parametrize(("name", "leaf"), LEAVES)
def test_operators_refuse(name: str, leaf: str, how: str) -> None:
    arguments = problem(name, leaf)

    def first(value: Tensor) -> Tensor:
        operator = OPERATORS[name]
        return next(iter(operator.outputs(operator.function(**{**arguments, leaf: value})).values()))

    with pytest.raises(
        NotImplementedError, match=f"^elva::{name} has no forward-mode derivative: use reverse"
    ):
        tangent_of(first, arguments[leaf], how)


@pytest.mark.parametrize("name", [name for name, operator in OPERATORS.items() if operator.differentiable])
def test_gradients_refuse(name: str) -> None:
    # forward over reverse, as in a Hessian times a vector
    operator, leaf = OPERATORS[name], OPERATORS[name].differentiable[0]
    arguments = problem(name, leaf)
    at = arguments[leaf].requires_grad_()
    graded = operator.outputs(operator.function(**arguments))[operator.graded[0]]
    with (
        forward_ad.dual_level(),
        pytest.raises(NotImplementedError, match=rf"^elva::{name}_\w+ has no forward-mode derivative"),
    ):
        torch.autograd.grad(
            graded, at, forward_ad.make_dual(torch.ones_like(graded), torch.ones_like(graded))
        )


@pytest.mark.parametrize("name", [name for name, operator in OPERATORS.items() if operator.differentiable])
def test_references_have_the_right_tangent(name: str) -> None:
    operator, leaf = OPERATORS[name], OPERATORS[name].differentiable[0]
    arguments = {key: x.double() if _real(x) else x for key, x in problem(name, leaf).items()}

    def first(value: Tensor) -> Tensor:
        return operator.outputs(operator.reference(**{**arguments, leaf: value}))[operator.graded[0]]

    at, step = arguments[leaf], 1e-6
    expected = (first(at + step) - first(at - step)) / (2 * step)
    torch.testing.assert_close(tangent_of(first, at.clone(), "jvp"), expected, rtol=1e-5, atol=1e-7)


def _real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


QUERY, OTHERS, NEGATIVES = (
    torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for shape in ((4, 6), (4, 6), (4, 5, 6))
)
IDS, MASK = torch.arange(4).expand(4, 4), torch.ones(4, 4, dtype=torch.bool)
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "InfoNCELoss": lambda x: losses.InfoNCELoss()(x, OTHERS),
    "CachedInfoNCELoss": lambda x: losses.CachedInfoNCELoss(2)(lambda y: y * 2, x, OTHERS),
    "ELVALoss": lambda x: losses.ELVALoss()(x, OTHERS, NEGATIVES),
    "ELVALoss, no tiers": lambda x: losses.ELVALoss(tier_weight=0)(x, OTHERS, NEGATIVES),
    "ELVALoss, reward": lambda x: losses.ELVALoss(form="reward")(x, OTHERS, NEGATIVES),
    "TieredRankingLoss": lambda x: losses.TieredRankingLoss()(x, OTHERS, NEGATIVES),
    "elva_reward": lambda x: losses.elva_reward(x, OTHERS, NEGATIVES).sum(),
    "ranking_reward": lambda x: losses.ranking_reward(x, OTHERS, NEGATIVES).sum(),
    "margin_reward": lambda x: losses.margin_reward(x, OTHERS, NEGATIVES).sum(),
    "GRPOLoss": lambda x: losses.GRPOLoss()(x, OTHERS[:1, :4], torch.ones(4, 6), ref_logps=OTHERS),
    "GRPOLoss.from_hidden": lambda x: losses.GRPOLoss(beta=0).from_hidden(
        x.expand(4, 4, 6), OTHERS, IDS, OTHERS[:1, :4], MASK
    ),
}
PLAIN = ("ELVALoss, no tiers", "GRPOLoss")
"""Plain PyTorch throughout: the tangent is there, and right."""


@pytest.mark.parametrize("how", ["dual", "jvp"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str, how: str) -> None:
    function, at = LOSSES[name], QUERY.clone()
    if name in PLAIN:
        step = 1e-6
        expected = (function(at + step) - function(at - step)) / (2 * step)
        torch.testing.assert_close(tangent_of(function, at, how), expected, rtol=1e-5, atol=1e-7)
        return
    with pytest.raises(NotImplementedError, match="has no forward-mode derivative"):
        tangent_of(function, at, how)
