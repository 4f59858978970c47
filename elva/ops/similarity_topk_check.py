"""What `similarity_topk` accepts, checked with errors that name the argument."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SIMILARITIES = ("dot", "cosine")


def check_arguments(
    query: Tensor, keys: Any, k: int, max_k: int, similarity: str, ceiling: float | Tensor | None
) -> None:
    """Raise TypeError or ValueError unless query, k, similarity and ceiling are in their ranges."""
    if query.dtype not in DTYPES:
        raise TypeError(f"query has dtype {query.dtype}; expected one of {', '.join(map(str, DTYPES))}")
    if query.dim() != 2 or query.shape[1] == 0:
        raise ValueError(f"query has shape {list(query.shape)}; expected [Q, D] with D > 0")
    if not 1 <= k <= max_k:
        raise ValueError(f"k is {k}; expected 1 to {max_k}")
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity is {similarity!r}; expected one of {', '.join(SIMILARITIES)}")
    if isinstance(ceiling, Tensor) and not ceiling.is_floating_point():
        raise TypeError(f"ceiling has dtype {ceiling.dtype}; expected a floating-point one")
    if isinstance(ceiling, Tensor) and ceiling.shape not in ((), (query.shape[0],)):
        raise ValueError(f"ceiling has shape {list(ceiling.shape)}; expected one score or [{query.shape[0]}]")


def as_blocks(keys: Any) -> Iterable[Tensor]:
    """The keys as a stream of tensors; arrays share their memory."""
    if isinstance(keys, Tensor):
        return (keys,)
    if hasattr(keys, "__array_interface__"):
        return (_tensor(keys),)
    if isinstance(keys, Iterable):
        return (block if isinstance(block, Tensor) else _tensor(block) for block in keys)
    raise TypeError(f"keys is {type(keys).__name__}; expected a tensor, an array or an iterable of blocks")


def _tensor(array: Any) -> Tensor:
    if not hasattr(array, "__array_interface__"):
        raise TypeError(f"keys hold a block of type {type(array).__name__}; expected tensors or arrays")
    with warnings.catch_warnings():
        # A read-only memory map: it is only read.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
