"""Divide a catalogue into train, val and test so that the test asks for combinations never trained on."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from elva.data.catalog.items import Grains, Item
from elva.data.mbeir import SPLITS, DataError

SPLIT_BY = ("combinations", "items")
VAL_SHARE = 0.08
TEST_SHARE = 0.22


def split_items(
    items: Sequence[Item], split_by: str = "combinations", seed: int = 0
) -> dict[str, list[Item]]:
    """Items by split, about 70% train, 8% val and 22% test, in the catalogue's order; the same for the same seed.

    ``combinations``: all items with the same set of grain values stay together, and a combination is held out only
    while each of its values also stands in a combination that remains for training. ``items``: each item by itself.
    Items without a grain value are for training only. Raises DataError where nothing can be held out.
    """
    if split_by not in SPLIT_BY:
        raise ValueError(f"split_by is {split_by!r}, expected one of {', '.join(SPLIT_BY)}")
    if split_by == "combinations":
        split_of = _split_combinations({item.grains for item in items if item.grains}, seed)
        chosen = [split_of.get(item.grains, "train") for item in items]
    else:
        chosen = _split_each(items, seed)
    parts = {split: [item for item, s in zip(items, chosen, strict=True) if s == split] for split in SPLITS}
    if not parts["test"]:
        raise DataError(
            f"{len(items)} items with {len({item.grains for item in items})} combinations of values: none can be held "
            "out for the test; expected values that occur in several combinations (give fewer or coarser grain keys)"
        )
    return parts


def _split_combinations(combinations: set[Grains], seed: int) -> dict[Grains, str]:
    order = sorted(combinations, key=lambda grains: _draw(repr(sorted(grains)), seed))
    remaining = Counter(value for grains in order for value in grains)
    split_of: dict[Grains, str] = {}
    for split, share in (("test", TEST_SHARE), ("val", VAL_SHARE)):
        quota = max(1, round(share * len(order)))
        for grains in order:
            if quota and grains not in split_of and all(remaining[value] > 1 for value in grains):
                split_of[grains] = split
                remaining.subtract(grains)
                quota -= 1
    return split_of


def _split_each(items: Sequence[Item], seed: int) -> list[str]:
    order = sorted((item for item in items if item.grains), key=lambda item: _draw(item.image, seed))
    test = max(1, round(TEST_SHARE * len(order)))
    val = max(1, round(VAL_SHARE * len(order)))
    if len(order) < 3:
        return ["train"] * len(items)
    split_of = {item.image: "test" for item in order[:test]}
    split_of |= {item.image: "val" for item in order[test : test + val]}
    return [split_of.get(item.image, "train") for item in items]


def _draw(content: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}/{content}".encode(), digest_size=16).digest()
