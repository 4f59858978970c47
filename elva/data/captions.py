"""Captioned pictures beside the M-BEIR files: what the base stage learns to see and to say from.

``captions/train.jsonl`` holds one object a line: ``{"img_path": "mbeir_images/…", "captions": ["…", …]}``. It is our
addition to the layout, and optional; no retrieval task reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from elva.data.lines import numbered_lines, parse_json_line
from elva.data.records import DataError, described
from elva.data.wording import is_blank
from elva.files import atomic_file

FILE = Path("captions") / "train.jsonl"


@dataclass(frozen=True, slots=True)
class CaptionedPicture:
    """A picture (path relative to the directory) and the captions that were written for it, at least one."""

    image: str
    captions: tuple[str, ...]


def write_captions(root: str | Path, pictures: Iterable[CaptionedPicture]) -> None:
    """Write ``captions/train.jsonl`` below ``root``, whole or not at all."""
    with atomic_file(Path(root) / FILE) as temporary, temporary.open("w", encoding="utf-8") as file:
        for picture in pictures:
            record = {"img_path": picture.image, "captions": list(picture.captions)}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_captions(root: str | Path) -> Iterator[CaptionedPicture]:
    """The captioned pictures of a directory; none where it has no such file.

    Raises DataError ("path:line: …") on a line that is no such record, or where the file cannot be read.
    """
    path = Path(root) / FILE
    if not path.exists():
        return
    try:
        for number, line in numbered_lines(path):
            try:
                yield parse_caption(line)
            except ValueError as error:
                raise DataError(f"{FILE}:{number}: -: {error}") from error
    except OSError as error:
        raise DataError(f"{FILE}: cannot be read: {error.strerror}") from error


def parse_caption(line: bytes) -> CaptionedPicture:
    """One line of the file; ValueError when it is no such record."""
    try:
        record = parse_json_line(line)
    except ValueError as error:
        raise ValueError(f"expected an object with img_path and captions: {error}") from error
    image = record.get("img_path") if isinstance(record, dict) else None
    captions = record.get("captions") if isinstance(record, dict) else None
    if not isinstance(image, str) or not image or not isinstance(captions, list) or not captions:
        raise ValueError(f"expected an object with img_path and captions, got {described(record)}")
    for text in captions:
        if not isinstance(text, str) or is_blank(text):
            raise ValueError(f"expected captions that say something, got {described(text)}")
    return CaptionedPicture(image, tuple(captions))
