"""The Triton kernel of `linear_logprob` without a GPU: run by the interpreter, in a process of its own.

On a CUDA device test_linear_logprob.py runs the compiled kernel.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch

from elva.ops.linear_logprob import _composite

pytest.importorskip("triton", reason="Triton is not installed")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(
    not INTERPRETED, reason="run by test_in_the_interpreter, with TRITON_INTERPRET=1"
)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("count", "vocabulary"), [(5, 700), (1, 1), (3, 256), (0, 9)])
@pytest.mark.parametrize("with_expected", [False, True])
@pytest.mark.parametrize("given", [0, 1, 3])
def test_interpreted_sweep(
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    vocabulary: int,
    with_expected: bool,
    given: int,
    dtype: torch.dtype,
) -> None:
    from elva.ops import linear_logprob_triton as triton_backend

    monkeypatch.setattr(triton_backend, "TILE_ELEMENTS", 256 * max(count, 1))
    monkeypatch.setattr(triton_backend, "BLOCK", 128)
    generator = torch.Generator().manual_seed(vocabulary)
    hidden = torch.randn(count, 12, generator=generator).to(dtype)
    weight = torch.randn(vocabulary, 12, generator=generator).to(dtype)
    targets = torch.randint(0, vocabulary, (count,), generator=generator)
    # The first of them is a target's, the last lies in the last tile.
    rows = torch.tensor([*targets[:1].tolist(), vocabulary - 1, vocabulary // 2]).unique()[:given]
    values = torch.randn(len(rows), 12, generator=generator).to(dtype)
    options = (targets, 0.7, with_expected)
    apart = (rows, values) if given else (None, None)
    found = triton_backend.forward(hidden, weight, *options, *apart)
    plain = _composite(hidden, weight, *options, *apart)
    apart = (rows, values.double()) if given else apart
    exact = _composite(hidden.double(), weight.double(), *options, *apart)
    names = ("logprob", "entropy", "logsumexp", "expected")
    for name, value, other, true in zip(names, found, plain, exact, strict=True):
        # The probabilities enter the second product in the head's dtype.
        unit = torch.finfo(dtype if name == "expected" else torch.float32).eps
        small = (
            20 * torch.finfo(torch.float32).eps + 4 * unit * true.abs() + (unit if name == "expected" else 0)
        )
        assert value.dtype == torch.float32
        assert ((value.double() - true).abs() <= 2 * (other.double() - true).abs() + small).all(), name


@pytest.mark.skipif(INTERPRETED, reason="starts the interpreter")
def test_in_the_interpreter(run_interpreted: Callable[[str], None]) -> None:
    run_interpreted(__file__)
