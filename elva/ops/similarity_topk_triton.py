"""Launches the Triton kernel of `similarity_topk`. Imported at the first call on a CUDA device: it needs triton.

With ``TRITON_INTERPRET=1`` set before the import, it also runs on CPU tensors.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from elva.kernels.similarity_topk import merge_kernel
from elva.ops.norms import in_range

TILE = 8192
"""Keys per product: with 1,024 queries its scores (32 MB) are read again from the second-level cache."""
QUERIES = 1024
CHUNK = 1024
WARPS = 8
"""With 4 the sort spills registers, on sm_90 or sm_100 by the version of Triton (benchmarks/compile_report.py)."""


def update(
    query: Tensor,
    keys: Tensor,
    ceiling: Tensor | None,
    exclude: Tensor | None,
    offset: int,
    cosine: bool,
    screen: bool,
    values: Tensor,
    indices: Tensor,
) -> None:
    """Bring values and indices [Q,k] up to date with a block of keys; arguments as the operator's."""
    count, k = values.shape
    block = triton.next_power_of_2(max(k, 16))
    query_scale = values
    if cosine:
        # Short queries make products that fit wherever the keys do.
        query, _ = in_range(query)
        query_scale = _inverse_norm(query)
    for start in range(0, keys.shape[0], TILE):
        tile = keys[start : start + TILE]
        key_scale = _inverse_norm(tile) if cosine else values
        for first in range(0, count, QUERIES):
            rows = slice(first, first + QUERIES)
            scores = _product(query[rows], tile)
            with torch.cuda.device_of(query):
                merge_kernel[(scores.shape[0],)](
                    scores,
                    query_scale[rows],
                    key_scale,
                    values if ceiling is None else ceiling[rows],
                    indices if exclude is None else exclude[rows],
                    values[rows],
                    indices[rows],
                    tile.shape[0],
                    k,
                    0 if exclude is None else exclude.shape[1],
                    offset + start,
                    scores.stride(0),
                    COSINE=cosine,
                    HAS_CEILING=ceiling is not None,
                    K=block,
                    CHUNK=CHUNK,
                    num_warps=WARPS,
                )


def _product(query: Tensor, keys: Tensor) -> Tensor:
    """query keysᵀ in float32; torch.get_float32_matmul_precision() decides about TF32."""
    if query.dtype == torch.float32 or not query.is_cuda:
        return query.float() @ keys.float().T
    return torch.mm(query, keys.T, out_dtype=torch.float32)


def _inverse_norm(vectors: Tensor) -> Tensor:
    # float64 holds every square of float32; to scale the keys first (elva/ops/norms.py) would be a copy of them.
    norm = torch.linalg.vector_norm(vectors, dim=-1, dtype=torch.float64)
    return torch.where(norm >= torch.finfo(torch.float32).tiny, 1 / norm, 0).float()
