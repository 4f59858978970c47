"""TRL's prompts and completions, plain or conversational, as inputs of an embedder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def pictures_of(columns: Mapping[str, Any], rows: int) -> list[list[Any]]:
    """The pictures of every row in the columns ``images`` (a list a row) or ``image``, as TRL reads them.

    Raises:
        ValueError: a column of another length. TypeError: ``images`` holds no list.
    """
    for name in ("images", "image"):
        values = columns.get(name)
        if values is None:
            continue
        if len(values) != rows:
            raise ValueError(f"{name}: {len(values)} rows given, expected {rows} (one a prompt)")
        if name == "image":
            return [[] if value is None else [value] for value in values]
        for row, value in enumerate(values):
            if value is not None and not isinstance(value, list | tuple):
                raise TypeError(f"images[{row}]: {type(value).__name__} given, expected a list of pictures")
        return [[picture for picture in value or () if picture is not None] for value in values]
    return [[] for _ in range(rows)]


def query_input(prompt: Any, completion: Any, pictures: Sequence[Any], row: int) -> Any:
    """Prompt and completion of a row as one input: a str, or ``{"text": …, "image": …}`` where there is a picture.

    ``pictures`` are those of the row's columns; they fill the places that messages leave for them, or stand before the
    text where messages have neither pictures nor places.

    Raises:
        TypeError: another form. ValueError: several pictures, parts of other kinds, or places without pictures.
    """
    if isinstance(prompt, str) and isinstance(completion, str):
        return _joined(prompt + completion, list(pictures), row)
    message = _Message(row)
    for name, messages in (("prompts", prompt), ("completions", completion)):
        if not isinstance(messages, list):
            raise TypeError(
                f"{name}[{row}]: {type(messages).__name__} given, expected a str or a list of messages "
                "(prompts and completions of one form)"
            )
        for part in messages:
            message.read(part)
    if message.places or not message.pictures:
        if message.places and message.places != len(pictures):
            raise ValueError(
                f"prompts[{row}]: {message.places} places for pictures and {len(pictures)} pictures in the columns "
                "image and images, expected one for each place"
            )
        message.pictures += pictures
    return _joined("\n".join(message.texts), message.pictures, row)


def _joined(text: str, pictures: list[Any], row: int) -> Any:
    if len(pictures) > 1:
        raise ValueError(f"prompts[{row}]: {len(pictures)} pictures given, expected at most one")
    return {"text": text, "image": pictures[0]} if pictures else text


class _Message:
    """What the messages of a row hold: texts, pictures, and places for pictures that stand elsewhere."""

    def __init__(self, row: int) -> None:
        self.row = row
        self.texts: list[str] = []
        self.pictures: list[Any] = []
        self.places = 0

    def read(self, message: dict[str, Any]) -> None:
        """Add a message; the instructions to the policy itself (system) describe no query."""
        if message.get("role") == "system":
            return
        content = message.get("content")
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content or []:
            if part.get("type") == "text":
                self.texts.append(part["text"])
            elif part.get("image") is not None:
                self.pictures.append(part["image"])
            elif part.get("type") == "image" and not part.get("url") and not part.get("path"):
                self.places += 1
            else:
                raise ValueError(
                    f"prompts[{self.row}]: a part of type {part.get('type')!r} with {', '.join(map(str, part))} given, "
                    "expected text, or an image under 'image' or in the column image or images"
                )
