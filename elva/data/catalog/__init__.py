"""Any catalogue of pictures with attributes, turned into an M-BEIR directory with all eight task types."""

from elva.data.catalog.build import convert

__all__ = ["convert"]
