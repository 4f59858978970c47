"""Operators and losses on random shapes, strides, dtypes, ties, padding, masks and lengths, against float64."""

from __future__ import annotations

import itertools
import time

import pytest

from tests.fuzz.replay import NAMES, run


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_against_float64(name: str, fuzz_seconds: float) -> None:
    end = time.monotonic() + fuzz_seconds / len(NAMES)
    for seed in itertools.count():
        run(name, seed)
        if time.monotonic() > end:
            break
    print(f"{name}: {seed + 1} cases")


def test_a_failure_names_its_case(monkeypatch: pytest.MonkeyPatch) -> None:
    from elva.ops import accuracy
    from tests.fuzz import operators

    monkeypatch.setattr(
        operators, "least_accurate", lambda *results: accuracy.Accuracy(4.0, 1.0, "total, norm")
    )
    with pytest.raises(AssertionError) as failure:
        run("tiered_rank", 3)
    message = str(failure.value).splitlines()
    assert message[0] == "tiered_rank, seed 3: total, norm: error 4 above 3 x 1"
    assert message[1].startswith("case: similarity=")
    assert message[2] == "again: python -m tests.fuzz.replay tiered_rank 3"
