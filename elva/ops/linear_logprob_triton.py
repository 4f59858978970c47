"""The sweep of `linear_logprob` on CUDA devices. Imported at the first call there: it needs triton.

With ``TRITON_INTERPRET=1`` set before the import, it also runs on CPU tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from elva.kernels.linear_logprob import advance_kernel, replace_kernel
from elva.ops.linear_logprob_sums import of_sums

TILE_ELEMENTS = 1 << 23
"""Logits in one tile (32 MB): what lies between the two products is read again from the second-level cache."""
BLOCK = 1024


def forward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float,
    with_expected: bool,
    trainable_rows: Tensor | None = None,
    row_values: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logprob, entropy, logsumexp [T] and expected [T,H] (empty unless asked for); arguments as the operator's."""
    count, dim = hidden.shape
    highest = hidden.new_full((count,), -torch.inf, dtype=torch.float32)
    total, weighted, target, fade = (hidden.new_zeros(count, dtype=torch.float32) for _ in range(4))
    expected = hidden.new_zeros((count if with_expected else 0, dim), dtype=torch.float32)
    targets = targets.contiguous()
    if trainable_rows is None or row_values is None:
        trainable_rows, row_values = targets[:0], weight[:0]
    given_rows, given_logits = trainable_rows.contiguous(), _product(hidden, row_values.T)
    tile = max(256, TILE_ELEMENTS // max(count, 1) // 256 * 256)
    for first in range(0, weight.shape[0] if count else 0, tile):
        head = weight[first : first + tile]
        logits = _product(hidden, head.T)
        _replace(logits, given_rows, given_logits, first)
        # The second product takes half precision where the head has it, as flash attention's does.
        p = logits if head.dtype == torch.float32 else torch.empty_like(logits, dtype=head.dtype)
        with torch.cuda.device_of(hidden):
            advance_kernel[(count,)](
                logits,
                p,
                targets,
                highest,
                total,
                weighted,
                target,
                fade,
                first,
                head.shape[0],
                1 / temperature,
                BLOCK=BLOCK,
            )
        if with_expected:
            _replace(p, given_rows, torch.zeros_like(given_logits), first)
            expected = torch.addcmul(_product(p, head), expected, fade[:, None])
    logsumexp = highest + total.log()
    if with_expected:
        p = (given_logits / temperature - logsumexp[:, None]).exp()
        expected = expected / total[:, None] + p @ row_values.float()
    return *of_sums(target, highest, total, weighted), logsumexp, expected


def _replace(tile: Tensor, rows: Tensor, values: Tensor, first: int) -> None:
    """Columns of a tile that begins at row `first` of the head take values [T, R]; rows outside of it do nothing."""
    if values.numel():
        with torch.cuda.device_of(tile):
            replace_kernel[tuple(values.shape)](tile, rows, values, first, tile.shape[1], values.shape[1])


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a b in float32; torch.get_float32_matmul_precision() decides about TF32."""
    if a.dtype == torch.float32 or not a.is_cuda:
        return a.float() @ b.float()
    return torch.mm(a, b, out_dtype=torch.float32)
