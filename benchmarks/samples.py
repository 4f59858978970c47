"""Which part of an operator's results is compared with float64, and that part from plain PyTorch.

A sample of rows suffices where rows hang on nothing but themselves, and costs little at any size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.problems import TEMPERATURE
from elva.ops import PrefixLayout
from elva.ops.accuracy import Accuracy, accuracy

Step = Callable[[Callable[..., Tensor], list[Any]], list[Tensor]]
ROWS = 8
BLOCK = 1024


@dataclass(frozen=True)
class Sample:
    """``pick`` takes the sampled part of a step's results; ``plain`` and ``exact`` are that part from plain PyTorch, in
    the inputs' dtype and in float64."""

    pick: Callable[[list[Tensor]], list[Tensor]]
    plain: list[Tensor]
    exact: list[Tensor]

    def judge(self, results: list[Tensor]) -> Accuracy:
        """The result that is nearest to its bound (elva/ops/accuracy.py)."""
        parts = []
        for place, (found, plain, exact) in enumerate(
            zip(self.pick(results), self.plain, self.exact, strict=True)
        ):
            one = accuracy(found, plain, exact)
            parts.append(one._replace(of=f"result {place}, {one.of}"))
        return max(parts, key=lambda one: one.share)


def some(count: int, device: torch.device) -> Tensor:
    """Numbers of a few rows, the last one among them."""
    return torch.linspace(0, count - 1, min(ROWS, count), device=device).long()


def converted(inputs: Sequence[Any], dtype: torch.dtype) -> list[Any]:
    """New leaves in a dtype."""
    return [
        x.detach().to(dtype).requires_grad_(x.requires_grad)
        if isinstance(x, Tensor) and x.is_floating_point()
        else x
        for x in inputs
    ]


def of_rows(plain: Callable[..., Tensor], step: Step, cut: Sequence[int], inputs: list[Any]) -> Sample:
    """Rows that hang on the same rows of the inputs numbered in ``cut`` alone; the others are needed whole.

    All differentiable inputs must be among those that are cut.
    """
    rows = some(inputs[0].shape[0], inputs[0].device)
    part = [
        x.detach()[rows].requires_grad_(x.requires_grad) if place in cut else x
        for place, x in enumerate(inputs)
    ]
    results = (step(plain, converted(part, dtype)) for dtype in (inputs[0].dtype, torch.float64))
    return Sample(lambda found: [x[rows] for x in found], *results)


def of_infonce(plain: Callable[..., Tensor], inputs: list[Tensor]) -> Sample:
    """Loss and query gradient of some rows, key gradient of some columns (all rows have a part in those)."""
    query, keys = (x.detach() for x in inputs)
    rows = some(len(query), query.device)

    def results(dtype: torch.dtype) -> list[Tensor]:
        # The sampled queries first, so that keys 0, 1, … are theirs; the other keys in any order.
        rest = torch.ones(len(keys), dtype=torch.bool, device=keys.device).index_fill(0, rows, False)
        order = torch.cat([rows, rest.nonzero()[:, 0]])
        q = query[rows].to(dtype).requires_grad_()
        loss = plain(q, keys[order].to(dtype))
        (grad,) = torch.autograd.grad(loss.sum() / len(query), q)
        return [loss.detach(), grad, key_gradient(query.to(dtype), keys.to(dtype), rows)]

    return Sample(
        lambda found: [found[0][rows], found[1][rows], found[2][rows]],
        results(query.dtype),
        results(torch.float64),
    )


def key_gradient(query: Tensor, keys: Tensor, columns: Tensor) -> Tensor:
    """Gradient of the mean loss in some keys, in the dtype of the tensors, a block of queries at a time."""
    normal = F.normalize(keys, dim=-1)
    along = torch.zeros_like(keys[columns])
    for first in range(0, len(query), BLOCK):
        unit = F.normalize(query[first : first + BLOCK], dim=-1)
        shares = (unit @ normal.T / TEMPERATURE).softmax(-1)[:, columns]
        own = torch.arange(first, first + len(unit), device=keys.device)[:, None] == columns
        along += (shares - own.to(shares.dtype)).T @ unit
    along /= TEMPERATURE * len(query)
    radial = (along * normal[columns]).sum(-1, keepdim=True) * normal[columns]
    return (along - radial) / keys[columns].norm(dim=-1, keepdim=True)


def of_items(plain: Callable[..., Tensor], step: Step, inputs: list[Any]) -> Sample:
    """All tokens of the last item: items do not see each other."""
    *tensors, layout = inputs
    one = PrefixLayout(layout.prompts[-1:], layout.completions[-layout.generations :], layout.generations)
    device, behind = tensors[0].device, layout.prompt_tokens
    rows = torch.cat(
        [
            torch.arange(behind - one.prompt_tokens, behind, device=device),
            torch.arange(layout.tokens - sum(one.completions), layout.tokens, device=device),
        ]
    )
    part = [x.detach()[rows].requires_grad_() for x in tensors]
    results = (step(plain, [*converted(part, dtype), one]) for dtype in (tensors[0].dtype, torch.float64))
    return Sample(lambda found: [x[rows] for x in found], *results)


def of_search(inputs: list[Any]) -> Sample:
    """Scores, in float64, of the ids that were found for some queries: ids are equal up to gaps between scores."""
    query, keys, k = inputs
    rows = some(len(query), query.device)
    scores = torch.cat([query[rows].double() @ part.double().T for part in keys.split(1 << 18)], 1)
    plain = (query[rows] @ keys.T).topk(k).indices

    def behind(ids: Tensor) -> list[Tensor]:
        twice = ids.sort(1).values.diff(dim=1) == 0
        if twice.any():
            raise AssertionError("an id stands twice in a row")
        return [scores.gather(1, ids).sort(1, descending=True).values.float()]

    return Sample(lambda found: behind(found[0][rows]), behind(plain), [scores.topk(k).values])
