"""Paired bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest

from elva.evaluation.bootstrap import compare, paired_bootstrap
from elva.evaluation.results import MultiGrain, Results


def test_constant_difference_has_no_width() -> None:
    assert paired_bootstrap([2.0, 3.0, 4.0], [1.0, 2.0, 3.0], samples=100) == (1.0, 1.0, 1.0)


def test_interval_agrees_with_the_normal_approximation() -> None:
    generator = np.random.default_rng(1)
    a, b = generator.normal(0.3, 1, 400), generator.normal(0, 1, 400)
    difference, low, high = paired_bootstrap(a, b, samples=4000)
    error = 1.96 * (a - b).std(ddof=1) / 20
    assert difference == pytest.approx((a - b).mean())
    assert low == pytest.approx(difference - error, abs=0.02)
    assert high == pytest.approx(difference + error, abs=0.02)


def test_pairing_matters() -> None:
    generator = np.random.default_rng(2)
    b = generator.normal(0, 10, 200)
    a = b + 0.1
    paired, shuffled = paired_bootstrap(a, b, 500), paired_bootstrap(a, generator.permutation(b), 500)
    assert paired.high - paired.low < 1e-9
    assert shuffled.high - shuffled.low > 1


def test_seed_fixes_the_interval() -> None:
    a, b = [0, 1, 1, 0, 1, 1, 0, 1], [0, 0, 1, 0, 1, 0, 0, 1]
    assert paired_bootstrap(a, b, 200, seed=3) == paired_bootstrap(a, b, 200, seed=3)
    swapped = paired_bootstrap(b, a, 200, seed=3)
    assert swapped.difference == -paired_bootstrap(a, b, 200, seed=3).difference


@pytest.mark.parametrize(
    ("a", "b", "samples", "message"),
    [
        ([1.0], [1.0, 2.0], 10, "equally long"),
        ([], [], 10, "non-empty"),
        ([1.0], [float("nan")], 10, "finite"),
        ([1.0], [1.0], 0, "samples must be at least 1"),
    ],
)
def test_bad_input_is_named(a: list[float], b: list[float], samples: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(a, b, samples)


def _results(ranks: list[int], qids: list[str]) -> Results:
    grains = MultiGrain(qids, [2] * len(qids), ranks)
    return Results("m", "d", "test", "local", "direct", "direct", "fixed", 0, None, 0.0, [], grains)


def test_compare_pairs_rows_with_the_same_queries_only() -> None:
    qids = [f"21:{n}" for n in range(4)]
    rows = {
        "base": _results([9, 9, 1, 3], qids),
        "better": _results([1, 1, 1, 2], qids),
        "other": _results([1], ["x"]),
    }
    found = compare(rows)
    assert [(d.name, d.reference, d.metric) for d in found] == [
        ("better", "base", "multi-grain hit@1"),
        ("better", "base", "multi-grain hit@5"),
    ]
    assert [d.interval.difference for d in found] == [0.5, 0.5]
    assert compare({}) == []
    with pytest.raises(ValueError, match="reference must be one of"):
        compare(rows, reference="absent")
