"""Drawn scenes with English captions, made to show grain blindness: the data set that the demo trains on."""

from __future__ import annotations

from elva.data.scenes.build import generate

__all__ = ["generate"]
