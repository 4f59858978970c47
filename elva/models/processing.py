"""From strings, paths, pictures and dicts to batches: our own tokenisation and picture placeholders.

Transformers' processors are not used, because their video part needs torchvision; its image processors are.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from elva.models.batches import Batch
from elva.models.cache import TensorCache
from elva.models.image_processor import settings_digest
from elva.models.prompts import IMAGE_TOKEN, TURN_END, USER_HEADER, VISION_END, VISION_START, PromptTemplate
from elva.pictures import PictureError, check_size, picture_suffixes, read_rgb, to_rgb

URL = re.compile(r"[a-z][a-z0-9+.-]*://|data:[a-z]+/", re.IGNORECASE)
CACHE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Item:
    """One input: a text, a picture (path or PIL image), or both; ``name`` is what errors call it."""

    text: str | None
    image: Path | Image.Image | None
    name: str = "input"


def parse_input(value: Any, index: int) -> Item:
    """One user input as an Item.

    A ``str`` is a text, unless it is one word that ends in a picture's suffix or names a file in a folder, or is more
    words and the name of a file with such a suffix; ``{"text": …}`` is always a text. Raises TypeError or ValueError
    (FileNotFoundError for absent pictures) naming the input by its index; URLs are not fetched, and refused.
    """
    name = f"inputs[{index}]"
    if isinstance(value, Item):
        return value
    if isinstance(value, Image.Image):
        return Item(None, value, name)
    if isinstance(value, Path):
        return Item(None, _existing(value, name), name)
    if isinstance(value, str):
        path = _path_in(value, name)
        return Item(_whole(value, name), None, name) if path is None else Item(None, path, name)
    if isinstance(value, Mapping):
        return _parse_mapping(value, name)
    raise TypeError(
        f"{name}: {type(value).__name__} given, expected a str, a path, a PIL image or "
        '{"text": …, "image": …}'
    )


def _path_in(value: str, name: str) -> Path | None:
    """The picture's path that a str is; None for a text. Raises for what can be neither."""
    word = value.strip()  # a line of a list of paths may keep its line break
    is_word = len(word.split()) == 1
    if is_word and URL.match(word):
        raise ValueError(
            f"{name}: {_shortened(word)} is a URL, expected a file on this machine; "
            'give {"text": …} if it is meant as a text'
        )
    named = re.split(r"[?#]", word)[0] if is_word else word  # a URL without its scheme
    has_suffix = Path(named[-255:]).suffix.lower() in picture_suffixes()
    if (has_suffix or (is_word and os.sep in word)) and (path := _file(value) or _file(word)):
        return path
    if has_suffix and is_word:
        raise FileNotFoundError(
            f"{name}: {_shortened(word)} looks like a picture's path but there is no such file; "
            'give {"text": …} if it is meant as a text'
        )
    return None


def _parse_mapping(value: Mapping[str, Any], name: str) -> Item:
    unknown = sorted(str(key) for key in value if key not in ("text", "image"))
    if unknown:
        raise ValueError(f"{name}: unknown keys {', '.join(unknown)}; expected 'text' and 'image'")
    text, image = value.get("text"), value.get("image")
    if text is None and image is None:
        raise ValueError(f"{name}: neither 'text' nor 'image' given, expected at least one of them")
    if text is not None and not isinstance(text, str):
        raise TypeError(f"{name}['text']: {type(text).__name__} given, expected a str")
    if image is not None and not isinstance(image, (str, Path, Image.Image)):
        raise TypeError(f"{name}['image']: {type(image).__name__} given, expected a path or a PIL image")
    if isinstance(image, str) and URL.match(image):
        raise ValueError(
            f"{name}['image']: {_shortened(image)} is a URL, expected a file on this machine or a PIL image"
        )
    if isinstance(image, (str, Path)):
        image = _existing(Path(image), name)
    return Item(None if text is None else _whole(text, f"{name}['text']"), image, name)


def _whole(text: str, name: str) -> str:
    """The text. ValueError for half of a surrogate pair in it, which is no character and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name}: character {error.start} is {text[error.start]!r}, half of a surrogate pair; expected Unicode text"
        ) from error
    return text


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:200]}…")


def _file(path: str) -> Path | None:
    try:
        return Path(path) if Path(path).is_file() else None
    except (OSError, ValueError):  # too long for a file name, or holds a null byte
        return None


def _existing(path: Path, name: str) -> Path:
    if not (found := _file(str(path))):
        raise FileNotFoundError(f"{name}: no picture at {path}")
    return found


def parse_inputs(inputs: Sequence[Any]) -> list[Item]:
    """All inputs as Items; a single one is refused, because results have one row per input."""
    if isinstance(inputs, (str, Path, Mapping, Image.Image)) or not hasattr(inputs, "__iter__"):
        raise TypeError(f"inputs: one {type(inputs).__name__} given, expected a list of inputs, e.g. [input]")
    return [parse_input(value, index) for index, value in enumerate(inputs)]


def join_instructions(items: list[Item], instructions: str | Sequence[str | None] | None) -> list[Item]:
    """``instruction + " " + text`` for every item; one instruction may serve all."""
    if instructions is None:
        return items
    if isinstance(instructions, str):
        instructions = [_whole(instructions, "instructions")] * len(items)
    if isinstance(instructions, bytes | Mapping | Set) or not hasattr(instructions, "__len__"):
        raise TypeError(
            f"instructions: {type(instructions).__name__} given, expected a str or a list with one for each input"
        )
    if len(instructions) != len(items):
        raise ValueError(
            f"instructions: {len(instructions)} given, expected one or {len(items)} (one per input)"
        )
    for index, own in enumerate(instructions):
        if own is not None and not isinstance(own, str):
            raise TypeError(f"instructions[{index}]: {type(own).__name__} given, expected a str or None")
        _whole(own or "", f"instructions[{index}]")
    texts = [
        " ".join(part for part in (i, item.text) if part) for i, item in zip(instructions, items, strict=True)
    ]
    return [replace(item, text=text) for text, item in zip(texts, items, strict=True)]


class Picture(NamedTuple):
    """A processed picture: patches [grid_h · grid_w, patch dim] float32, grid [3] int64 (time, height, width).

    ``key`` names its file's content and the processor's settings; None for a picture that is no file.
    """

    pixels: Tensor
    grid: Tensor
    key: tuple[Any, ...] | None


class InputProcessor:
    """Inputs → CPU batch (``elva.models.batches``): the prompt up to and including the assistant's header.

    ``tokenizer`` and ``image_processor`` are transformers'; the picture's placeholders number
    grid_h · grid_w / merge_size². Texts that make a prompt longer than ``max_tokens`` are cut, with a warning.
    """

    def __init__(
        self, tokenizer: Any, image_processor: Any, prompt: PromptTemplate, max_tokens: int | None = None
    ) -> None:
        self.max_tokens = max_tokens
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.prompt = prompt
        self.image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.cache = TensorCache(CACHE_BYTES)

    def __call__(
        self,
        inputs: Sequence[Any],
        instructions: str | Sequence[str | None] | None = None,
        vision: Callable[[Sequence[Picture]], Tensor] | None = None,
    ) -> Batch:
        """Left-padded batch of n ≥ 1 inputs; ``parse_input`` says what each may be and what is raised.

        With ``vision`` the batch holds the pictures' features that it returns, in place of their pixels.
        """
        items = join_instructions(parse_inputs(inputs), instructions)
        if not items:
            raise ValueError("inputs: an empty list given, expected at least one input")
        pictures = [None if item.image is None else self.picture(item.image, item.name) for item in items]
        merge_area = int(self.image_processor.merge_size) ** 2
        sizes = [0 if p is None else int(p.grid.prod()) // merge_area for p in pictures]
        rows = self._token_rows([item.text or "" for item in items], sizes)
        batch = self._pad(rows)
        present = [picture for picture in pictures if picture is not None]
        if present:
            batch["image_grid_thw"] = torch.stack([picture.grid for picture in present])
            if vision is None:
                batch["pixel_values"] = torch.cat([picture.pixels for picture in present])
            else:
                batch["image_features"] = vision(present)
        return batch

    @property
    def frame_tokens(self) -> int:
        """How many tokens a prompt has around an input's own."""
        return len(self._token_rows([""], [0])[0])

    def _token_rows(self, texts: list[str], image_tokens: list[int]) -> list[list[int]]:
        def encode(text: str) -> list[int]:
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]

        header, start, end = encode(USER_HEADER), encode(VISION_START), encode(VISION_END)
        tail = encode(self.prompt.suffix + TURN_END)
        # Special tokens spelt out in a user's text are split, so that they cannot fake a picture or a turn.
        bodies = self.tokenizer(
            [f"{text}\n" for text in texts], add_special_tokens=False, split_special_tokens=True
        )["input_ids"]
        heads = [header + (start + [self.image_id] * size + end if size else []) for size in image_tokens]
        rows = [head + body + tail for head, body in zip(heads, bodies, strict=True)]
        longest = max(map(len, rows))
        if self.max_tokens is None or longest <= self.max_tokens:
            return rows
        warnings.warn(
            f"inputs: {sum(len(row) > self.max_tokens for row in rows)} of {len(rows)} are longer than the "
            f"{self.max_tokens} tokens that the model has positions for (the longest has {longest}); their texts are "
            "cut at the end",
            stacklevel=2,
        )
        rooms = [max(self.max_tokens - len(head) - len(tail), 0) for head in heads]
        return [head + body[:room] + tail for head, body, room in zip(heads, bodies, rooms, strict=True)]

    def _pad(self, rows: list[list[int]]) -> Batch:
        width = max(len(row) for row in rows)
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": (ids == self.image_id).long()}

    def picture(self, image: Path | Image.Image, name: str) -> Picture:
        """The processed picture; files are cached. PictureError, with the input's ``name``, for unusable ones."""
        try:
            if isinstance(image, Image.Image):
                check_size(image)
                pixels, grid = self._process(to_rgb(image))
                return Picture(pixels, grid, None)
            status = image.stat()
            key = (str(image), status.st_mtime_ns, status.st_size, settings_digest(self.image_processor))
            found = self.cache.get(key)
            if found is None:
                found = self._process(read_rgb(image))
                self.cache.put(key, found)
            pixels, grid = found
            return Picture(pixels, grid, key)
        except (OSError, ValueError) as error:
            given = "" if isinstance(image, Image.Image) else f"{image} is no readable picture: "
            raise PictureError(f"{name}: {given}{error}") from error

    def _process(self, rgb: Image.Image) -> tuple[Tensor, Tensor]:
        processed = self.image_processor(images=[rgb], return_tensors="pt")
        return processed["pixel_values"].float(), processed["image_grid_thw"][0].long()
