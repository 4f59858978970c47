"""A tiny M-BEIR directory and an encoder that reads words and colours: fast, deterministic, really fallible."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "yellow": (240, 220, 40)}
SIZES = {"small": 12, "large": 40}


class WordEncoder:
    """A bag of hashed words; a picture counts as the words for its colour and size. Counts what it encodes."""

    def __init__(
        self, mode: str = "generative", blind_to: frozenset[str] = frozenset(), width: int = 512
    ) -> None:
        self.config = SimpleNamespace(mode=mode)
        self.device = torch.device("cpu")
        self.blind_to, self.width = blind_to, width
        self.encoded: list[object] = []

    def encode(
        self,
        inputs: list[object],
        instruction: str | None = None,
        mode: str | None = None,
        batch_size: int = 32,
        show_progress: bool = False,
        return_summaries: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, list[str]]:
        assert instruction is None
        assert batch_size >= 1
        self.encoded += inputs
        words = [self.words(item) for item in inputs]
        embeddings = torch.zeros(len(inputs), self.width)
        for row, kept in enumerate(words):
            for word in kept:
                digest = hashlib.blake2b(word.encode(), digest_size=4).digest()
                embeddings[row, int.from_bytes(digest, "big") % self.width] += 1
        embeddings = torch.nn.functional.normalize(embeddings, dim=1)
        if not return_summaries:
            return embeddings
        generative = (mode or self.config.mode) == "generative"
        return embeddings, [" ".join(kept) if generative else "" for kept in words]

    def words(self, item: object) -> list[str]:
        from PIL import Image

        text = item if isinstance(item, str) else item["text"]  # type: ignore[index]
        words = [word.strip(".,") for word in (text or "").lower().split()]
        image = None if isinstance(item, str) else item["image"]  # type: ignore[index]
        if image:
            with Image.open(image) as picture:
                colour = picture.convert("RGB").getpixel((0, 0))
                words += [name for name, value in COLOURS.items() if value == colour]
                words += [name for name, size in SIZES.items() if size == picture.width]
        known = {*COLOURS, *SIZES, "shape"}
        return [word for word in words if word in known and word not in self.blind_to]


@pytest.fixture
def word_encoder() -> Callable[..., WordEncoder]:
    return WordEncoder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two task rows (text to image, image to image) and a multi-grain split, over eight pictures."""
    return build(tmp_path / "data")


def build(path: Path) -> Path:
    # Not at the top: pytest stops at a conftest.py that lacks a package.
    from PIL import Image

    from elva.data.mbeir import Candidate, Grain, Query
    from elva.data.writer import MBEIRWriter

    kinds = [(colour, size) for colour in COLOURS for size in SIZES]
    with MBEIRWriter(path) as writer:
        for name, number in (("toys", 20), ("toys_multigrain", 21)):
            writer.add_instruction(
                "text", "image", name, number, ["Find the picture.", "Show what is described."]
            )
        writer.add_instruction("image", "image", "toys", 20, ["Find the same picture."])
        for index, (colour, size) in enumerate(kinds):
            image = f"mbeir_images/{colour}_{size}.png"
            writer.save_image(image, Image.new("RGB", (SIZES[size], SIZES[size]), COLOURS[colour]))
            did = f"20:{index}"
            candidate = Candidate(did, None, image, "image")
            writer.add_candidate("test", "toys", 0, candidate)
            writer.add_candidate("test", "toys", 4, candidate)
            writer.add_query(
                "test", "toys", Query(f"20:{index}", f"a {colour} shape", None, "text", 0, _of(kinds, colour))
            )
            writer.add_query("test", "toys", Query(f"20:{100 + index}", None, image, "image", 4, (did,)))
            writer.add_candidate("test", "toys_multigrain", 0, Candidate(f"21:{index}", None, image, "image"))
            text = f"a {size} {colour} shape"
            start = text.index(colour)
            grains = (
                Grain("size", size, 2, 2 + len(size)),
                Grain("colour", colour, start, start + len(colour)),
            )
            writer.add_query(
                "test",
                "toys_multigrain",
                Query(f"21:{index}", text, None, "text", 0, (f"21:{index}",), grains=grains),
            )
    return path


def _of(kinds: list[tuple[str, str]], colour: str) -> tuple[str, ...]:
    return tuple(f"20:{index}" for index, kind in enumerate(kinds) if kind[0] == colour)
