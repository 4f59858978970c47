from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from PIL import Image

    from elva.models import MultimodalEncoder

TEXTS = [
    "a red cat sleeps on a blue mat",
    "two small dogs run across the green field",
    "a man in a yellow coat holds an umbrella",
    "three apples and a pear in a wooden bowl",
] * 4


def draw(colour: str, size: tuple[int, int] = (96, 96)) -> Image.Image:
    # Not at the top: pytest stops at a conftest.py that lacks a package.
    from PIL import Image, ImageDraw

    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).ellipse((10, 20, size[0] - 20, size[1] - 10), fill=colour, outline="black")
    return image


@pytest.fixture(scope="session")
def tiny_encoder() -> MultimodalEncoder:
    """Shared by the session: tests must not change it."""
    from elva.models import tiny

    return tiny.create(TEXTS, seed=0)


@pytest.fixture
def own_encoder() -> MultimodalEncoder:
    """A fresh one for tests that train or wrap it."""
    from elva.models import tiny

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


class LowerTriangularMask:
    pass


def memory_efficient_attention(query, key, value, attn_bias=None, p=0.0, scale=None):
    """xformers' contract in plain PyTorch: [B, L, H, D], additive bias [B, H, Lq, Lk] whose rows are
    8-aligned.
    """
    assert query.shape[2] == key.shape[2] == value.shape[2], "heads must have been repeated"
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    causal = isinstance(attn_bias, LowerTriangularMask)
    if isinstance(attn_bias, torch.Tensor):
        assert attn_bias.shape == (*query.shape[:3], key.shape[2]) and attn_bias.stride(-2) % 8 == 0
        assert attn_bias.dtype == query.dtype
    mask = None if causal else attn_bias
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, scale=scale)
    return out.transpose(1, 2)


@pytest.fixture
def fake_xformers(monkeypatch):
    ops = types.ModuleType("xformers.ops")
    ops.memory_efficient_attention = memory_efficient_attention
    ops.LowerTriangularMask = LowerTriangularMask
    monkeypatch.setitem(sys.modules, "xformers", types.ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
