"""`GRPOLoss.from_hidden` behind a frozen head, forward and backward, against all logits and Liger's chunked loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.problems import PROBLEMS, input_dtype
from benchmarks.rivals import liger_grpo
from elva.losses import GRPOLoss

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
# completions, tokens of each, H, V
SIZES = {
    "16 x 16 x 1,024 x 32k": (16, 16, 1024, 32_000),
    "large, 64 x 16 x 1,024 x 152k": (64, 16, 1024, 151_936),
}
BETA = 0.2


def eager(h: Tensor, w: Tensor, ids: Tensor, advantages: Tensor, mask: Tensor, ref: Tensor) -> Tensor:
    logps = (h @ w.T).log_softmax(-1).gather(2, ids[..., None]).squeeze(2)
    return GRPOLoss(beta=BETA)(logps, advantages, mask, ref_logps=ref)


def fused(h: Tensor, w: Tensor, ids: Tensor, advantages: Tensor, mask: Tensor, ref: Tensor) -> Tensor:
    return GRPOLoss(beta=BETA).from_hidden(h, w, ids, advantages, mask, ref_logps=ref)


CONTENDERS: dict[str, Callable[..., Tensor]] = {
    "elva": fused,
    "eager": eager,
    "Liger, chunked": lambda *problem: liger_grpo(*problem, beta=BETA),
}


def draw(size: tuple[int, ...], device: str) -> list[Tensor]:
    """Hidden states [R, T, H], head [V, H], ids, advantages [R], mask and reference [R, T]; a tenth is padding."""
    completions, length, dim, vocabulary = size
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(completions, length, dim, generator=generator)
    weight = torch.randn(vocabulary, dim, generator=generator) / dim**0.5
    ids = torch.randint(0, vocabulary, (completions, length), generator=generator)
    advantages = torch.randn(completions, generator=generator)
    mask = torch.rand(completions, length, generator=generator) < 0.9
    with torch.no_grad():
        near = hidden + 0.1 * torch.randn(hidden.shape, generator=generator)
        reference = torch.cat([row @ weight.T for row in near]).log_softmax(-1)
    reference = reference.gather(1, ids.flatten()[:, None]).view_as(ids)
    dtype = input_dtype(device)
    tensors = [hidden.to(dtype), weight.to(dtype), ids, advantages, mask, reference]
    tensors = [tensor.to(device) for tensor in tensors]
    tensors[0].requires_grad_()
    return tensors


def step(function: Callable[..., Tensor], problem: list[Tensor]) -> tuple[Tensor, Tensor]:
    loss = function(*problem)
    return loss.detach(), torch.autograd.grad(loss, problem[0])[0]


def exact(problem: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Loss and gradient in float64, one completion at a time."""
    hidden, weight, ids, advantages, mask, reference = (t.detach() for t in problem)
    weight, total, grads = weight.double(), 0.0, []
    for row in range(len(hidden)):
        here = slice(row, row + 1)
        h = hidden[here].double().requires_grad_()
        loss = eager(h, weight, ids[here], advantages[here], mask[here], reference[here].double()) / len(
            hidden
        )
        grads.append(torch.autograd.grad(loss, h)[0])
        total = total + loss.detach()
    return total, torch.cat(grads)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("contender", CONTENDERS)
def test_grpo(
    request: pytest.FixtureRequest, timed: Callable[..., Any], contender: str, size: str, device: str
) -> None:
    large = size.startswith("large")
    if large:
        request.getfixturevalue("large")
    problem = draw(SIZES[size], device)
    loss, grad = step(CONTENDERS[contender], problem)
    true_loss, true_grad = exact(problem)
    # Log-probabilities in half precision are wrong by a unit of their own size, about 10, and so is their ratio.
    dtype = problem[0].dtype
    unit = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps
    largest = float(true_grad.abs().max())
    torch.testing.assert_close(loss.double(), true_loss, rtol=max(1e-4, 10 * unit), atol=max(1e-5, 10 * unit))
    torch.testing.assert_close(
        grad.double(), true_grad, rtol=max(1e-3, 10 * unit), atol=max(1e-3, 10 * unit) * largest
    )
    completions, length, dim, vocabulary = SIZES[size]
    work = PROBLEMS["linear_logprob"].work_in(dtype, (completions * length, dim, vocabulary), True)
    run = lambda: step(CONTENDERS[contender], problem)  # noqa: E731
    timed("grpo", size, contender, device, work, run, rounds=1 if large else 3)
