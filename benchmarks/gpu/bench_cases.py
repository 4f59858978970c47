"""The cases of `bench`: what the device can do at all, then every operator's contenders at two sizes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any
from unittest import SkipTest

import torch

from benchmarks.contenders import RACES, Function
from benchmarks.gpu.cases import Case, Setting
from benchmarks.gpu.timing import measured
from benchmarks.measure import Work, copy_rate, matrix_rate, peak_extra_memory
from benchmarks.problems import PROBLEMS, Shape
from benchmarks.samples import Sample

DTYPE = torch.bfloat16
PRECISION = "high"
"""Of products in float32, the same for all: a GPU takes them in TF32."""
SIZES: dict[str, dict[str, Shape]] = {
    "infonce": {"paper": (960, 3584), "large": (32_768, 512)},
    "linear_logprob": {"paper": (1024, 1536, 151_936), "large": (4096, 1536, 151_936)},
    # The paper's size fits into the second-level cache; ten times of it do not.
    "rank_reward": {"paper": (8, 8, 8, 100, 1536), "large": (80, 8, 8, 100, 1536)},
    "shared_prefix_attention": {
        "paper": (16, 256, 8, 16, 12, 2, 128),
        "large": (16, 384, 8, 64, 12, 2, 128),
    },
    "similarity_topk": {"paper": (1024, 50_000, 768, 50), "large": (1024, 1_000_000, 768, 50)},
    "tiered_rank": {"paper": (960, 100), "large": (960, 512)},
}
SMALL: dict[str, dict[str, Shape]] = {
    "infonce": {"small": (64, 32)},
    "linear_logprob": {"small": (32, 32, 500)},
    "rank_reward": {"small": (2, 4, 4, 20, 32)},
    "shared_prefix_attention": {"small": (2, 24, 4, 6, 4, 2, 16)},
    "similarity_topk": {"small": (16, 600, 32, 10)},
    "tiered_rank": {"small": (16, 60)},
}
SHARE = 1 / 120
"""Of the whole time, what one contender is timed for at most."""
REHEARSED = 0.02
"""Seconds for the same on a CPU."""


def sizes_on(device: str) -> dict[str, dict[str, Shape]]:
    return SIZES if device == "cuda" else SMALL


def ceilings(setting: Setting) -> Iterator[Case]:
    """A copy, and products in three precisions; small ones on a CPU, which may have no bfloat16 of its own."""
    large = setting.device == "cuda"
    size = None if large else 192
    rates: dict[str, tuple[str, Callable[[], float]]] = {
        "copy": ("float32", lambda: copy_rate(setting.device, None if large else 1 << 20)),
        "bfloat16": ("bfloat16", lambda: matrix_rate(setting.device, torch.bfloat16, size)),
        "tf32": ("float32", lambda: _in_precision("high", setting.device, size)),
        "float32": ("float32", lambda: _in_precision("highest", setting.device, size)),
    }
    for name, (dtype, rate) in rates.items():
        key = {"operator": "ceiling", "size": "", "contender": name, "dtype": dtype, "pass": ""}
        yield Case(key, lambda rate=rate: {"rate": rate()})  # type: ignore[misc]


def _in_precision(precision: str, device: str, size: int | None) -> float:
    torch.set_float32_matmul_precision(precision)
    return matrix_rate(device, torch.float32, size)


def operator(setting: Setting, name: str) -> Iterator[Case]:
    """Ours and its strongest rival at every size, then the others."""
    contenders = list(RACES[name].contenders.items())
    for some in (contenders[:2], contenders[2:]):
        for size in sizes_on(setting.device)[name]:
            for contender, function in some:
                yield _case(setting, name, size, contender, function)


def after_compilation(setting: Setting) -> Iterator[Case]:
    """Contenders of torch.compile, whose compilation can take longer than all the rest: every operator's first size
    first."""
    for place in range(max(len(sizes) for sizes in sizes_on(setting.device).values())):
        for name, race in RACES.items():
            for size in list(sizes_on(setting.device)[name])[place : place + 1]:
                for contender, function in race.compiled.items():
                    yield _case(setting, name, size, contender, function)


def _case(setting: Setting, name: str, size: str, contender: str, function: Function) -> Case:
    shape = sizes_on(setting.device)[name][size]
    key = {
        "operator": name,
        "size": size,
        "shape": f"{PROBLEMS[name].dims} = {', '.join(map(str, shape))}",
        "contender": contender,
        "dtype": str(DTYPE).removeprefix("torch."),
        "pass": "forward and backward" if PROBLEMS[name].differentiable else "forward",
    }
    return Case(key, partial(timed, setting, name, shape, contender, function))


@cache
def _problem(name: str, shape: Shape, device: str) -> tuple[list[Any], Sample]:
    """Inputs, and what a contender's results are compared with."""
    torch.set_float32_matmul_precision("highest")  # the comparison is no contender
    inputs = PROBLEMS[name].inputs(shape, device, DTYPE)
    return inputs, RACES[name].sample(inputs)


def timed(setting: Setting, name: str, shape: Shape, contender: str, function: Function) -> dict[str, Any]:
    """The line of a contender: its error first, and only if that is allowed its times."""
    inputs, sample = _problem(name, shape, setting.device)
    torch.set_float32_matmul_precision(PRECISION)
    race = RACES[name]
    begin = time.perf_counter()
    try:
        results = race.step(function, inputs)
        if setting.device == "cuda":
            torch.cuda.synchronize()
        first = time.perf_counter() - begin
        accuracy = sample.judge(results)
        line: dict[str, Any] = {"error": accuracy.error, "bound": accuracy.bound, "of": accuracy.of}
        line |= {"first_call_seconds": round(first, 3), "float32_matmul_precision": PRECISION}
        del results
        if not accuracy.passes:
            return line
        run = lambda: race.step(function, inputs)  # noqa: E731
        line["peak_extra_bytes"] = peak_extra_memory(run, setting.device)
        seconds = SHARE * setting.seconds if setting.device == "cuda" else REHEARSED
        times = measured(run, setting.device, seconds)
    except torch.OutOfMemoryError as error:
        if contender == "elva":
            raise
        raise SkipTest(f"out of memory: {str(error).split('.')[0]}") from error
    work = PROBLEMS[name].work_in(DTYPE, shape, PROBLEMS[name].differentiable)
    return {**line, **times.line(), **floor(work, times.median, setting.ceilings)}


def floor(work: Work, milliseconds: float, rates: dict[str, float]) -> dict[str, Any]:
    """The least time that the work needs at the measured rates, and what share of the time taken that is."""
    found: dict[str, Any] = {"bytes": work.bytes, "flops": work.flops}
    if not {"copy", work.dtype} <= rates.keys():
        return found
    moving, products = 1e3 * work.bytes / rates["copy"], 1e3 * work.flops / rates[work.dtype]
    least = max(moving, products)
    return {
        **found,
        "floor_ms": least,
        "share_of_ceiling": least / milliseconds,
        "bound_by": "memory" if moving > products else "products",
    }
