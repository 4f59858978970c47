"""Cases of `shared_prefix_attention`: the whole, and each of its three pieces, on every back-end that is installed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.cases import Case, Setting
from benchmarks.gpu.subject import (
    DTYPES,
    Arguments,
    Results,
    Run,
    Shape,
    Subject,
    all_cases,
    line,
    memory,
)
from elva.ops import PrefixLayout
from elva.ops.accuracy import least_accurate
from elva.ops.shared_prefix_attention import visible
from elva.ops.table import converted
from elva.ops.varlen_attention import Backend, Piece
from elva.ops.varlen_backends import BACKENDS, MATH

HALF = (torch.bfloat16, torch.float16)
PACKAGES = {"sdpa": "torch", "flash_attention_2": "flash_attn", "xformers": "xformers"}
ALLOWED = {"sdpa": DTYPES, "flash_attention_2": HALF, "xformers": DTYPES}
OTHERS = tuple(name for name in BACKENDS if name != "sdpa")


def layout_of(shape: Shape) -> PrefixLayout:
    """Items, longest prompt, generations, longest completion: lengths differ and fit no tile."""
    items, prompt, generations, completion = shape[:4]
    prompts = tuple(max(1, prompt - 7 * place) for place in range(items))
    completions = tuple(
        1 + (completion - 1) * (11 * place % 13) // 12 for place in range(items * generations)
    )
    return PrefixLayout(prompts, completions, generations)


def draw(shape: Shape, generator: torch.Generator) -> Arguments:
    """Query [T, H, D], key and value [T, K, D]; a shape is items, prompt, generations, completion, H, K, D."""
    *_, heads, shared, dim = shape
    layout = layout_of(shape)
    sizes = {"query": heads, "key": shared, "value": shared}
    drawn = {
        name: torch.randn(layout.tokens, size, dim, generator=generator, device=generator.device)
        for name, size in sizes.items()
    }
    return {**drawn, "layout": layout}


def masked(query: Tensor, key: Tensor, value: Tensor, layout: PrefixLayout, **_: Any) -> Tensor:
    """Plain PyTorch: the packed sequence as one, with its mask, heads repeated."""
    groups = query.shape[1] // key.shape[1]
    rows = [query, *(x.repeat_interleave(groups, dim=1) for x in (key, value))]
    seen = visible(layout).to(query.device)
    q, k, v = (x.transpose(0, 1)[None] for x in rows)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    return out[0].transpose(0, 1)


def cases(setting: Setting) -> Iterator[Case]:
    large = setting.device == "cuda"
    shapes = (
        [
            (3, 200, 4, 33, 12, 2, 128),
            (1, 1, 1, 1, 1, 1, 8),
            (2, 65, 3, 130, 4, 4, 64),
            (2, 40, 2, 9, 6, 1, 32),
        ]
        if large
        else [(2, 17, 3, 6, 6, 2, 16), (1, 1, 1, 1, 1, 1, 8), (2, 9, 2, 20, 2, 2, 8)]
    )
    # Kernels that load 16 bytes at once need inputs that begin at such an address, as all but odd views do.
    subject = Subject(
        "shared_prefix_attention",
        draw,
        shapes,
        empty=[],
        plain=masked,
        aligned_only=True,
        follows_autocast=True,
        expanded=("query",),
    )

    def special(dtype: torch.dtype) -> Iterator[tuple[str, Run]]:
        for backend in BACKENDS:
            for piece in ("prompts", "rectangle", "completions"):
                yield f"{backend}, {piece}", partial(_piece, subject, setting, dtype, backend, piece)
        for backend in OTHERS:
            for shape in shapes:
                name = f"{backend}, {' x '.join(map(str, shape))}"
                yield name, partial(_whole, subject, setting, dtype, backend, shape)

    yield from all_cases(subject, setting, special)
    yield subject.case("T·H·D > 2^31", torch.bfloat16, partial(_huge, subject, setting))


def backend_for(name: str, device: str, dtype: torch.dtype) -> Backend:
    """The back-end, or the reason why there is none."""
    if find_spec(PACKAGES[name]) is None:
        raise SkipTest(f"{PACKAGES[name]} is not installed")
    if name != "sdpa" and device != "cuda":
        raise SkipTest("needs a GPU")
    if dtype not in ALLOWED[name]:
        raise SkipTest("has no such dtype")
    return BACKENDS[name](torch.device(device), dtype)


def _whole(
    subject: Subject, setting: Setting, dtype: torch.dtype, backend: str, shape: Shape
) -> dict[str, Any]:
    backend_for(backend, setting.device, dtype)
    arguments = subject.arguments(shape, setting.device, dtype)
    found = subject.passes(subject.operator.function, {**arguments, "backend": backend})
    return line(subject.judge(found, arguments))


def _piece(subject: Subject, setting: Setting, dtype: torch.dtype, backend: str, name: str) -> dict[str, Any]:
    """One piece by itself: output, log-sum-exp and three gradients, against plain products in float64.

    The log-sum-exp is judged by what it makes of a weight of 1 in the inputs' dtype: kernels for half precision take
    exponentials that are no better.
    """
    kernel = backend_for(backend, setting.device, dtype)
    arguments = subject.arguments(subject.shapes[0], setting.device, dtype)
    query, key, value, layout = (arguments[name] for name in ("query", "key", "value", "layout"))
    before, after = slice(None, layout.prompt_tokens), slice(layout.prompt_tokens, None)
    rows, columns = {
        "prompts": (before, before),
        "rectangle": (after, before),
        "completions": (after, after),
    }[name]
    tensors = {"query": query[rows], "key": key[columns], "value": value[columns]}
    generator = torch.Generator(device=setting.device).manual_seed(9)
    upstream = torch.randn(
        tensors["query"].shape, generator=generator, device=setting.device, dtype=torch.float32
    )
    tensors["grad_out"] = upstream.to(dtype)

    def passes(of: Backend, given: Arguments) -> Results:
        inputs = (given["query"], given["key"], given["value"])
        out, sums = of.forward(*inputs, piece_of(layout, name))
        grads = of.backward(given["grad_out"], *inputs, out, sums, piece_of(layout, name))
        names = ("out", "log-sum-exp", "gradient of query", "gradient of key", "gradient of value")
        return dict(zip(names, (out, sums, *grads), strict=True))

    found, plain = passes(kernel, tensors), passes(MATH, tensors)
    exact = passes(MATH, converted(tensors, setting.device, torch.float64))
    sums = exact["log-sum-exp"]
    for results in (found, plain, exact):
        results["log-sum-exp"] = (results["log-sum-exp"].double() - sums).exp().to(results["out"].dtype)
    return line(least_accurate(found, plain, exact))


def piece_of(layout: PrefixLayout, name: str) -> Piece:
    """Lengths of one of the three pieces."""
    scale, prompts, completions = 0.11, layout.prompts, layout.completions
    if name == "prompts":
        return Piece(prompts, prompts, True, scale)
    if name == "completions":
        return Piece(completions, completions, True, scale)
    ends = [*range(0, len(completions), layout.generations), len(completions)]
    behind = tuple(sum(completions[first:last]) for first, last in pairwise(ends))
    return Piece(behind, prompts, False, scale)


def _huge(subject: Subject, setting: Setting) -> dict[str, Any]:
    """Every item by itself: the last one, whose completions lie behind 2^31 elements."""
    items, shape = 560, (1, 384, 8, 64, 48, 1, 128)
    with memory(setting, 50):
        one = layout_of(shape)
        layout = PrefixLayout(one.prompts * items, one.completions * items, one.generations)
        generator = torch.Generator(device=setting.device).manual_seed(1)
        arguments: Arguments = {
            name: torch.randn(
                layout.tokens, heads, 128, generator=generator, device=setting.device, dtype=torch.bfloat16
            )
            for name, heads in (("query", 48), ("key", 1), ("value", 1))
        }
        arguments["layout"] = layout
        behind = layout.prompt_tokens
        length = one.tokens - one.prompt_tokens
        last = [
            torch.arange(behind - one.prompt_tokens, behind, device=setting.device),
            torch.arange(layout.tokens - length, layout.tokens, device=setting.device),
        ]
        rows = torch.cat(last)

        def part(given: Arguments) -> Arguments:
            return {**{name: given[name][rows] for name in ("query", "key", "value")}, "layout": one}

        return subject.check_part(arguments, part, lambda value: value[rows])
