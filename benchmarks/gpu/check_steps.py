"""Check group: the fast RL step against the plain one on the device, in both precisions, by attention back-end."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import SkipTest

import torch

from benchmarks.gpu.cases import Case, Setting
from benchmarks.gpu.presets import PRESETS
from benchmarks.gpu.step_cases import difference
from benchmarks.rl_problem import make_problem
from benchmarks.step_pair import SWEEP_LIMIT, credits_seen, time_vision, whole_step
from elva.models.attention import resolve_attention

ATTENTION = ("sdpa", "flash_attention_2", "xformers", "eager")


def cases(setting: Setting) -> Iterator[Case]:
    """Both precisions with every back-end that is installed; bfloat16 first."""
    for attention in ATTENTION:
        for bf16 in (True, False):
            key = {
                "operator": "steps",
                "case": f"fast against plain, {attention}",
                "dtype": "bfloat16" if bf16 else "float32",
            }
            yield Case(key, partial(compare, setting, attention, bf16))


def compare(setting: Setting, attention: str, bf16: bool) -> dict[str, Any]:
    """The gradients of both on the plain step's tokens and advantages."""
    encoder = PRESETS["tiny"].encoder(setting.device)
    dtype = torch.bfloat16 if bf16 else torch.float32
    try:
        name = resolve_attention(attention, setting.device, dtype)
    except ImportError as error:
        raise SkipTest(f"not installed: {attention}") from error
    except ValueError as error:
        raise SkipTest(str(error)) from error
    encoder.model.to(dtype)
    encoder.model.set_attn_implementation(name)
    with tempfile.TemporaryDirectory() as folder:
        problem = make_problem(
            PRESETS["tiny"].setting, Path(folder), encoder=encoder, device=setting.device, bf16=bf16
        )
        time_vision(problem)
        with credits_seen(problem) as seen:
            phases, sides = whole_step(problem, "plain")
        line = difference(problem, sides, seen[0])
    if not all(seconds > 0 for seconds in phases.values()):
        raise ValueError(f"a phase took no time on the device: {phases}")
    # In float32 the limit is that of the benchmark's small settings (benchmarks/rl_step.py).
    return {**line, "phases": phases, **({} if bf16 else {"bound": SWEEP_LIMIT})}
