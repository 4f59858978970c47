"""InfoNCE with in-batch and hard negatives, and masks for duplicates and false negatives."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from elva.losses.gather import gather_rows, place_of
from elva.ops.checks import check_devices, is_finite
from elva.ops.infonce import infonce
from elva.ops.infonce_check import SIMILARITIES, check_arguments, known_pairs, label_values


class InfoNCELoss(nn.Module):
    """InfoNCE, the objective of stages 1 and 2 (docs/method.md).

        L = -1/B sum_b log( exp(s(q_b, k_label(b)) / tau) / sum_m exp(s(q_b, k_m) / tau) )

    Args:
        temperature: tau > 0. With ``learnable_temperature`` it is the starting value.
        similarity: ``"cosine"`` or ``"dot"``.
        bidirectional: average with the direction in which each positive key picks its query; labels one to one.
        learnable_temperature: hold ``log tau`` as a parameter ``log_temperature``, so that tau stays positive.
        cross_device: the keys and negatives of all ranks of the default process group are candidates, with gradients.
            The mean of the ranks' losses is the loss of one process on the joint batch, and gradients averaged over
            the ranks, as DDP and FSDP do, are its gradients, also where the shards differ in size. Without a process
            group it changes nothing.

    Raises:
        ValueError: a temperature that is not finite and above 0 or an unknown similarity.

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
        cross_device: bool = False,
    ) -> None:
        super().__init__()
        if not (temperature > 0 and is_finite(temperature)):
            raise ValueError(f"temperature must be above 0 and finite, got {temperature}")
        if similarity not in SIMILARITIES:
            raise ValueError(f"similarity must be one of {SIMILARITIES}, got {similarity!r}")
        self.similarity = similarity
        self.bidirectional = bidirectional
        self.cross_device = cross_device
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
            labels: ``[B]`` int64, index of each query's positive in ``keys``, or ``[B, P]``, its positives, -1 = no
                more (the loss is then the mean over them); ``None`` means ``0 .. B-1``.
            negatives: extra hard negatives, ``[N, D]`` or ``[B, N, D]``; all of them are candidates of all queries.
                They have no ids and no mask: put them into ``keys`` where they need some.
            query_ids: ``[B]`` integers; queries with one id share their positives, which are then no negatives.
            key_ids: ``[M]`` integers; keys with one id are the same item, so a copy of a positive is no negative.
            mask: ``[B, M]`` bool, True = the key counts for the query. A query's own positive always counts. Not with
                ``cross_device``: give ids there.

        Returns:
            Scalar >= 0, float32 (float64 for float64 input).

        Raises:
            ValueError, TypeError: shapes, dtypes, devices or labels that do not fit, naming the argument.
        """
        joint = self.cross_device and dist.is_available() and dist.is_initialized()
        if query.ndim == 2 and query.shape[0] == 0 and not joint:
            raise ValueError("query has no rows: the mean over an empty batch is not defined")
        check_devices(query=query, negatives=negatives)
        options = (self.temperature, self.similarity, self.bidirectional)
        check_arguments(query, keys, labels, *options, mask, query_ids, key_ids, None)
        if key_ids is not None and key_ids.shape != keys.shape[:1]:
            raise ValueError(f"key_ids must have shape [{keys.shape[0]}], got {list(key_ids.shape)}")
        if joint:
            if mask is not None:
                raise ValueError(
                    "mask covers this rank's keys only; with cross_device=True give query_ids and key_ids"
                )
            return self._joint(query, keys, labels, negatives, query_ids, key_ids)
        if negatives is not None:
            keys, mask = _append(keys, negatives, mask, query.shape[0])
        return self._losses(query, keys, labels, self.bidirectional, mask, query_ids, key_ids).mean()

    def _joint(
        self,
        query: Tensor,
        keys: Tensor,
        labels: Tensor | None,
        negatives: Tensor | None,
        query_ids: Tensor | None,
        key_ids: Tensor | None,
    ) -> Tensor:
        """This rank's share of the loss of the joint batch."""
        labels = label_values(query, keys, labels, self.bidirectional)
        first, everywhere = place_of(query)
        if everywhere == 0:
            raise ValueError("query has no rows on any rank: the mean over an empty batch is not defined")
        candidates = gather_rows(keys)
        places = torch.arange(first, first + query.shape[0], device=query.device)
        positives = torch.where(labels < 0, -1, labels + candidates.offset)
        pairs = joint_key_ids = None
        if query_ids is not None or key_ids is not None:
            query_ids = places if query_ids is None else query_ids
            if key_ids is None:
                key_ids = torch.arange(keys.shape[0], device=keys.device) + candidates.offset
            joint_key_ids = gather_rows(key_ids).rows
            known = known_pairs(labels, keys.shape[0], query_ids, key_ids, None)
            pairs = None if known is None else gather_rows(known[2]).rows
        pool = candidates.rows
        if negatives is not None:
            joint = gather_rows(_flat_negatives(keys, negatives, query.shape[0])).rows
            pool = torch.cat([pool, joint])
        losses = self._losses(query, pool, positives, False, None, query_ids, joint_key_ids, pairs)
        if self.bidirectional:
            chosen, queries = keys[labels[:, 0]], gather_rows(query).rows
            ids: tuple[Tensor | None, ...] = (None, None, None)
            if query_ids is not None and key_ids is not None and pairs is not None:
                ids = (key_ids[labels[:, 0]], gather_rows(query_ids).rows, pairs.flip(1))
            losses = 0.5 * (losses + self._losses(chosen, queries, places, False, None, *ids))
        return losses.sum() * (dist.get_world_size() / everywhere)

    def _losses(
        self,
        query: Tensor,
        keys: Tensor,
        labels: Tensor | None,
        bidirectional: bool,
        mask: Tensor | None,
        query_ids: Tensor | None,
        key_ids: Tensor | None,
        positive_pairs: Tensor | None = None,
    ) -> Tensor:
        return infonce(
            query,
            keys,
            labels,
            temperature=self.temperature,
            similarity=self.similarity,
            bidirectional=bidirectional,
            mask=mask,
            query_ids=query_ids,
            key_ids=key_ids,
            positive_pairs=positive_pairs,
        )

    def extra_repr(self) -> str:
        learnable = self.log_temperature is not None
        temperature = torch.as_tensor(self.temperature).item()
        return (
            f"temperature={temperature:g}, similarity={self.similarity!r}, "
            f"bidirectional={self.bidirectional}, learnable_temperature={learnable}, "
            f"cross_device={self.cross_device}"
        )


def _append(keys: Tensor, negatives: Tensor, mask: Tensor | None, batch: int) -> tuple[Tensor, Tensor | None]:
    """Keys and mask with the negatives behind, which count for every query."""
    negatives = _flat_negatives(keys, negatives, batch)
    if mask is not None:
        mask = torch.cat([mask, mask.new_ones(batch, negatives.shape[0])], dim=1)
    return torch.cat([keys, negatives]), mask


def _flat_negatives(keys: Tensor, negatives: Tensor, batch: int) -> Tensor:
    """``[N, D]``; ValueError unless they are that or ``[B, N, D]``, TypeError unless floating point."""
    shape = list(negatives.shape)
    if (
        negatives.ndim not in (2, 3)
        or shape[-1] != keys.shape[-1]
        or (negatives.ndim == 3 and shape[0] != batch)
    ):
        raise ValueError(
            f"negatives must be [N, {keys.shape[-1]}] or [{batch}, N, {keys.shape[-1]}], got {shape}"
        )
    if not negatives.is_floating_point():
        raise TypeError(f"negatives must be floating point, got {negatives.dtype}")
    return negatives.flatten(0, -2)
