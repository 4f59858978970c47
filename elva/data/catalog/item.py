"""One line of a catalogue, and all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from elva.data.catalog.values import Grains


@dataclass(frozen=True, slots=True)
class Item:
    """One line of a catalogue.

    ``image`` and ``alt_image`` are relative to the folder of the catalogue; ``text`` and ``name`` are empty where
    it gives none; ``grains`` holds each element of a list-valued attribute on its own.
    """

    where: str
    id: str
    name: str
    text: str
    image: str
    alt_image: str | None
    grains: Grains


@dataclass(frozen=True, slots=True)
class Catalog:
    """The items of a catalogue; ``folder`` is resolved, ``list_keys`` are the keys that some item gives a list for.

    ``left_out`` counts copies (``elva.data.catalog.copies``), ``missing`` by key the texts read as nothing ("nan").
    """

    folder: Path
    items: list[Item]
    list_keys: frozenset[str]
    left_out: dict[str, int] = field(default_factory=dict)
    missing: dict[str, dict[str, int]] = field(default_factory=dict)
