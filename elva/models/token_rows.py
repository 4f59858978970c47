"""PEFT's trainable token rows beside the embedding, not in a copy of it.

PEFT writes the trained rows into a copy of the whole matrix, in every forward and decode step, for the embedding and
for the tied head: 467 MB each time at 152k × 1,536 in bfloat16. Here the layers run on the matrix as it is, and what
comes out is corrected at the few tokens, or in the few columns, that are trained.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import Tensor, nn
from torch.nn import functional as F


class TokenRows(TrainableTokensLayer):
    """The same parameters, the same result and gradients as PEFT's layer, and nothing of the matrix's size."""

    def forward_adapters(self, x: Tensor, active_adapters: Any, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters or self.merged or not active_adapters:
            return super().forward_adapters(x, active_adapters, *args, **kwargs)
        self._check_overlapping_tokens(active_adapters)
        result = self.base_layer(x, *args, **kwargs)
        for name in active_adapters:
            rows, values = self.token_indices[name], self.trainable_tokens_delta[name]
            if isinstance(self.base_layer, nn.Embedding):
                for row, value in zip(rows, values.to(result.dtype), strict=True):
                    result = torch.where((x == row).unsqueeze(-1), value, result)
            else:
                logits = F.linear(x, values.to(self.base_layer.weight.dtype))
                for row, column in zip(rows, logits.unbind(-1), strict=True):
                    result[..., row] = column
        return result


def keep_rows_apart(model: nn.Module) -> None:
    """Let every layer of ``model`` in which PEFT trains tokens run as `TokenRows`.

    Raises:
        TypeError: such a layer around something else than a plain embedding or a linear layer.
    """
    for layer in model.modules():
        if type(layer) is TrainableTokensLayer:
            if type(layer.base_layer) not in (nn.Embedding, nn.Linear):
                kind = type(layer.base_layer).__name__
                raise TypeError(f"model: tokens are trained in a {kind}, expected nn.Embedding or nn.Linear")
            layer.__class__ = TokenRows
