"""Cases of the losses, each against itself in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from elva import losses
from elva.losses.elva import FORMS
from elva.losses.rows import as_rows, similarities
from tests.fuzz.draws import DTYPES, Draws, clear

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 3e-2}
FLOOR = 0.1
"""Of a gradient's size: one that is nearly 0 is the difference of terms as large as 1 / temperature."""
_LEAVES = ("query", "positive", "negatives")


@dataclass
class Loss:
    """``function(inputs)`` of named tensors; those of ``leaves`` get gradients."""

    function: Callable[[dict[str, Tensor | None]], Tensor]
    inputs: dict[str, Tensor | None]
    leaves: tuple[str, ...]
    clear: bool = True

    def __str__(self) -> str:
        parts = [f"{k}={list(x.shape)} {x.dtype}" for k, x in self.inputs.items() if x is not None]
        return ", ".join(parts)


def compare(case: Loss) -> None:
    """AssertionError where value or gradients differ from those in float64 by more than rounding explains."""
    if not case.clear:
        return
    found, exact = _passes(case, False), _passes(case, True)
    tolerance = max(TOLERANCE[x.dtype] for k, x in case.inputs.items() if x is not None and k in case.leaves)
    for name, value in found.items():
        if name in _LEAVES:  # as for vectors of length 1
            lengths = case.inputs[name].double().nan_to_num(0.0, 0.0, 0.0).norm(dim=-1, keepdim=True)
            value, exact[name] = value.double() * lengths, exact[name] * lengths
        true, error = exact[name], (value.double() - exact[name]).norm()
        bound = tolerance * (true.norm() + (1.0 if name == "loss" else FLOOR))
        assert error <= bound, f"{name}: error {error:.3g} above {bound:.3g}"


def _passes(case: Loss, double: bool) -> dict[str, Tensor]:
    inputs = dict(case.inputs)
    for name, value in inputs.items():
        if value is not None and value.is_floating_point():
            inputs[name] = value.detach().to(torch.float64) if double else value.detach()
    leaves = {name: inputs[name].requires_grad_() for name in case.leaves if inputs[name] is not None}
    loss = case.function(inputs)
    gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return {"loss": loss.detach(), **dict(zip(leaves, gradients, strict=True))}


def _rows(draws: Draws) -> dict[str, Any]:
    dtype = draws.one_of(DTYPES)
    rows, count, dim = draws.size(1, 6), draws.size(0, 40), draws.size(2, 50)
    shared = draws.often(0.3)
    inputs: dict[str, Any] = {
        "query": draws.vectors(dtype, rows, dim),
        "positive": draws.vectors(dtype, rows, dim),
        "negatives": draws.vectors(dtype, *((count,) if shared else (rows, count)), dim),
        "mask": draws.flags(0.7, rows, count) if draws.often() else None,
    }
    if inputs["mask"] is not None:
        used = inputs["mask"].any(0) if shared else inputs["mask"]
        inputs["negatives"] = draws.padded(inputs["negatives"], used)
    return inputs


def _settled(inputs: dict[str, Any], *borders: float) -> bool:
    """No rank, tier or margin hangs on rounding."""
    wide = [x.double() for x in (inputs["query"], inputs["positive"], inputs["negatives"])]
    cosines = similarities(as_rows(*wide, inputs["mask"]))
    mask = torch.ones_like(cosines.negative, dtype=torch.bool) if inputs["mask"] is None else inputs["mask"]
    negative, between = (torch.where(mask, x, 0.0) for x in (cosines.negative, cosines.between))
    gap = 1e-2 if inputs["query"].dtype.itemsize == 2 else 1e-4
    near = any(((x - border).abs() < gap).any() for x in (between,) for border in borders)
    ranked = torch.cat([cosines.positive[:, None], negative], 1)
    slack = (cosines.positive[:, None] - negative - 0.1).abs() < gap
    if not (clear(ranked, gap) and clear(between, gap)) or near or bool(slack.any()):
        return False
    # the places of two copies in a product decide whether float32 finds them equal
    own = similarities(as_rows(inputs["query"], inputs["positive"], inputs["negatives"], inputs["mask"]))
    own_ranked = torch.cat([own.positive[:, None], torch.where(mask, own.negative, 0.0)], 1)
    pairs = ((ranked, own_ranked), (between, torch.where(mask, own.between, 0.0)))
    return all(torch.equal(_ties(wide), _ties(narrow)) for wide, narrow in pairs)


def _ties(values: Tensor) -> Tensor:
    """Which two of the last dimension are equal, bool ``[..., n, n]``."""
    return values[..., :, None] == values[..., None, :]


def elva_loss(draws: Draws) -> Loss:
    inputs = _rows(draws)
    options: dict[str, Any] = {
        "form": draws.one_of(FORMS),
        "temperature": draws.number(0.05, 2),
        "margin_temperature": draws.number(0.05, 2),
        "tier_weight": draws.one_of((0.0, 0.3)),
        "num_tiers": draws.size(2, 5),
        "false_negative_threshold": draws.one_of((None, 0.5)),
        "infonce_weight": draws.one_of((0.0, 1.0)),
    }
    module = losses.ELVALoss(**options)
    return Loss(lambda x: module(**x), inputs, _LEAVES, _settled(inputs, 0.5))


def tiered_ranking_loss(draws: Draws) -> Loss:
    inputs = _rows(draws)
    edges = draws.one_of((None, (0.4, 0.1, -0.3)))
    module = losses.TieredRankingLoss(draws.number(0.05, 2), draws.size(2, 5), None, edges)
    return Loss(lambda x: module(**x), inputs, _LEAVES, _settled(inputs, *(edges or ())))


def rewards(draws: Draws) -> Loss:
    inputs = _rows(draws)
    function = draws.one_of((losses.elva_reward, losses.ranking_reward, losses.margin_reward))
    return Loss(lambda x: function(**x).sum(), inputs, _LEAVES, _settled(inputs))


def infonce_loss(draws: Draws) -> Loss:
    dtype = draws.one_of(DTYPES)
    rows, dim = draws.size(1, 12), draws.size(2, 50)
    inputs = {
        "query": draws.vectors(dtype, rows, dim),
        "keys": draws.vectors(dtype, rows + draws.size(0, 20), dim),
        "negatives": draws.vectors(dtype, draws.size(1, 9), dim) if draws.often() else None,
    }
    options = {"temperature": draws.number(0.05, 2), "bidirectional": draws.often()}
    if not draws.often():
        module = losses.InfoNCELoss(**options)
        return Loss(lambda x: module(**x), inputs, ("query", "keys", "negatives"))
    cached, weight = losses.CachedInfoNCELoss(draws.size(1, 9), **options), draws.normal(dim, 7)

    def function(given: dict[str, Tensor | None]) -> Tensor:
        tensors = {k: None if x is None else x.detach() for k, x in given.items() if k != "weight"}
        return cached(lambda x: x @ given["weight"], **tensors)

    tensors = {k: None if x is None else x.float() for k, x in inputs.items()}
    # products of extreme vectors would leave float32's range before the loss sees them
    tensors = {k: None if x is None else torch.nn.functional.normalize(x) for k, x in tensors.items()}
    return Loss(function, {**tensors, "weight": weight.float()}, ("weight",))


def grpo_loss(draws: Draws) -> Loss:
    rows, length = draws.size(1, 8), draws.size(1, 12)
    dtype = draws.one_of((torch.float32, torch.float64))
    logps = -draws.normal(rows, length).abs()
    spread = draws.one_of((0.3, 0.3, 100.0))
    advantages = draws.normal(rows)
    old = logps + spread * draws.normal(rows, length)
    used = draws.flags(0.8, rows, length)
    if spread > 1:  # far off: only where the clip cuts, as beyond it the loss is infinite
        old = logps - advantages.sign()[:, None] * (1 + spread * draws.normal(rows, length).abs())
    inputs = {
        "logps": draws.padded(logps.to(dtype), used),
        "rewards_or_advantages": advantages.to(dtype),
        "mask": used,
        "old_logps": draws.padded(old.to(dtype), used),
        "ref_logps": draws.padded((logps + 0.3 * draws.normal(rows, length)).to(dtype), used),
    }
    module = losses.GRPOLoss(beta=draws.one_of((0.0, 0.2)), max_completion_length=draws.one_of((None, 9)))
    ratio = (inputs["logps"].double() - inputs["old_logps"].double()).exp()
    clear_of_clip = ((ratio - 0.8).abs() > 1e-4) & ((ratio - 1.2).abs() > 1e-4)
    return Loss(lambda x: module(**x), inputs, ("logps",), bool((clear_of_clip | ~used).all()))


LOSSES: dict[str, Callable[[Draws], Loss]] = {
    case.__name__: case for case in (elva_loss, tiered_ranking_loss, rewards, infonce_loss, grpo_loss)
}
