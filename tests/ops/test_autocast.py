"""An operator's precision is its inputs': autocast changes no bit of it, in no back-end, forward or backward.

shared_prefix_attention alone takes its inputs in autocast's dtype, as `F.scaled_dot_product_attention` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from elva import ops
from elva.ops import PrefixLayout, library

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAYOUT = PrefixLayout((5, 3), (2, 1, 4, 2), 2)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE).requires_grad_()


def infonce(form: Callable[..., Tensor]) -> list[Tensor]:
    query, keys = draw(6, 64), draw(9, 64)
    loss = form(query, keys, bidirectional=True)
    return [loss, *torch.autograd.grad(loss.sum(), (query, keys))]


def linear_logprob(form: Callable[..., Any]) -> list[Tensor]:
    hidden, weight, targets = draw(7, 64), draw(300, 64), torch.arange(7, device=DEVICE)
    rows, values = torch.tensor([3], device=DEVICE), draw(1, 64)
    head = form(hidden, weight, targets).logprob
    row = form(hidden, weight.detach(), targets, trainable_rows=rows, row_values=values).logprob
    return [head, row, *torch.autograd.grad((head + row).sum(), (hidden, weight, values))]


def rank_reward(form: Callable[..., Any]) -> list[Tensor]:
    inputs = (draw(2, 3, 64), draw(2, 1, 64), draw(2, 3, 5, 64))
    found = form(*inputs)
    return [found.similarities, found.weights, *torch.autograd.grad(found.total.sum(), inputs)]


def similarity_topk(form: Callable[..., Any]) -> list[Tensor]:
    return list(form(draw(4, 64).detach(), draw(200, 64).detach(), 5, similarity="cosine", screen=False))


def tiered_rank(form: Callable[..., Any]) -> list[Tensor]:
    similarity = draw(4, 9)
    found = form(similarity, draw(9, 4).T.detach())
    return [found.logsumexp, found.rank, *torch.autograd.grad(found.logsumexp.sum(), similarity)]


def attention(form: Callable[..., Tensor]) -> list[Tensor]:
    query, key, value = (draw(LAYOUT.tokens, heads, 8) for heads in (4, 2, 2))
    out = form(query, key, value, LAYOUT)
    return [out, *torch.autograd.grad(out.square().sum(), (query, key, value))]


CALLS: dict[str, Callable[..., list[Tensor]]] = {
    "infonce": infonce,
    "linear_logprob": linear_logprob,
    "rank_reward": rank_reward,
    "similarity_topk": similarity_topk,
    "tiered_rank": tiered_rank,
}


def forward_under_autocast(form: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any, **options: Any) -> Any:
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            return form(*arguments, **options)

    return run


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    for value, plain in zip(found, expected, strict=True):
        assert value.dtype == plain.dtype
        assert torch.equal(value, plain)


@pytest.mark.parametrize("name", CALLS)
def test_operators_forward_and_backward(name: str) -> None:
    operator = getattr(ops, name)
    expected = CALLS[name](operator)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        found = CALLS[name](operator)
    assert_equal(found, expected)


@pytest.mark.parametrize("name", [*CALLS, "shared_prefix_attention"])
def test_references(name: str) -> None:
    # their backward is autograd's, which PyTorch asks to run outside of autocast
    reference = getattr(ops, f"{name}_reference")
    call = CALLS.get(name, attention)
    assert_equal(call(forward_under_autocast(reference)), call(reference))


@pytest.fixture
def product() -> Iterator[Any]:
    """An operator in PyTorch alone that multiplies: what a back-end without kernels of ours does."""
    library.define("autocast_probe(Tensor a, Tensor b) -> Tensor")
    library.implement("autocast_probe", lambda a, b: a @ b)
    yield torch.ops.elva.autocast_probe.default


def test_a_back_end_in_pytorch(product: Any) -> None:
    a, b = draw(8, 64).detach(), draw(64, 8).detach()
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert (a @ b).dtype == torch.bfloat16
        found = product(a, b)
    assert torch.equal(found, a @ b)


@pytest.mark.parametrize("key", library.AUTOCAST.values())
def test_every_operator_is_guarded_on_every_device(key: str) -> None:
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("elva::")]
    assert len(names) >= 16
    for name in names:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, key), name


@pytest.mark.parametrize("mixed", [False, True])
def test_attention_takes_autocasts_dtype(mixed: bool) -> None:
    # behind autocast rotated queries and keys are float32, values bfloat16
    query, key, value = (draw(LAYOUT.tokens, heads, 8) for heads in (4, 2, 2))
    value = value.detach().bfloat16().requires_grad_() if mixed else value
    halves = [x.detach().bfloat16().requires_grad_() for x in (query, key, value)]
    expected = ops.shared_prefix_attention(*halves, LAYOUT)
    grads = torch.autograd.grad(expected.float().square().sum(), halves)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        out = ops.shared_prefix_attention(query, key, value, LAYOUT)
        found = torch.autograd.grad(out.float().square().sum(), (query, key, value))
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected)
    for grad, half, tensor in zip(found, grads, (query, key, value), strict=True):
        assert grad.dtype == tensor.dtype
        assert torch.equal(grad, half.to(grad.dtype))


def test_attention_refuses_two_dtypes_without_autocast() -> None:
    query, key, value = (draw(LAYOUT.tokens, heads, 8).detach() for heads in (4, 2, 2))
    with pytest.raises(TypeError, match=r"value has dtype torch\.bfloat16; expected that of query"):
        ops.shared_prefix_attention(query, key, value.bfloat16(), LAYOUT)


def test_a_compiled_function_under_autocast_is_one_graph_and_the_same() -> None:
    query, keys = draw(6, 64), draw(9, 64)

    def loss(q: Tensor, k: Tensor) -> Tensor:
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            return ops.infonce(q, k).sum()

    expected = loss(query, keys)
    grads = torch.autograd.grad(expected, (query, keys))
    found = torch.compile(loss, fullgraph=True, backend="aot_eager")(query, keys)
    assert torch.equal(found, expected)
    assert_equal(list(torch.autograd.grad(found, (query, keys))), list(grads))
