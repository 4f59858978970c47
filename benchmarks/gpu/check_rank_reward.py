"""Cases of `rank_reward`. Ranks jump, so all behind the similarities is judged at the operator's own ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.cases import Case, Setting
from benchmarks.gpu.reward_definition import advantages_at, rewards_at
from benchmarks.gpu.subject import (
    Arguments,
    Change,
    Results,
    Run,
    Shape,
    Subject,
    all_cases,
    device_of,
    memory,
)
from elva.ops.accuracy import Accuracy, least_accurate
from elva.ops.table import converted

DERIVATIVES = {"margin": "margin weights", "ranking": "ranking weights", "total": "weights"}
"""Results, and the names of their derivatives in the similarities."""


def draw(shape: Shape, generator: torch.Generator) -> Arguments:
    """Query [B, G, D], positive [B, Gn, D] and negatives [B, Gn, N, D]."""
    batch, rollouts, owners, count, dim = shape
    sizes = {
        "query": (batch, rollouts, dim),
        "positive": (batch, owners, dim),
        "negatives": (batch, owners, count, dim),
    }
    return {
        name: torch.randn(size, generator=generator, device=generator.device) for name, size in sizes.items()
    }


class RankReward(Subject):
    """The operator, judged in two steps."""

    def judge(
        self, found: Results, arguments: Arguments, backward: bool = True, summed: bool = False
    ) -> Accuracy:
        """Similarities by the error rule; the rest, in float64, from the similarities that were found."""
        tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
        options = {name: value for name, value in arguments.items() if name not in tensors}
        scale_rewards = options.pop("scale_rewards", None)
        defined = rewards_at(found["similarities"].double(), tensors.get("mask"), **options)
        if scale_rewards is not None:
            defined["advantage"] = advantages_at(found["total"].double(), scale_rewards)
        exact: Results = {}
        plain: Results = {}
        for dtype, results in ((torch.float64, exact), (arguments["query"].dtype, plain)):
            given = converted(tensors, device_of(arguments), dtype)
            results |= self._gradients(found, given, defined, backward, summed)
        # Behind the similarities plain PyTorch is given no error: the operator has had its own.
        behind = {name: value for name, value in defined.items() if name in found}
        return least_accurate(found, {**plain, **behind}, {**exact, **behind})

    def _gradients(
        self, found: Results, given: Arguments, defined: Results, backward: bool, summed: bool
    ) -> Results:
        """Similarities of the reference, and the gradients that belong to the ranks of `defined`."""
        leaves = {
            name: given[name].detach().requires_grad_(backward) for name in self.operator.differentiable
        }
        similarities = self.operator.reference(**{**given, **leaves}).similarities
        results = {"similarities": similarities.detach()}
        if backward:
            weights = self.operator.weights(found, summed)
            slope = torch.zeros_like(similarities, dtype=torch.float64)
            if "similarities" in weights:
                slope += weights["similarities"].double() * defined["used"]
            for name, derivative in DERIVATIVES.items():
                if name in weights:
                    slope += weights[name].double()[..., None] * defined[derivative]
            gradients = torch.autograd.grad(similarities, list(leaves.values()), slope.to(similarities.dtype))
            names = (f"gradient of {name}" for name in leaves)
            results |= dict(zip(names, gradients, strict=True))
        return results


def cases(setting: Setting) -> Iterator[Case]:
    large = setting.device == "cuda"
    subject = RankReward(
        "rank_reward",
        draw,
        shapes=[(4, 8, 8, 100, 1536), (3, 2, 1, 65, 37), (2, 3, 3, 513, 40)]
        if large
        else [(2, 3, 3, 9, 16), (1, 1, 1, 1, 2), (2, 4, 1, 33, 7)],
        empty=[(0, 2, 2, 3, 8), (2, 3, 3, 0, 8)],
        expanded=("query", "negatives"),
    )

    def special(dtype: torch.dtype) -> Iterator[tuple[str, Run]]:
        def check(change: Change) -> Run:
            return partial(subject.at, setting.device, dtype, change=change)

        alone = replace(subject, graded=("total",))
        yield "gradient of the reward alone", partial(alone.at, setting.device, dtype)
        yield "shared by the rollouts", check(_shared)
        yield "NaN where masked", check(_masked)
        yield "everything masked", check(lambda a: {"mask": _mask(a) & False})
        yield "ties", check(_ties)
        yield "one point", partial(_one_point, subject, setting, dtype)
        yield "zero vectors", check(_zeros)
        yield "advantages of a group", check(lambda a: {"scale_rewards": "group"})
        yield "advantages, unscaled", check(lambda a: {"scale_rewards": "none"})
        yield "options", check(lambda a: _OPTIONS)

    yield from all_cases(subject, setting, special)
    yield subject.case("B·G·N·D > 2^31", torch.bfloat16, partial(_huge, subject, setting))


_OPTIONS = {
    "alpha": 1.0,
    "epsilon": 0.5,
    "delta": -0.8,
    "gamma": 0.02,
    "normalize_gamma": False,
    "log_base": 2.0,
    "clamp_negative_weight": True,
}


def _shared(arguments: Arguments) -> Arguments:
    return {name: arguments[name][:, :1].contiguous() for name in ("positive", "negatives")}


def _mask(arguments: Arguments) -> Tensor:
    generator = torch.Generator(device=arguments["query"].device).manual_seed(3)
    return torch.rand(arguments["negatives"].shape[:3], generator=generator, device=generator.device) < 0.6


def _masked(arguments: Arguments) -> Arguments:
    mask = _mask(arguments)
    return {"mask": mask, "negatives": arguments["negatives"].masked_fill(~mask[..., None], math.nan)}


def _ties(arguments: Arguments) -> Arguments:
    """A negative that is the positive, and pairs of equal negatives."""
    negatives = arguments["negatives"].clone()
    negatives[:, :, 1] = arguments["positive"]
    negatives[:, :, 2::2] = negatives[:, :, :1]
    return {"negatives": negatives}


def _zeros(arguments: Arguments) -> Arguments:
    changed = {name: value.clone() for name, value in arguments.items()}
    changed["query"][0, 0] = 0
    changed["negatives"][0, 0, 2] = changed["positive"][-1, -1] = 0
    return changed


def _one_point(subject: Subject, setting: Setting, dtype: torch.dtype) -> dict[str, Any]:
    """An encoder that maps everything to one point: every positive is last, for equal vectors are equal in bits."""
    arguments = subject.arguments(subject.shapes[0], setting.device, dtype)
    point = arguments["query"][:1, :1]
    negatives = point[:, :, None].expand(1, 1, 40, -1)
    rank = subject.operator.function(query=point, positive=point, negatives=negatives).rank
    return {"error": float((rank - 41).abs().max()), "bound": 0.0, "of": "rank"}


def _huge(subject: Subject, setting: Setting) -> dict[str, Any]:
    """Every query by itself: the first and the last ones."""
    with memory(setting, 16):
        arguments = subject.arguments((344, 8, 8, 510, 1536), setting.device, torch.bfloat16)
        rows = torch.tensor([0, 171, 343], device=setting.device)
        return subject.check_part(
            arguments, lambda a: {name: value[rows] for name, value in a.items()}, lambda value: value[rows]
        )
