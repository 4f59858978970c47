"""Cases of `infonce`, at the operator itself: every option, kept and recomputed scores."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.cases import Case, Setting
from benchmarks.gpu.subject import Arguments, Change, Run, Shape, Subject, all_cases, line, memory
from elva.ops.accuracy import least_accurate
from elva.ops.infonce import accumulation_dtype
from elva.ops.table import converted


def draw(shape: Shape, generator: torch.Generator) -> Arguments:
    """Query [B, D] and keys [M, D]."""
    rows, count, dim = shape
    sizes = {"query": (rows, dim), "keys": (count, dim)}
    return {
        name: torch.randn(size, generator=generator, device=generator.device) for name, size in sizes.items()
    }


def cases(setting: Setting) -> Iterator[Case]:
    large = setting.device == "cuda"
    subject = Subject(
        "infonce",
        draw,
        # Two parts of rows on a GPU: elva/ops/infonce_blocks.py cuts at 4 M scores.
        shapes=[(2500, 3001, 192), (1, 1, 1), (37, 1025, 300)]
        if large
        else [(40, 61, 24), (1, 1, 1), (5, 9, 7)],
        empty=[(0, 5, 8), (0, 0, 8)],
        expanded=("query",),
    )

    def special(dtype: torch.dtype) -> Iterator[tuple[str, Run]]:
        def check(change: Change) -> Run:
            return partial(subject.at, setting.device, dtype, change=change)

        def scores(keep: bool) -> Run:
            def run() -> dict[str, Any]:
                arguments = subject.arguments(subject.shapes[0], setting.device, dtype)
                return line(subject.judge(subject.passes(_operator(keep), arguments), arguments))

            return run

        yield "scores kept", scores(True)
        yield "scores recomputed", scores(False)
        yield "labels [B]", check(lambda a: {"labels": _labels(a, 1)[:, 0]})
        yield "labels [B, P]", check(lambda a: {"labels": _labels(a, 3)})
        yield "mask, NaN in keys that nobody uses", check(_masked)
        yield "ids", check(_ids)
        yield "ids and known pairs", check(_pairs)
        yield "bidirectional", check(lambda a: {"labels": _labels(a, 1)[:, 0], "bidirectional": True})
        yield "temperature with a gradient", check(lambda a: {"temperature": _temperature(a)})
        yield "dot", check(lambda a: {"similarity": "dot", "temperature": 4.0})
        yield "everything at once", check(_everything)
        yield "ties: all keys one", check(lambda a: {"keys": a["keys"][:1].repeat(a["keys"].shape[0], 1)})
        yield "zero vectors", check(_zeros)

    yield from all_cases(subject, setting, special)
    for keep in (False, True):
        name = f"B·M > 2^31, scores {'kept' if keep else 'recomputed'}"
        yield subject.case(name, torch.bfloat16, partial(_huge, subject, setting, keep))


def _operator(keep: bool) -> Any:
    """The dispatcher's operator, told what to do with the scores."""

    def call(query: Tensor, keys: Tensor, temperature: float = 0.05) -> Tensor:
        tau = torch.full((), temperature, dtype=accumulation_dtype(query, keys), device=query.device)
        none = (None,) * 5
        loss: Tensor = torch.ops.elva.infonce.default(query, keys, tau, *none, "cosine", False, keep)[0]
        return loss

    return call


def _generator(arguments: Arguments) -> torch.Generator:
    return torch.Generator(device=arguments["query"].device).manual_seed(3)


def _labels(arguments: Arguments, positives: int) -> Tensor:
    """[B, P] distinct keys a row; behind the first, a third is −1. The first column is one to one."""
    rows, count = arguments["query"].shape[0], arguments["keys"].shape[0]
    generator = _generator(arguments)
    first = torch.randperm(count, generator=generator, device=generator.device)[:rows]
    steps = torch.arange(positives, device=generator.device)
    labels = (first[:, None] + steps) % count
    dropped = torch.rand(labels.shape, generator=generator, device=generator.device) < 1 / 3
    return torch.where(dropped & (steps > 0), -1, labels)


def _masked(arguments: Arguments) -> Arguments:
    rows, count = arguments["query"].shape[0], arguments["keys"].shape[0]
    generator = _generator(arguments)
    mask = torch.rand(rows, count, generator=generator, device=generator.device) < 0.6
    unused = torch.arange(count, device=generator.device) >= count - 5
    mask = (mask & ~unused).index_fill(0, torch.zeros(1, dtype=torch.int64, device=generator.device), False)
    return {"mask": mask, "keys": arguments["keys"].masked_fill(unused[:, None], math.nan)}


def _ids(arguments: Arguments) -> Arguments:
    rows, count = arguments["query"].shape[0], arguments["keys"].shape[0]
    generator = _generator(arguments)
    query_ids = torch.randint(10, 10 + rows // 2, (rows,), generator=generator, device=generator.device)
    # The last keys have no id.
    key_ids = torch.randint(-5, count // 2, (count - 3,), generator=generator, device=generator.device)
    return {"query_ids": query_ids, "key_ids": key_ids, "labels": _labels(arguments, 2)}


def _pairs(arguments: Arguments) -> Arguments:
    ids = _ids(arguments)
    pairs = torch.stack([ids["query_ids"], ids["key_ids"][: len(ids["query_ids"])]], 1)
    return {**ids, "positive_pairs": torch.cat([pairs, pairs.roll(1, 0)])}


def _temperature(arguments: Arguments) -> Tensor:
    dtype = accumulation_dtype(arguments["query"])
    return torch.full((), 0.07, dtype=dtype, device=arguments["query"].device)


def _everything(arguments: Arguments) -> Arguments:
    some = {**_masked(arguments), **_ids(arguments), "temperature": _temperature(arguments)}
    labels = _labels(arguments, 1)[:, 0]
    # A label keeps its key in use, so nothing may be NaN here.
    return {**some, "keys": arguments["keys"], "labels": labels, "bidirectional": True}


def _zeros(arguments: Arguments) -> Arguments:
    query, keys = arguments["query"].clone(), arguments["keys"].clone()
    query[0] = keys[1] = keys[-1] = 0
    return {"query": query, "keys": keys}


def _huge(subject: Subject, setting: Setting, keep: bool) -> dict[str, Any]:
    """46,400 queries and as many keys; loss and all gradients, float64 in blocks of queries."""
    count, dim, block = 46_400, 64, 4000
    with memory(setting, 30 if keep else 20):
        whole = replace(subject, leaves=("query", "keys"))
        arguments = whole.arguments((count, count, dim), setting.device, torch.bfloat16)
        found = whole.operator.passes(_operator(keep), arguments, summed=True)

        def in_blocks(dtype: torch.dtype) -> dict[str, Tensor]:
            given = converted(arguments, setting.device, dtype)
            losses, of_query, of_keys = [], [], torch.zeros_like(given["keys"], dtype=torch.float64)
            for first in range(0, count, block):
                rows = slice(first, first + block)
                labels = torch.arange(count, device=setting.device)[rows]
                part = {"query": given["query"][rows], "keys": given["keys"], "labels": labels}
                results = whole.operator.passes(
                    whole.operator.reference, part, leaves=("query", "keys"), summed=True
                )
                losses.append(results["loss"])
                of_query.append(results["gradient of query"])
                of_keys += results["gradient of keys"]
            names = ("loss", "gradient of query", "gradient of keys")
            # Summed in float64, rounded once, as an operator's own gradient is.
            rounded = of_keys.to(dtype)
            return dict(zip(names, (torch.cat(losses), torch.cat(of_query), rounded), strict=True))

        return line(least_accurate(found, in_blocks(torch.bfloat16), in_blocks(torch.float64)))
