"""Cases of the operators, each against its reference in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from elva import ops
from elva.ops.accuracy import least_accurate
from elva.ops.table import OPERATORS, converted
from tests.fuzz.draws import DTYPES, Draws, clear

TAIL = 3
"""Times the bound of `elva.ops.accuracy`, which is for typical cases, may the worst of very many cases have."""


@dataclass
class Case:
    """One call. ``clear(exact results)`` is False where rounding may decide an order: then nothing is compared."""

    arguments: dict[str, Any]
    clear: Callable[[dict[str, Tensor]], bool] = field(default=lambda exact: True)
    cosine: bool = False

    def __str__(self) -> str:
        return ", ".join(f"{name}={_brief(value)}" for name, value in self.arguments.items())


def _brief(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)} strides {value.stride()}"
    return repr(value)


def compare(name: str, case: Case) -> None:
    """AssertionError where the operator is less accurate than `elva.ops.accuracy` allows."""
    operator = OPERATORS[name]
    exact = operator.passes(operator.reference, converted(case.arguments, "cpu", torch.float64))
    if not case.clear(exact):
        return
    plain = operator.passes(operator.reference, case.arguments)
    found = operator.passes(operator.function, case.arguments)
    results = [_of_unit_vectors(x, case) if case.cosine else x for x in (found, plain, exact)]
    worst = least_accurate(*results)
    assert worst.share <= TAIL, f"{worst.of}: error {worst.error:.3g} above {TAIL} x {worst.bound:.3g}"


def _of_unit_vectors(results: dict[str, Tensor], case: Case) -> dict[str, Tensor]:
    """Gradients as they are for vectors of length 1: else the shortest vectors' would drown the others'."""
    scaled = dict(results)
    for name, value in results.items():
        vectors = case.arguments.get(name.removeprefix("gradient of "))
        if name.startswith("gradient of ") and isinstance(vectors, Tensor) and vectors.ndim:
            lengths = vectors.double().nan_to_num(0.0, 0.0, 0.0).norm(dim=-1, keepdim=True)
            scaled[name] = (value.double() * lengths).to(value.dtype)
    return scaled


def rank_reward(draws: Draws) -> Case:
    dtype = draws.one_of(DTYPES)
    batch, groups, count, dim = draws.size(0, 3), draws.size(1, 4), draws.size(0, 70), draws.size(2, 70)
    shared = 1 if draws.often() else groups
    arguments: dict[str, Any] = {
        "query": draws.vectors(dtype, batch, groups, dim),
        "positive": draws.vectors(dtype, batch, 1 if draws.often() else groups, dim),
        "negatives": draws.vectors(dtype, batch, shared, count, dim),
        "delta": draws.random.uniform(-0.2, 0.5),
        "gamma": draws.random.uniform(-1, 1),
        "normalize_gamma": draws.often(),
        "log_base": draws.number(1.5, 20),
        "clamp_negative_weight": draws.often(),
    }
    if draws.often():
        used = draws.flags(0.7, batch, shared, count)
        arguments["mask"] = draws.layout(used)
        arguments["negatives"] = draws.padded(arguments["negatives"], used)

    def settled(exact: dict[str, Tensor]) -> bool:
        similarities = exact["similarities"]
        far = (similarities[..., :1] - similarities[..., 1:] - arguments["delta"]).abs()
        return clear(similarities, 1e-2 if dtype.itemsize == 2 else 1e-4) and bool((far > 1e-4).all())

    return Case(arguments, settled, cosine=True)


def infonce(draws: Draws) -> Case:
    dtype = draws.one_of(DTYPES)
    rows, dim = draws.size(1, 20), draws.size(2, 70)
    count = rows + draws.size(0, 100)
    dot = draws.often(0.3)
    arguments: dict[str, Any] = {
        "query": draws.vectors(dtype, rows, dim, extreme=not dot),
        "keys": draws.vectors(dtype, count, dim, extreme=not dot),
        "similarity": "dot" if dot else "cosine",
        "temperature": draws.number(0.05, 3),
        "bidirectional": draws.often(0.3),
    }
    if arguments["bidirectional"]:
        arguments["labels"] = torch.randperm(count, generator=draws.generator)[:rows]
    elif draws.often():
        labels = draws.whole(count, rows, draws.size(1, 4))
        labels[:, 1:][draws.flags(0.4, *labels[:, 1:].shape)] = -1
        # each a positive once
        repeated = (labels[:, :, None] == labels[:, None, :]).tril(-1).any(-1)
        arguments["labels"] = draws.layout(labels.masked_fill(repeated, -1))
    if draws.often(0.4):
        arguments["mask"] = draws.layout(draws.flags(0.7, rows, count))
    if draws.often(0.4):
        arguments["query_ids"], arguments["key_ids"] = draws.whole(rows, rows), draws.whole(count, count)
    return Case(arguments, cosine=not dot)


def linear_logprob(draws: Draws) -> Case:
    dtype = draws.one_of(DTYPES)
    tokens, dim, vocabulary = draws.size(0, 12), draws.size(1, 50), draws.size(1, 600)
    scale = draws.number(1e-3, 5) / math.sqrt(dim)
    arguments: dict[str, Any] = {
        "hidden": draws.layout((draws.normal(tokens, dim) * scale).to(dtype)),
        "weight": draws.layout(draws.normal(vocabulary, dim).to(dtype)),
        "targets": draws.layout(draws.whole(vocabulary, tokens)),
        "temperature": draws.number(0.3, 3),
    }
    if draws.often(0.4):
        rows = torch.randperm(vocabulary, generator=draws.generator)[: draws.size(1, min(3, vocabulary))]
        arguments["trainable_rows"] = rows
        arguments["row_values"] = draws.layout(draws.normal(len(rows), dim).to(dtype))
    # where every target is certain (a vocabulary of one) the gradients are differences of equal terms
    return Case(arguments, lambda exact: not tokens or bool((exact["logprob"] < -0.05).any()))


def shared_prefix_attention(draws: Draws) -> Case:
    dtype = draws.one_of(DTYPES)
    items, generations = draws.size(1, 4), draws.size(1, 4)
    layout = ops.PrefixLayout(
        tuple(draws.size(1, 40) for _ in range(items)),
        tuple(draws.size(1, 20) for _ in range(items * generations)),
        generations,
    )
    shared, groups, dim = draws.size(1, 3), draws.size(1, 4), draws.size(1, 70)
    scale = draws.number(0.1, 4)
    drawn = {
        name: draws.layout((draws.normal(layout.tokens, heads, dim) * scale).to(dtype))
        for name, heads in (("query", shared * groups), ("key", shared), ("value", shared))
    }
    for name in drawn:
        if draws.often(0.15):
            drawn[name] = drawn[name][:, :, :1].expand(drawn[name].shape)
    return Case({**drawn, "layout": layout, "scale": draws.number(0.05, 1) / scale})


def tiered_rank(draws: Draws) -> Case:
    dtype = draws.one_of(DTYPES)
    shape = (draws.size(0, 5), draws.size(0, 70))
    similarity, between = (torch.tanh(draws.normal(*shape)) for _ in range(2))
    if draws.often():
        between = (between * 5).round() / 5
    arguments: dict[str, Any] = {"temperature": draws.number(0.02, 3)}
    if draws.often(0.4):
        edges = sorted({round(draws.random.uniform(-1, 1), 3) for _ in range(draws.size(1, 5))}, reverse=True)
        # a number that every dtype holds, or an edge would lie on another side of it
        arguments["tier_edges"] = [float(torch.tensor(x, dtype=torch.bfloat16)) for x in edges]
        arguments["tier_edges"] = sorted(set(arguments["tier_edges"]), reverse=True)
    else:
        arguments["num_tiers"] = draws.size(1, 8)
    if draws.often(0.4):
        arguments["false_negative_threshold"] = 0.5
    similarity, between = similarity.to(dtype), between.to(dtype)
    if draws.often():
        used = draws.flags(0.7, *shape)
        arguments["mask"] = draws.layout(used)
        similarity, between = draws.padded(similarity, used), draws.padded(between, used)
    return Case({"similarity": draws.layout(similarity), "between": draws.layout(between), **arguments})


def similarity_topk(draws: Draws) -> Case:
    """Whole numbers, whose products no dtype rounds: indices must be equal, ties included."""
    dtype = draws.one_of((torch.float32, torch.float32, torch.bfloat16, torch.float16))
    rows, count, dim = draws.size(0, 6), draws.size(0, 4500), draws.size(1, 40)
    scale = 2.0 ** draws.one_of((0, 0, 50, -50) if dtype != torch.float16 else (0, 4, -4))
    arguments: dict[str, Any] = {
        "query": draws.layout(((draws.whole(7, rows, dim) - 3) * scale).to(dtype)),
        "keys": draws.layout(((draws.whole(7, count, dim) - 3) * scale).to(dtype)),
        "k": draws.size(1, 60),
        "screen": draws.often(),
    }
    if draws.often(0.4):
        arguments["ceiling"] = (draws.whole(30, rows) - 5).float() * scale**2
    if draws.often(0.4):
        arguments["exclude"] = draws.whole(max(count, 1), rows, draws.size(1, 9))
    return Case(arguments)


CASES: dict[str, Callable[[Draws], Case]] = {
    case.__name__: case
    for case in (infonce, linear_logprob, rank_reward, shared_prefix_attention, similarity_topk, tiered_rank)
}
