"""What the cases of operators and losses are drawn from: one generator, so that a seed is a case."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Draws:
    """Random sizes, options and tensors of one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def one_of(self, values: Sequence) -> object:
        return self.random.choice(values)

    def often(self, share: float = 0.5) -> bool:
        return self.random.random() < share

    def size(self, least: int, most: int) -> int:
        """Small ones are as likely as large ones."""
        return min(most, least + int((most - least + 1) ** self.random.random() - 1 + self.random.random()))

    def number(self, least: float, most: float) -> float:
        return math.exp(self.random.uniform(math.log(least), math.log(most)))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def whole(self, most: int, *shape: int) -> Tensor:
        return torch.randint(most, shape, generator=self.generator)

    def flags(self, share: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator) < share

    def vectors(self, dtype: torch.dtype, *shape: int, extreme: bool = True) -> Tensor:
        """``[..., D]`` in a layout of its own: zero rows, equal rows, lengths up to the ends of the dtype."""
        x = self.normal(*shape)
        count = math.prod(shape[:-1])
        if count and shape[-1]:
            rows = x.view(count, shape[-1])
            if self.often():
                rows[self.flags(0.15, count)] = 0
            if extreme and self.often(0.4):
                most = {torch.float16: 2.0}.get(dtype, 28.0)
                rows *= 10 ** ((2 * torch.rand(count, 1, generator=self.generator) - 1) * most)
            if self.often():
                copied = self.flags(0.3, count)
                rows[copied] = rows[self.whole(count, count)][copied]
        return self.layout(x.to(dtype))

    def layout(self, x: Tensor) -> Tensor:
        """The same numbers with other strides."""
        if x.ndim == 0 or x.numel() == 0:
            return x
        way = self.random.randrange(5)
        if way == 1:
            return x.movedim(-1, 0).contiguous().movedim(0, -1)
        if way == 2:
            return x.repeat_interleave(2, dim=-1)[..., ::2]
        if way == 3:
            return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
        if way == 4 and x.ndim > 1:
            return x.transpose(0, 1).contiguous().transpose(0, 1)
        return x

    def padded(self, x: Tensor, used: Tensor) -> Tensor:
        """NaN or infinity where nothing may be read."""
        filling = self.one_of((math.nan, math.inf, 0.0))
        return self.layout(torch.where(used.view(*used.shape, *(1,) * (x.ndim - used.ndim)), x, filling))


def clear(values: Tensor, gap: float = 1e-4) -> bool:
    """True where no two of the last dimension are nearly, but not quite, equal: then rounding decides no order.

    Equal to the last bit of float64 are only copies.
    """
    ordered = values.double().nan_to_num(0.0).sort(dim=-1).values
    steps = ordered.diff(dim=-1)
    return not ((steps > 0) & (steps < gap)).any()
