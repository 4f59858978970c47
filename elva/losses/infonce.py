"""InfoNCE with in-batch and hard negatives, and masks for duplicates and false negatives."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from elva.ops.infonce import infonce
from elva.ops.infonce_check import SIMILARITIES


class InfoNCELoss(nn.Module):
    """InfoNCE, the objective of stages 1 and 2 (PAPER.md, "Three stages").

        L = -1/B sum_b log( exp(s(q_b, k_label(b)) / tau) / sum_m exp(s(q_b, k_m) / tau) )

    Args:
        temperature: tau > 0. With ``learnable_temperature`` it is the starting value.
        similarity: ``"cosine"`` or ``"dot"``.
        bidirectional: average with the direction in which each positive key picks its query; labels one to one.
        learnable_temperature: hold ``log tau`` as a parameter ``log_temperature``, so that tau stays positive.

    Raises:
        ValueError: a temperature that is not above 0 or an unknown similarity.

    Example:
        >>> loss = InfoNCELoss(temperature=1.0)
        >>> loss(torch.eye(2), torch.eye(2))  # log(1 + exp(-1))
        tensor(0.3133)
        >>> loss(torch.eye(2), torch.eye(2), key_ids=torch.tensor([7, 7]))  # copies of one item: nothing to tell apart
        tensor(0.)
    """

    def __init__(
        self,
        temperature: float = 0.05,
        similarity: str = "cosine",
        bidirectional: bool = False,
        learnable_temperature: bool = False,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        if similarity not in SIMILARITIES:
            raise ValueError(f"similarity must be one of {SIMILARITIES}, got {similarity!r}")
        self.similarity = similarity
        self.bidirectional = bidirectional
        self.initial_temperature = temperature
        self.log_temperature = (
            nn.Parameter(torch.tensor(math.log(temperature))) if learnable_temperature else None
        )

    @property
    def temperature(self) -> float | Tensor:
        """tau: a float, or a scalar tensor with gradient when it is learnable."""
        return self.initial_temperature if self.log_temperature is None else self.log_temperature.exp()

    def forward(
        self,
        query: Tensor,
        keys: Tensor,
        labels: Tensor | None = None,
        *,
        negatives: Tensor | None = None,
        query_ids: Tensor | None = None,
        key_ids: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Mean loss over the batch.

        Args:
            query: ``[B, D]``, any floating dtype; accumulated in float32 (float64 for float64 input).
            keys: ``[M, D]``, candidates of every query.
            labels: ``[B]`` int64, index of each query's positive in ``keys``; ``None`` means ``0 .. B-1``.
            negatives: extra hard negatives, ``[N, D]`` or ``[B, N, D]``; all of them are candidates of all queries.
                They have no ids and no mask: put them into ``keys`` where they need some.
            query_ids: ``[B]`` integers; queries with one id share their positives, which are then no negatives.
            key_ids: ``[M]`` integers; keys with one id are the same item, so a copy of a positive is no negative.
            mask: ``[B, M]`` bool, True = the key counts for the query. A query's own positive always counts.

        Returns:
            Scalar >= 0, float32 (float64 for float64 input).

        Raises:
            ValueError, TypeError: shapes, dtypes or labels that do not fit, naming the argument.
        """
        batch, count = query.shape[0], keys.shape[0]
        if batch == 0:
            raise ValueError("query has no rows: the mean over an empty batch is not defined")
        for name, ids, length in (("query_ids", query_ids, batch), ("key_ids", key_ids, count)):
            if ids is not None and ids.shape != (length,):
                raise ValueError(f"{name} must have shape [{length}], got {list(ids.shape)}")
        if mask is not None and mask.shape != (batch, count):
            raise ValueError(f"mask must have shape [{batch}, {count}], got {list(mask.shape)}")
        if query_ids is not None or key_ids is not None:
            known = ~known_positives(labels, batch, count, query_ids, key_ids, query.device)
            mask = known if mask is None else mask & known
        if negatives is not None:
            keys, mask = _append(keys, negatives, mask, batch)
        losses = infonce(
            query,
            keys,
            labels,
            temperature=self.temperature,
            similarity=self.similarity,
            bidirectional=self.bidirectional,
            mask=mask,
        )
        return losses.mean()

    def extra_repr(self) -> str:
        learnable = self.log_temperature is not None
        temperature = torch.as_tensor(self.temperature).item()
        return (
            f"temperature={temperature:g}, similarity={self.similarity!r}, "
            f"bidirectional={self.bidirectional}, learnable_temperature={learnable}"
        )


def known_positives(
    labels: Tensor | None,
    batch: int,
    count: int,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    device: torch.device,
) -> Tensor:
    """``[B, M]`` bool: key m is, by its id, a positive of query b or of a query with the same id."""
    if labels is None:
        labels = torch.arange(batch, device=device)
    if key_ids is None:
        positive = torch.zeros(batch, count, dtype=torch.bool, device=device).scatter(
            1, labels[:, None], True
        )
    else:
        positive = key_ids[labels][:, None] == key_ids
    if query_ids is not None:
        same_query = query_ids[:, None] == query_ids
        positive = (same_query.float() @ positive.float()) > 0
    return positive


def _append(keys: Tensor, negatives: Tensor, mask: Tensor | None, batch: int) -> tuple[Tensor, Tensor | None]:
    shape = list(negatives.shape)
    if (
        negatives.ndim not in (2, 3)
        or shape[-1] != keys.shape[-1]
        or (negatives.ndim == 3 and shape[0] != batch)
    ):
        raise ValueError(
            f"negatives must be [N, {keys.shape[-1]}] or [{batch}, N, {keys.shape[-1]}], got {shape}"
        )
    negatives = negatives.flatten(0, -2)
    if mask is not None:
        mask = torch.cat([mask, mask.new_ones(batch, negatives.shape[0])], dim=1)
    return torch.cat([keys, negatives]), mask
