"""Launches the Triton kernels of `infonce`. Imported at the first call on a CUDA device: it needs triton.

With ``TRITON_INTERPRET=1`` set before the import, they also run on CPU tensors.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from elva.kernels.infonce import infonce_columns_kernel, infonce_rows_kernel, infonce_weigh_kernel

BLOCK = 1024
BLOCK_R, BLOCK_C = 32, 64
WEIGH_WARPS = 8
"""With 4 a word of registers spills, on sm_80 or sm_90 by the row's alignment (benchmarks/compile_report.py)."""


def reduce_(
    scores: Tensor,
    query_scales: Tensor,
    key_scales: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    excluded: Tensor | None,
    key_codes: Tensor | None,
    row_logsumexp: Tensor,
    positive: Tensor,
    highest: Tensor | None,
    total: Tensor | None,
) -> None:
    """The forward's pass; arguments as the operator's."""
    cut = (query_scales, key_scales, labels, mask, excluded, key_codes)
    _finish(scores, cut, row_logsumexp, positive)
    if highest is None or total is None or scores.shape[0] == 0:
        return
    rows, count = scores.shape
    with torch.cuda.device_of(scores):
        infonce_columns_kernel[(triton.cdiv(count, BLOCK_C),)](
            scores, highest, total, rows, count, BLOCK_R=BLOCK_R, BLOCK_C=BLOCK_C
        )


def weigh_(
    scores: Tensor,
    out: Tensor,
    raw: bool,
    query_scales: Tensor,
    key_scales: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    excluded: Tensor | None,
    key_codes: Tensor | None,
    row_logsumexp: Tensor,
    row_weight: Tensor,
    column_logsumexp: Tensor | None,
    column_weight: Tensor | None,
    positive_weight: Tensor,
    along: Tensor,
) -> None:
    """The backward's pass; arguments as the operator's."""
    if raw:
        _finish(scores, (query_scales, key_scales, labels, mask, excluded, key_codes), None, None)
    if scores.shape[0] == 0:
        return
    with torch.cuda.device_of(scores):
        infonce_weigh_kernel[(scores.shape[0],)](
            scores,
            out,
            query_scales,
            key_scales,
            labels,
            row_logsumexp,
            row_weight,
            scores if column_logsumexp is None else column_logsumexp,
            scores if column_weight is None else column_weight,
            positive_weight,
            along,
            scores.shape[1],
            labels.shape[1],
            HAS_COLUMNS=column_weight is not None,
            BLOCK=BLOCK,
            num_warps=WEIGH_WARPS,
        )


def _finish(
    scores: Tensor,
    cut: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None],
    row_logsumexp: Tensor | None,
    positive: Tensor | None,
) -> None:
    """Products become scores, -inf where the key is no negative; reduced where there is an output for it."""
    query_scales, key_scales, labels, mask, excluded, key_codes = cut
    if scores.shape[0] == 0:
        return
    with torch.cuda.device_of(scores):
        infonce_rows_kernel[(scores.shape[0],)](
            scores,
            query_scales,
            key_scales,
            labels,
            scores if mask is None else mask,
            labels if excluded is None else excluded,
            labels if key_codes is None else key_codes,
            scores if row_logsumexp is None else row_logsumexp,
            scores if positive is None else positive,
            scores.shape[1],
            labels.shape[1],
            0 if excluded is None else excluded.shape[1],
            HAS_MASK=mask is not None,
            HAS_IDS=excluded is not None,
            REDUCE=positive is not None,
            BLOCK=BLOCK,
        )
