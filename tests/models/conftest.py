from __future__ import annotations

import pytest
import torch
from PIL import Image, ImageDraw

from elva.models import MultimodalEncoder, tiny

TEXTS = [
    "a red cat sleeps on a blue mat",
    "two small dogs run across the green field",
    "a man in a yellow coat holds an umbrella",
    "three apples and a pear in a wooden bowl",
] * 4


def draw(colour: str, size: tuple[int, int] = (96, 96)) -> Image.Image:
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).ellipse((10, 20, size[0] - 20, size[1] - 10), fill=colour, outline="black")
    return image


@pytest.fixture(scope="session")
def tiny_encoder() -> MultimodalEncoder:
    """Shared by the session: tests must not change it."""
    return tiny.create(TEXTS, seed=0)


@pytest.fixture
def own_encoder() -> MultimodalEncoder:
    """A fresh one for tests that train or wrap it."""
    return tiny.create(TEXTS, seed=0)


@pytest.fixture(scope="session")
def mixed_inputs() -> list:
    """Text, picture, both, and a longer text with a picture of another size."""
    return [
        "a red cat",
        draw("red"),
        {"text": "the same in blue", "image": draw("blue")},
        {"text": "two small dogs run across the green field and a pear", "image": draw("green", (160, 64))},
        {"text": "three apples"},
    ]


@pytest.fixture(scope="session")
def completions(tiny_encoder: MultimodalEncoder) -> list[list[int]]:
    """Summaries of different lengths, one empty, one that already ends in [RET]."""
    texts = ["a cat", "", "blue coat and umbrella", "two dogs", "apples"]
    ids = [tiny_encoder.tokenizer(text)["input_ids"] if text else [] for text in texts]
    ids[3] = [*ids[3], tiny_encoder.ret_id]
    return ids


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
