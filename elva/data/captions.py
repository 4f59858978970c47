"""Captioned pictures beside the M-BEIR files: what the base stage learns to see and to say from.

``captions/train.jsonl`` holds one object a line: ``{"img_path": "mbeir_images/…", "captions": ["…", …]}``. It is our
addition to the layout, and optional; no retrieval task reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from elva.data.records import DataError
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

    Raises DataError ("path:line: …") on a line that is no such record.
    """
    path = Path(root) / FILE
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
                image, captions = record["img_path"], record["captions"]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{FILE}:{number}: -: expected an object with img_path and captions: {error}"
                ) from error
            texts = captions if isinstance(captions, list) else []
            if (
                not isinstance(image, str)
                or not texts
                or not all(isinstance(text, str) and text for text in texts)
            ):
                raise DataError(
                    f"{FILE}:{number}: -: expected a path and a list of texts, got {line.strip()[:80]}"
                )
            yield CaptionedPicture(image, tuple(texts))
