"""Cases of `tiered_rank`: ranks and tiers must be equal, for no rounding lies before them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.cases import Case, Setting
from benchmarks.gpu.subject import Arguments, Change, Run, Shape, Subject, all_cases, memory


def draw(shape: Shape, generator: torch.Generator) -> Arguments:
    """Cosines to the query and to the positive [R, N], uniform in [−1, 1]."""
    drawn = (2 * torch.rand(shape, generator=generator, device=generator.device) - 1 for _ in range(2))
    return dict(zip(("similarity", "between"), drawn, strict=True))


def cases(setting: Setting) -> Iterator[Case]:
    large = setting.device == "cuda"
    subject = Subject(
        "tiered_rank",
        draw,
        shapes=[(960, 512), (3, 1), (5, 333)] if large else [(7, 33), (3, 1), (2, 70)],
        empty=[(0, 5), (3, 0)],
        expanded=("between",),
    )

    def special(dtype: torch.dtype) -> Iterator[tuple[str, Run]]:
        def check(change: Change) -> Run:
            return partial(subject.at, setting.device, dtype, change=change)

        yield "NaN where masked", check(_masked)
        yield "ties", check(lambda a: {"between": (2 * a["between"]).round() / 2})
        yield "NaN is the nearest", check(_with_nan)
        yield "false negatives cut", check(lambda a: {"false_negative_threshold": 0.4, "num_tiers": 5})
        yield "edges", check(lambda a: {"tier_edges": (0.5, 0.0, -0.5), "temperature": 1.0})
        yield "more tiers than negatives", check(lambda a: {"num_tiers": 600 if large else 40})

    yield from all_cases(subject, setting, special)
    yield subject.case("R·N > 2^31", torch.float32, partial(_huge, subject, setting))


def _masked(arguments: Arguments) -> Arguments:
    mask = arguments["between"] > -0.5
    mask[1] = False  # a row with nothing in it
    return {**{name: value.masked_fill(~mask, math.nan) for name, value in arguments.items()}, "mask": mask}


def _with_nan(arguments: Arguments) -> Arguments:
    between = arguments["between"].clone()
    between[:, 0] = math.nan
    return {"between": between}


def _huge(subject: Subject, setting: Setting) -> dict[str, Any]:
    """Every row by itself: the first and the last ones against their definition."""
    with memory(setting, 62):
        arguments = subject.arguments((4_200_000, 512), setting.device, torch.float32)
        rows = torch.tensor([0, 1, 2_100_001, 4_199_998, 4_199_999], device=setting.device)
        return subject.check_part(
            arguments, lambda a: {name: value[rows] for name, value in a.items()}, lambda value: value[rows]
        )
