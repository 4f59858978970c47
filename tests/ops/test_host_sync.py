"""No operator asks its device how large a result is: on a GPU the host would wait, and no CUDA graph could hold it.

A CPU cannot wait for itself, but what would make a GPU's host wait is a short list of operators, forbidden here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from elva.ops import infonce_check, library
from elva.ops.infonce import _backward, _forward
from elva.ops.linear_logprob import _composite, _head_gradient, _hidden_gradient, _row_gradient

aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense,
    aten._unique2,
    aten.equal,
    aten.is_nonzero,
    aten.masked_select,
    aten.nonzero,
    aten.unique_consecutive,
    aten.unique_dim,
}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class NoHostSync(TorchDispatchMode):
    """RuntimeError at an operator whose result's size, or whose answer, the host has to read."""

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: Any = None
    ) -> Any:
        packet = function.overloadpacket
        by_mask = packet in INDEXING and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in arguments[1]
        )
        if packet in WAITING or by_mask:
            raise RuntimeError(f"{function} makes the host wait for the device")
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize(
    "question",
    [
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: x.sum().item(),
    ],
)
def test_a_waiting_host_is_seen(question: Callable[[Tensor], Any]) -> None:
    with pytest.raises(RuntimeError, match="makes the host wait"), NoHostSync():
        question(torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_infonce(
    monkeypatch: pytest.MonkeyPatch, several: bool, masked: bool, bidirectional: bool, keep: bool
) -> None:
    # values of labels are checked on CPUs alone; elsewhere the device asserts them without being waited for
    monkeypatch.setattr(infonce_check, "_require", lambda condition, message, labels: None)
    if several and bidirectional:
        pytest.skip("one label a query in both directions")
    query, keys = torch.randn(5, 8), torch.randn(9, 8)
    labels = torch.tensor([3, 1, 0, 8, 2])
    if several:
        labels = torch.stack([labels, torch.tensor([-1, 4, -1, 5, 6])], dim=1)
    mask = torch.rand(5, 9) < 0.7 if masked else None
    who = (labels, mask, None, None, None)
    with NoHostSync():
        temperature = torch.full((), 0.05)
        loss, *saved = _forward(query, keys, temperature, *who, "cosine", bidirectional, keep)
        _backward(loss, query, keys, temperature, *who, *saved, "cosine", bidirectional, True, True)


def test_linear_logprob(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_warned", True)
    hidden, weight, targets = torch.randn(6, 8), torch.randn(600, 8), torch.arange(6)
    rows, values = torch.tensor([2, 599]), torch.randn(2, 8)
    with NoHostSync():
        logprob, _, logsumexp, expected = _composite(hidden, weight, targets, 0.7, True, rows, values)
        _hidden_gradient(logprob, hidden, weight, targets, expected, 0.7, rows, values)
        _head_gradient(logprob, hidden, weight, targets, logprob, 0.7)
        _row_gradient(logprob, hidden, targets, logsumexp, 0.7, rows, values)
