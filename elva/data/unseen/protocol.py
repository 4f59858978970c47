"""What is known about an unseen set: what to download, how to convert it, and by what it is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from elva.data.unseen.source import Source
from elva.data.writer import MBEIRWriter

Convert = Callable[[Source, MBEIRWriter], None]


@dataclass(frozen=True)
class UnseenSet:
    """A set that the paper evaluates on without training on it.

    Attributes:
        name: what `elva data unseen` calls it.
        datasets: the names of its rows in M-BEIR's layout.
        metrics: of ``R@K`` (a positive among the first K), ``mAP@K`` and ``accuracy`` (R@1 between two captions).
        own_pools: each query is searched in its positives and negatives alone, not in the pool of its row.
        download: what belongs in the source directory, and where it comes from.
        convert: writes the rows.
    """

    name: str
    datasets: tuple[str, ...]
    metrics: tuple[str, ...]
    download: str
    convert: Convert
    own_pools: bool = False

    @property
    def cutoff(self) -> int:
        """K of the first metric."""
        return int(self.metrics[0].partition("@")[2] or 1)
