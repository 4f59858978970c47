"""The passes over a block of scores: each back-end against the PyTorch one in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elva.ops import library
from elva.ops.infonce_blocks import Scoring, Weights, _reduce, _weigh, score_gradients
from tests.ops.infonce_passes import block, compare_passes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
native = pytest.mark.skipif(
    not library.native_available(), reason="elva/_C.so was not built: run `make build`"
)


@native
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    rows=st.integers(1, 9),
    count=st.sampled_from([1, 5, 16, 63, 64, 65, 130, 1025]),
    positives=st.integers(1, 3),
    masked=st.booleans(),
    ids=st.booleans(),
    columns=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_native_passes(
    seed: int,
    rows: int,
    count: int,
    positives: int,
    masked: bool,
    ids: bool,
    columns: bool,
    dtype: torch.dtype,
) -> None:
    compare_passes(
        torch.ops.elva.infonce_reduce_,
        torch.ops.elva.infonce_weigh_,
        block(seed, rows, count, positives, masked, ids, dtype),
        columns,
    )


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("out_dtype", [None, torch.bfloat16] if DEVICE == "cuda" else [None])
def test_passes_on_this_device(ids: bool, out_dtype: torch.dtype | None) -> None:
    compare_passes(
        torch.ops.elva.infonce_reduce_,
        torch.ops.elva.infonce_weigh_,
        block(0, 33, 1500, 2, True, ids, torch.float32),
        True,
        DEVICE,
        out_dtype,
    )


@native
def test_a_nan_score_reaches_the_row_and_the_column() -> None:
    for reduce in (torch.ops.elva.infonce_reduce_, _reduce):
        scores = torch.zeros(2, 70)
        scores[1, 69] = torch.nan
        out = {"row": torch.empty(2), "highest": torch.full((70,), -torch.inf), "total": torch.zeros(70)}
        arguments: tuple[Any, ...] = (
            torch.ones(2),
            torch.ones(70),
            torch.tensor([[0], [1]]),
            None,
            None,
            None,
        )
        reduce(scores, *arguments, out["row"], torch.empty(2, 1), out["highest"], out["total"])
        assert out["row"].isnan().tolist() == [False, True]
        assert (out["highest"] + out["total"].log()).isnan().nonzero().tolist() == [[69]]


def test_rows_without_negatives_have_weight_zero() -> None:
    for weigh in (torch.ops.elva.infonce_weigh_, _weigh):
        scores, out = torch.full((1, 3), -torch.inf), torch.full((1, 3), torch.nan)
        ones, along = torch.ones(1), torch.full((1,), torch.nan)
        weigh(
            scores, out, False, ones, torch.ones(3), torch.tensor([[1]]), None, None, None,
            torch.zeros(1), ones, None, None, torch.tensor([[-0.5]]), along,
        )  # fmt: skip
        assert out.tolist() == [[0, -0.5, 0]]
        assert along.tolist() == [0]


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
def test_small_and_large_gradients_survive_half_precision(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, columns: bool, size: float
) -> None:
    """What a GPU does with vectors in half precision: products in float32 of a rounded G (here by the PyTorch pass)."""
    monkeypatch.setattr(torch.ops.elva, "infonce_weigh_", _weigh)
    generator = torch.Generator().manual_seed(0)
    query, keys = (torch.randn(n, 16, generator=generator).to(dtype) for n in (6, 40))
    labels = torch.arange(6)[:, None]

    def gradients(kind: torch.dtype, scales: torch.dtype) -> list[torch.Tensor]:
        scoring = Scoring(
            query.to(kind), keys.to(kind), torch.ones(6, dtype=scales), torch.full((40,), 0.3, dtype=scales),
            labels, None, None, None,
        )  # fmt: skip
        row, column = (torch.rand(n, generator=torch.Generator().manual_seed(1)) for n in (6, 40))
        weights = Weights(
            (size * row).to(scales),
            torch.full((6,), 3.0, dtype=scales),
            (size * column).to(scales) if columns else None,
            torch.full((40,), 3.0, dtype=scales) if columns else None,
            (-size * row[:, None]).to(scales),
        )
        kept = torch.empty(0, 40, dtype=scales)
        return list(score_gradients(scoring, kept, weights, need_query=True, need_keys=True))

    for found, exact in zip(
        gradients(dtype, torch.float32), gradients(torch.float64, torch.float64), strict=True
    ):
        assert exact.norm() > 0
        assert float((found - exact).norm() / exact.norm()) < torch.finfo(dtype).eps
