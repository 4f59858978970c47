"""Several pictures as one: the layout has one picture a query or candidate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from elva.data.records import DataError
from elva.pictures import PictureError, read_rgb

SIDE = 224


def open_picture(path: Path, where: str) -> Image.Image:
    """In RGB; DataError, beginning with ``where`` (the record that names it), for a file that is no picture."""
    try:
        return read_rgb(path)
    except PictureError as error:
        raise DataError(f"{where}: {path}: cannot be read as a picture: {error}") from error


def tile(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Row by row, each shrunk into ``SIDE`` × ``SIDE`` pixels; cells are as large as the largest picture in them."""
    shrunk = [picture.copy() for picture in pictures]
    for picture in shrunk:
        picture.thumbnail((SIDE, SIDE))
    width, height = max(p.width for p in shrunk), max(p.height for p in shrunk)
    rows = -(-len(shrunk) // columns)
    whole = Image.new("RGB", (width * min(columns, len(shrunk)), height * rows))
    for number, picture in enumerate(shrunk):
        whole.paste(picture, (number % columns * width, number // columns * height))
    return whole
