"""Tensors by key within a budget of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from torch import Tensor


class TensorCache:
    """Tuples of tensors, least recently used dropped first once they hold more than ``max_bytes``."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._entries: OrderedDict[Hashable, tuple[Tensor, ...]] = OrderedDict()

    def get(self, key: Hashable) -> tuple[Tensor, ...] | None:
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key]

    def put(self, key: Hashable, tensors: tuple[Tensor, ...]) -> None:
        self.bytes -= sum(tensor.nbytes for tensor in self._entries.pop(key, ()))
        self._entries[key] = tensors
        self.bytes += sum(tensor.nbytes for tensor in tensors)
        while self.bytes > self.max_bytes:
            _, dropped = self._entries.popitem(last=False)
            self.bytes -= sum(tensor.nbytes for tensor in dropped)

    def clear(self) -> None:
        self._entries.clear()
        self.bytes = 0
