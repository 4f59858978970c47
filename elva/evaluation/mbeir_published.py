"""Published M-BEIR results, to stand beside one's own: hit rates in percent, in the order of the table's rows."""

from __future__ import annotations

from statistics import fmean
from typing import NamedTuple


class Published(NamedTuple):
    """``scores`` are the sixteen rows, or empty where only their ``mean`` is known; ``source``: see ``SOURCES``."""

    name: str
    scores: tuple[float, ...]
    mean: float
    source: str


SOURCES = {
    "a": "ELVA, arXiv 2606.20280, Table 1 (averages)",
    "b": "UniIR's models as the repository of GENIUS (arXiv 2503.19868) reprints them; the mean is of these rows",
    "c": "U-MARVEL, arXiv 2507.14902, Tables 7 and 17 (averages, taken from summaries of the paper)",
}


def _rows(name: str, printed: str) -> Published:
    scores = tuple(map(float, printed.split()))
    return Published(name, scores, fmean(scores), "b")


PUBLISHED: dict[str, tuple[Published, ...]] = {
    "local": (
        Published("CLIP-L", (), 32.5, "c"),
        _rows(
            "UniIR BLIP_FF", "23.4 79.7 26.1 80.0 50.9 79.8 22.8 89.9 28.9 33.0 41.0 22.4 29.2 52.2 55.8 33.0"
        ),
        _rows(
            "UniIR CLIP_SF", "42.6 81.1 18.0 84.7 59.4 78.7 43.1 92.3 18.3 32.0 45.5 27.9 24.4 44.6 67.6 48.9"
        ),
        Published("LamRA-Ret-2B", (), 51.6, "a"),
        Published("ELVA-2B", (), 53.8, "a"),
        Published("LamRA-Ret-7B", (), 56.6, "a"),
        Published("ELVA-7B", (), 58.7, "a"),
        Published("U-MARVEL-7B", (), 63.2, "c"),
    ),
    "global": (
        _rows(
            "UniIR BLIP_FF", "23.0 75.6 25.4 79.5 50.3 79.7 21.1 88.8 27.6 33.0 34.7 19.7 28.5 51.4 57.8 27.7"
        ),
        _rows(
            "UniIR CLIP_SF", "42.6 77.9 17.8 84.7 59.4 78.8 42.8 92.3 17.9 33.4 39.2 24.0 26.2 43.0 60.2 44.6"
        ),
        Published("LamRA-Ret-7B", (), 54.9, "c"),
        Published("U-MARVEL-7B", (), 60.7, "c"),
    ),
}
"""By pool."""
