"""The Triton kernels of `infonce` without a GPU: run by the interpreter, in a process of its own.

On a CUDA device test_infonce_blocks.py and test_infonce.py run the compiled kernels.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch

from tests.ops.infonce_passes import block, compare_passes

pytest.importorskip("triton", reason="Triton is not installed")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(
    not INTERPRETED, reason="run by test_in_the_interpreter, with TRITON_INTERPRET=1"
)


@interpreted
@pytest.mark.parametrize("out_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize(("rows", "count"), [(1, 1), (5, 64), (7, 130)])
@pytest.mark.parametrize("positives", [1, 3])
@pytest.mark.parametrize(
    ("masked", "ids", "columns"), [(False, False, False), (True, True, True), (False, True, False)]
)
def test_interpreted_passes(
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    count: int,
    positives: int,
    masked: bool,
    ids: bool,
    columns: bool,
    out_dtype: torch.dtype | None,
) -> None:
    from elva.ops import infonce_triton as backend

    monkeypatch.setattr(backend, "BLOCK", 64)
    monkeypatch.setattr(backend, "BLOCK_R", 4)
    problem = block(rows, rows, count, positives, masked, ids, torch.float32)
    compare_passes(backend.reduce_, backend.weigh_, problem, columns, out_dtype=out_dtype)


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="starts the interpreter")
def test_in_the_interpreter(run_interpreted: Callable[[str], None]) -> None:
    run_interpreted(__file__)
