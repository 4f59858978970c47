"""`infonce`, forward and backward, against eager autograd and against GradCache-style losses' one big matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.contenders import RACES
from benchmarks.problems import PROBLEMS, TEMPERATURE, input_dtype

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
INFONCE, RACE = PROBLEMS["infonce"], RACES["infonce"]

CONTENDERS = {**RACE.contenders, **RACE.compiled}
# Inf-CL's products are in TF32, which rounds losses of these sizes by up to 1e-3.
LOSS_ERRORS = {"Inf-CL": 2e-3}


def assert_sampled_rows(found: list[Tensor], query: Tensor, keys: Tensor, loss_error: float) -> None:
    """Loss and query gradient of 16 rows, in float64; in half precision what plain PyTorch's error allows."""
    if query.dtype != torch.float32:
        accuracy = RACE.sample([query, keys]).judge(found)
        assert accuracy.passes, accuracy
        return
    rows = torch.arange(0, query.shape[0], query.shape[0] // 16, device=query.device)
    q = query.detach()[rows].double().requires_grad_()
    scores = F.normalize(q, dim=-1) @ F.normalize(keys.detach().double(), dim=-1).T / TEMPERATURE
    loss = F.cross_entropy(scores, rows, reduction="none")
    (grad,) = torch.autograd.grad(loss.sum() / query.shape[0], q)
    torch.testing.assert_close(found[0][rows].double(), loss.detach(), rtol=loss_error, atol=loss_error)
    torch.testing.assert_close(found[1][rows].double(), grad, rtol=1e-3, atol=1e-3 * float(grad.abs().max()))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", INFONCE.sizes)
@pytest.mark.parametrize("contender", CONTENDERS)
def test_infonce(
    request: pytest.FixtureRequest, timed: Callable[..., Any], contender: str, size: str, device: str
) -> None:
    large = size.startswith("large")
    if large:
        request.getfixturevalue("large")
        if contender not in ("elva", "Inf-CL"):
            pytest.skip("holds several B x M matrices of 4 GiB each")
    dtype = input_dtype(device)
    inputs = INFONCE.inputs(INFONCE.sizes[size], device, dtype)
    run = lambda: RACE.step(CONTENDERS[contender], inputs)  # noqa: E731
    assert_sampled_rows(run(), *inputs, LOSS_ERRORS.get(contender, 1e-5))
    work = INFONCE.work_in(dtype, INFONCE.sizes[size], True)
    timed("infonce", size, contender, device, work, run, rounds=1 if large else 5)
