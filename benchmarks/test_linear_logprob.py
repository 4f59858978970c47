"""`linear_logprob` behind a frozen head, forward and backward, against all logits in memory and its rivals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.contenders import RACES, eager_logprob
from benchmarks.problems import PROBLEMS, input_dtype
from elva.losses.grpo import completion_logprob

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
LINEAR_LOGPROB, RACE = PROBLEMS["linear_logprob"], RACES["linear_logprob"]
CONTENDERS = {**RACE.contenders, **RACE.compiled}


def step(function: Callable[..., Tensor], hidden: Tensor, weight: Tensor, targets: Tensor) -> list[Tensor]:
    return RACE.step(function, [hidden, weight, targets])


def assert_sampled_rows(found: list[Tensor], hidden: Tensor, weight: Tensor, targets: Tensor) -> None:
    """Log-probability and gradient of 8 tokens, in float64; in half precision what plain PyTorch's error allows."""
    if hidden.dtype != torch.float32:
        accuracy = RACE.sample([hidden, weight, targets]).judge(found)
        assert accuracy.passes, accuracy
        return
    rows = slice(0, None, hidden.shape[0] // 8)
    h = hidden.detach()[rows].double().requires_grad_()
    logprob = eager_logprob(h, weight.double(), targets[rows])
    (grad,) = torch.autograd.grad(logprob.sum(), h)
    torch.testing.assert_close(found[0][rows].double(), logprob.detach(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found[1][rows].double(), grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", LINEAR_LOGPROB.sizes)
@pytest.mark.parametrize("contender", CONTENDERS)
def test_linear_logprob(
    request: pytest.FixtureRequest, timed: Callable[..., Any], contender: str, size: str, device: str
) -> None:
    large = size.startswith("large")
    if large:
        request.getfixturevalue("large")
    dtype = input_dtype(device)
    inputs = LINEAR_LOGPROB.inputs(LINEAR_LOGPROB.sizes[size], device, dtype)
    function = CONTENDERS[contender]
    assert_sampled_rows(step(function, *inputs), *inputs)
    work = LINEAR_LOGPROB.work_in(dtype, LINEAR_LOGPROB.sizes[size], True)
    run = lambda: step(function, *inputs)  # noqa: E731
    timed("linear_logprob", size, contender, device, work, run, rounds=1 if large else 3)


def row_copied(
    hidden: Tensor, weight: Tensor, ids: Tensor, mask: Tensor, row: Tensor, value: Tensor
) -> Tensor:
    """As PEFT's trainable tokens do: a copy of the head with the trained row, and all logits of all places."""
    logits = hidden @ weight.index_copy(0, row, value).T
    return (logits.gather(-1, ids[..., None]).squeeze(-1) - logits.logsumexp(-1)) * mask


def row_apart(
    hidden: Tensor, weight: Tensor, ids: Tensor, mask: Tensor, row: Tensor, value: Tensor
) -> Tensor:
    return completion_logprob(hidden, weight, ids, mask, trainable_rows=row, row_values=value).logprob


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("contender", ["elva", "row copied into the head"])
def test_completions_with_a_trained_row(timed: Callable[..., Any], contender: str, device: str) -> None:
    """The policy's log-probabilities in stage 3: completions of different lengths, `[RET]` trained."""
    completions, width, dim, vocabulary = 64, 16, 512, 32_000
    generator, dtype = torch.Generator().manual_seed(0), input_dtype(device)
    hidden = torch.randn(completions, width, dim, generator=generator).to(device, dtype).requires_grad_()
    weight = (torch.randn(vocabulary, dim, generator=generator) / dim**0.5).to(device, dtype)
    ids = torch.randint(0, vocabulary, (completions, width), generator=generator).to(device)
    lengths = torch.randint(width // 4, width + 1, (completions, 1), generator=generator)
    mask = (torch.arange(width) >= width - lengths).to(device)
    row = torch.tensor([vocabulary - 5], device=device)
    ids[::7] = row
    value = torch.randn(1, dim, generator=generator).to(device, dtype).requires_grad_()

    def step(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        logprob = function(hidden, weight, ids, mask, row, value)
        return logprob.detach(), *torch.autograd.grad(logprob.sum(), (hidden, value))

    function = row_apart if contender == "elva" else row_copied
    for found, expected in zip(step(function), step(row_copied), strict=True):
        # Half precision rounds the logits of the form that holds them, which stands for the definition here.
        allowed = 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
        assert (found - expected).norm() <= allowed * expected.norm()
    tokens = int(mask.sum())
    work = LINEAR_LOGPROB.work_in(dtype, (tokens, dim, vocabulary), True)
    size = "completions, 64 x 4 to 16 x 512 x 32k, a trained row"
    timed("linear_logprob", size, contender, device, work, lambda: step(function), rounds=5)
