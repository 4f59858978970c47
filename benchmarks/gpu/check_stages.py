"""Check group: two steps of every stage with tiny weights on drawn data, in the precision that training takes there."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.gpu.cases import Case, Setting
from elva.training.config import (
    BaseConfig,
    InstructConfig,
    NegativeSettings,
    RLConfig,
    RolloutSettings,
    StageConfig,
    TextConfig,
)
from elva.training.dry_run import dry_run

NOWHERE = {"model": "", "data": "", "output": ""}
STAGES: dict[str, StageConfig] = {
    "rl, fast": RLConfig(**NOWHERE),
    "instruct": InstructConfig(**NOWHERE, negatives=NegativeSettings(n_hard=2), summary_probability=0.5),
    "text": TextConfig(**NOWHERE),
    "base": BaseConfig(**{**NOWHERE, "model": "tiny"}),
    "rl, plain": RLConfig(**NOWHERE, rl=RolloutSettings(step="plain")),
    "rl, surrogate, direct candidates": RLConfig(
        **NOWHERE,
        negatives=NegativeSettings(n_hard=2),
        rl=RolloutSettings(gradient="surrogate", candidates="direct", random_negatives="batch"),
    ),
}


def cases(setting: Setting) -> Iterator[Case]:
    """Each stage in the precision that it takes by itself, then in the other."""
    for bf16 in (None, False) if setting.device == "cuda" else (None,):
        for stage in STAGES:
            precision = "float32" if bf16 is False or setting.device == "cpu" else "bfloat16"
            yield Case(
                {"operator": "stages", "case": stage, "dtype": precision}, partial(run, setting, stage, bf16)
            )


def run(setting: Setting, stage: str, bf16: bool | None) -> dict[str, Any]:
    """Two optimiser steps, merged and saved, in a temporary folder."""
    trainer: dict[str, Any] = {} if bf16 is None else {"bf16": bf16}
    if setting.device == "cpu":
        trainer["use_cpu"] = True
    losses = dry_run(dataclasses.replace(STAGES[stage], trainer=trainer))
    if len(losses) != 2 or not all(map(math.isfinite, losses)):
        raise ValueError(f"expected two finite losses, got {losses}")
    return {"losses": losses}
