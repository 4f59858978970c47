"""`CachedInfoNCELoss` over a small transformer against sentence-transformers' GradCache and the uncached step."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import Work
from benchmarks.problems import TEMPERATURE, input_dtype
from benchmarks.rivals import sentence_transformers_cached
from elva.losses import CachedInfoNCELoss

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
# pairs, tokens of a text, texts encoded at once
SIZES = {
    "256 pairs of 32 tokens, pieces of 32": (256, 32, 32),
    "large, 2,048 pairs, pieces of 64": (2048, 32, 64),
}
VOCABULARY, WIDTH = 1000, 128
Inputs = dict[str, Tensor]


class Encoder(nn.Module):
    """Token ids [n, L] to embeddings [n, D], in the convention of sentence-transformers' modules."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, inputs: Inputs) -> Inputs:
        return {**inputs, "sentence_embedding": self.layers(self.tokens(inputs["input_ids"])).mean(1)}


def uncached(model: nn.Module, query: Inputs, keys: Inputs, pieces: int) -> Tensor:
    q, k = (F.normalize(model(inputs)["sentence_embedding"], dim=1) for inputs in (query, keys))
    return F.cross_entropy(q @ k.T / TEMPERATURE, torch.arange(len(q), device=q.device))


def elva(model: nn.Module, query: Inputs, keys: Inputs, pieces: int) -> Tensor:
    loss = CachedInfoNCELoss(pieces, temperature=TEMPERATURE)
    return loss(lambda inputs: model(inputs)["sentence_embedding"], query, keys)


def sentence_transformers(model: nn.Module, query: Inputs, keys: Inputs, pieces: int) -> Tensor:
    return sentence_transformers_cached(model, pieces, TEMPERATURE)([query, keys], None)


CONTENDERS: dict[str, Callable[..., Tensor]] = {
    "elva": elva,
    "sentence-transformers": sentence_transformers,
    "eager, uncached": uncached,
}


def step(
    function: Callable[..., Tensor], model: nn.Module, query: Inputs, keys: Inputs, pieces: int
) -> tuple[Tensor, list[Tensor]]:
    """Loss, and its gradient in every parameter."""
    model.zero_grad()
    loss = function(model, query, keys, pieces)
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters() if p.grad is not None]


def assert_equal(
    found: tuple[Tensor, list[Tensor]], exact: tuple[Tensor, list[Tensor]], unit: float = 0.0
) -> None:
    """``unit``: relative rounding of the model's dtype, through whose layers a gradient gathers a few dozen of it."""
    loss_error = max(1e-5, 8 * unit)
    torch.testing.assert_close(found[0].double(), exact[0], rtol=loss_error, atol=loss_error)
    for grad, true in zip(found[1], exact[1], strict=True):
        assert float((grad.double() - true).norm()) <= max(1e-3, 32 * unit) * float(true.norm())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("contender", CONTENDERS)
def test_cached_infonce(
    request: pytest.FixtureRequest, timed: Callable[..., Any], contender: str, size: str, device: str
) -> None:
    large = size.startswith("large")
    if large:
        request.getfixturevalue("large")
    pairs, length, pieces = SIZES[size]
    torch.manual_seed(0)
    dtype = input_dtype(device)
    model = nn.Sequential(Encoder()).to(device, dtype)
    ids = torch.randint(0, VOCABULARY, (2, pairs, length)).to(device)
    problem = (model, {"input_ids": ids[0]}, {"input_ids": ids[1]}, pieces)
    function = CONTENDERS[contender]
    exact = step(uncached, deepcopy(model).double(), *problem[1:])
    unit = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps
    assert_equal(step(function, *problem), exact, unit)
    weights = sum(p.numel() for p in model[0].layers.parameters())
    # Forward and backward without the cache's second forward: 6 operations a weight and token.
    work = Work(
        bytes=2 * dtype.itemsize * weights,
        flops=6 * weights * 2 * pairs * length,
        dtype=str(dtype).removeprefix("torch."),
    )
    run = lambda: step(function, *problem)  # noqa: E731
    timed("cached_infonce", size, contender, device, work, run, rounds=1 if large else 5)
