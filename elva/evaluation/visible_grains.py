"""Which grains can be seen in what the language model receives, and which of them an embedding sees.

For every near miss of a multi-grain query: is the query's picture told from it by a linear probe on the frozen tower's
features, and by the embeddings? Half is chance for both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from elva.data.facts import NearMiss
from elva.intervals import wilson
from elva.progress import track

if TYPE_CHECKING:
    from elva.models.encoder import MultimodalEncoder

VISIBLE = 0.85
"""A grain that the probe tells apart at least so often can be seen."""
_BATCH = 128


@dataclass(frozen=True)
class GrainSight:
    """One grain: the shares of its ``pairs`` near misses that the probe and the embedding order rightly, in [0, 1].

    ``embedding`` is None where no embedding was asked.
    """

    grain: str
    pairs: int
    probe: float
    embedding: float | None = None

    @property
    def visible(self) -> bool:
        return self.probe >= VISIBLE

    @property
    def probe_interval(self) -> tuple[float, float]:
        """95% Wilson interval; the pairs are taken for independent."""
        return wilson(self.probe, self.pairs)

    @property
    def embedding_interval(self) -> tuple[float, float] | None:
        """As ``probe_interval``."""
        return None if self.embedding is None else wilson(self.embedding, self.pairs)


def picture_features(encoder: MultimodalEncoder, images: Sequence[object]) -> Tensor:
    """Features ``[pictures, tokens, H]``, as the language model receives them, of pictures of one size (paths or PIL).

    Raises:
        ValueError: pictures of several sizes.
    """
    parts, size = [], None
    with torch.no_grad():
        for start in track(range(0, len(images), _BATCH), "Pictures seen"):
            chunk = images[start : start + _BATCH]
            batch = encoder.prepare([{"text": None, "image": image} for image in chunk])
            size = batch["image_grid_thw"][0] if size is None else size
            if (batch["image_grid_thw"] != size).any():
                raise ValueError("images: of several sizes, expected one")
            # behind the last layer's features stand Qwen3-VL's deepstack levels
            last = batch["image_features"][:, : encoder.hidden_size]
            parts.append(last.unflatten(0, (len(chunk), -1)).float().cpu())
    return torch.cat(parts)


def by_grain(
    pairs: Sequence[NearMiss], probed: Sequence[bool], scores: Tensor | None = None
) -> list[GrainSight]:
    """Shares by grain, in alphabetical order.

    Args:
        pairs: near misses.
        probed: for each of them, whether the probe ordered it rightly.
        scores: ``[queries, pictures]``, similarities of the embeddings; equal ones are not ordered rightly.
    """
    found: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for pair, right in zip(pairs, probed, strict=True):
        ordered = scores is not None and bool(scores[pair.query, pair.right] > scores[pair.query, pair.wrong])
        found[pair.grain].append((right, ordered))
    sights = []
    for grain, orders in sorted(found.items()):
        probe, embedding = (sum(column) / len(orders) for column in zip(*orders, strict=True))
        sights.append(GrainSight(grain, len(orders), probe, None if scores is None else embedding))
    return sights
