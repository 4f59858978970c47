"""Cosines at any length: vectors are brought to where squares and products neither overflow nor vanish.

The rule of every operator and back-end: a vector whose squared norm is outside of 2^-80 to 2^80 (float64: 2^-900 to
2^900) is first multiplied by the power of two that brings its largest element to 1 (at most 4 at the end of the range),
which rounds nothing and changes no cosine. A vector without an element of at least the smallest normal number
(1.2e-38 in float32) is a zero vector: cosine and gradient are 0.

Here the multiplication is always made; in the C++ and Triton kernels only where it is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

_EXPONENT = {
    torch.float32: (torch.int32, 0x7F800000),
    torch.float64: (torch.int64, 0x7FF0000000000000),
}


def in_range(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """``(scaled, scale)``: vectors ``[..., D]`` times powers of two ``[..., 1]``, in the dtype of `vectors`.

    The scale is 0 for a zero vector, and 1 where an element is not finite; float16 is never out of range. It is a
    constant to the derivative: the gradient of `vectors` is that of `scaled` times `scale`.
    """
    if vectors.dtype == torch.float16 or vectors.shape[-1] == 0:
        return vectors, vectors.new_ones(*vectors.shape[:-1], 1)
    dtype = torch.promote_types(vectors.dtype, torch.float32)
    largest = vectors.detach().abs().amax(dim=-1, keepdim=True).to(dtype)
    whole, mask = _EXPONENT[dtype]
    power = (largest.view(whole) & mask).view(dtype)
    tiny = torch.finfo(dtype).tiny
    scale = 1 / torch.where(power.isfinite(), power.clamp(tiny, 1 / tiny), 1)
    scale = torch.where(largest < tiny, 0, scale).to(vectors.dtype)
    return vectors * scale, scale


def inverse_norm(scaled: Tensor) -> Tensor:
    """``1 / |x|`` over the last dimension (kept, size 1) of vectors from `in_range`; 0 for a zero vector."""
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    usable = norm != 0
    return torch.where(usable, 1 / torch.where(usable, norm, 1), 0)


def unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1, and 0 for a zero vector."""
    scaled, _ = in_range(vectors)
    return scaled * inverse_norm(scaled)
