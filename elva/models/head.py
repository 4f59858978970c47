"""The language model's head as `elva.ops.linear_logprob` takes it: its weight, and the rows that PEFT trains."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Head(NamedTuple):
    """weight: [V, H]. trainable_rows [R] int64 and row_values [R, H] in weight's dtype: what PEFT's trainable tokens
    put in the place of these rows, or None where it puts nothing.
    """

    weight: Tensor
    trainable_rows: Tensor | None = None
    row_values: Tensor | None = None

    def to(self, dtype: torch.dtype) -> Head:
        """The same in another dtype, differentiable in row_values."""
        values = None if self.row_values is None else self.row_values.to(dtype)
        return Head(self.weight.to(dtype), self.trainable_rows, values)


def head_of(model: Any) -> Head:
    """The head that ``model`` (a transformers model, with adapter layers in place if PEFT wraps it) has at present.

    Behind a disabled adapter the values are weight's own rows. They go the same way as trained ones, so that an
    adapter which has not moved yet gives the same log-probabilities to the last bit, and a KL of 0.

    Raises:
        TypeError: the head is no linear layer without bias, nor PEFT's trainable tokens around one.
    """
    layer = model.get_output_embeddings()
    adapter = getattr(layer, "token_adapter", None)
    linear = layer if adapter is None else adapter.base_layer
    if not isinstance(linear, nn.Linear) or linear.bias is not None:
        raise TypeError(
            f"model: the head is {linear}; expected nn.Linear without bias, plain or in PEFT's trainable tokens"
        )
    weight = linear.weight
    names = [] if adapter is None else adapter.active_adapters
    if not names:
        return Head(weight)
    rows = torch.tensor([row for name in names for row in adapter.token_indices[name]], device=weight.device)
    if adapter.disable_adapters or adapter.merged:
        return Head(weight, rows, weight[rows])
    return Head(
        weight, rows, torch.cat([adapter.trainable_tokens_delta[name] for name in names]).to(weight.dtype)
    )
