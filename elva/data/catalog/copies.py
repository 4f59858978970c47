"""Copies of pictures: an item would find itself, or its own picture would stand in the pool as wrong."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from PIL import Image

from elva.data.catalog.item import Item

ITEMS, SECOND_PICTURES = "items", "second pictures"


def fingerprint(rgb: Image.Image) -> bytes:
    """The same for pictures of the same pixels, however their files are named and compressed."""
    return hashlib.blake2b(
        rgb.tobytes(), digest_size=16, person=f"{rgb.width}x{rgb.height}".encode()
    ).digest()


def without_copies(items: Iterable[Item], pixels: dict[str, bytes]) -> tuple[list[Item], Counter[str]]:
    """The items with pictures of their own, and how many ``ITEMS`` and ``SECOND_PICTURES`` were left out.

    The first item of a picture stays. A second picture goes that is some item's picture, or an earlier second one.
    ``pixels``: the fingerprint of every picture.
    """
    left_out: Counter[str] = Counter()
    first: dict[bytes, Item] = {}
    for item in items:
        if first.setdefault(pixels[item.image], item) is not item:
            left_out[ITEMS] += 1
    seen = set(first)
    kept = []
    for item in first.values():
        second = None if item.alt_image is None else pixels[item.alt_image]
        if second in seen:
            left_out[SECOND_PICTURES] += 1
            kept.append(replace(item, alt_image=None))
            continue
        if second is not None:
            seen.add(second)
        kept.append(item)
    return kept, left_out
