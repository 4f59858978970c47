"""Strides are of no consequence: every operator gives what it gives for a contiguous copy, forward and backward.

Kernels are called with pointers, and one that assumes rows without gaps would read over them, or out of bounds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from elva import ops
from elva.ops import PrefixLayout, varlen_backends
from elva.ops.varlen_attention import Backend, Piece
from elva.ops.varlen_backends import MATH

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
LAYOUT = PrefixLayout((5, 3), (2, 1, 4, 2), 2)

WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "last dimension first": lambda x: x.movedim(-1, 0).contiguous().movedim(0, -1),
    "first two swapped": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1) if x.ndim > 1 else x,
    "every second column": lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
    "every second row": lambda x: x.repeat_interleave(2, dim=0)[::2],
    "one column, expanded": lambda x: x[..., :1].expand(x.shape),
    "one row, expanded": lambda x: x[:1].expand(x.shape),
    "one number, expanded": lambda x: x[(slice(1),) * x.ndim].expand(x.shape),
    "behind one element": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
}


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE)


def flags(*shape: int) -> Tensor:
    return draw(*shape) > -0.5


def calls() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Every operator with all of its tensors, and what it returns as a tuple."""
    query, positive, negatives = draw(2, 3, 20), draw(2, 3, 20), draw(2, 3, 5, 20)
    ids = torch.tensor([3, 1, 2, 1], device=DEVICE)
    labels = torch.tensor([[0, 4], [2, -1], [1, 3], [5, -1]], device=DEVICE)
    attention = {name: draw(LAYOUT.tokens, heads, 8) for name, heads in _HEADS.items()}
    return {
        "infonce": (
            lambda **x: (ops.infonce(**x),),
            {
                **{"query": draw(4, 20), "keys": draw(6, 20), "labels": labels, "mask": flags(4, 6)},
                **{"query_ids": ids, "key_ids": torch.tensor([5, 6, 7, 6, 8, 9], device=DEVICE)},
            },
        ),
        "infonce, both directions": (
            lambda **x: (ops.infonce(**x, bidirectional=True),),
            {"query": draw(4, 20), "keys": draw(6, 20)},
        ),
        "linear_logprob": (
            ops.linear_logprob,
            {"hidden": draw(7, 20), "weight": draw(30, 20), "targets": torch.arange(7, device=DEVICE)},
        ),
        "linear_logprob, rows": (
            ops.linear_logprob,
            {
                **{"hidden": draw(7, 20), "weight": draw(30, 20), "targets": torch.arange(7, device=DEVICE)},
                **{"trainable_rows": torch.tensor([3, 9], device=DEVICE), "row_values": draw(2, 20)},
            },
        ),
        "rank_reward": (
            lambda **x: ops.rank_reward(**x, scale_rewards="group"),
            {"query": query, "positive": positive, "negatives": negatives, "mask": flags(2, 3, 5)},
        ),
        "rank_reward, shared": (
            lambda **x: ops.rank_reward(**x, scale_rewards="none"),
            {
                "query": query,
                "positive": positive[:, :1],
                "negatives": negatives[:, :1],
                "mask": flags(2, 1, 5),
            },
        ),
        "shared_prefix_attention": (
            lambda **x: (ops.shared_prefix_attention(**x, layout=LAYOUT),),
            attention,
        ),
        "similarity_topk": (
            lambda **x: ops.similarity_topk(**x, k=4, similarity="cosine", screen=False),
            {"query": draw(4, 20), "keys": draw(70, 20), "ceiling": draw(4), "exclude": labels},
        ),
        "similarity_topk, screened": (
            lambda **x: ops.similarity_topk(**x, k=4, screen=True),
            {"query": draw(4, 20), "keys": draw(70, 20)},
        ),
        "tiered_rank": (
            ops.tiered_rank,
            {"similarity": draw(4, 9), "between": draw(9, 4).T.contiguous(), "mask": flags(4, 9)},
        ),
    }


_HEADS = {"query": 4, "key": 2, "value": 2}
_KEPT = ("targets", "labels", "trainable_rows", "query_ids", "key_ids", "exclude")
"""Whole numbers with a meaning: an expanded copy would be another argument, or a wrong one."""


def results(
    function: Callable[..., Any], arguments: dict[str, Any], upstream: Callable[[Tensor], Tensor]
) -> list:
    """Outputs and gradients, the upstream gradients in a way of their own."""
    leaves = {
        name: value.detach().requires_grad_()
        for name, value in arguments.items()
        if value.is_floating_point() and name not in ("ceiling", "between")
    }
    outputs = [x for x in function(**{**arguments, **leaves})]
    graded = [x for x in outputs if x.requires_grad]
    found = [x.detach() for x in outputs]
    if graded:
        weights = [upstream(draw(*x.shape)) if x.ndim else x.detach() for x in graded]
        found += torch.autograd.grad(graded, list(leaves.values()), weights, materialize_grads=True)
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", calls())
def test_an_argument_in_another_layout(name: str, dtype: torch.dtype, way: str) -> None:
    function, arguments = calls()[name]
    arguments = {key: x.to(dtype) if x.is_floating_point() else x for key, x in arguments.items()}
    for key, value in arguments.items():
        if key in _KEPT and "expanded" in way:
            continue
        for upstream in (lambda x: x, WAYS[way]):
            compare(function, arguments, {key: WAYS[way](value)}, upstream)


def compare(function: Any, arguments: dict, strided: dict, upstream: Callable[[Tensor], Tensor]) -> None:
    dense = {key: x.contiguous() for key, x in strided.items()}
    found = results(function, {**arguments, **strided}, upstream)
    expected = results(function, {**arguments, **dense}, lambda x: upstream(x).contiguous())
    # not to the bit: a library may take a product's sums in another order
    torch.testing.assert_close(found, expected, msg=lambda text: f"{', '.join(strided)}: {text}")


@pytest.fixture
def triton_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Triton's launchers in the place of the C++ kernels."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from elva.ops import (
        infonce_triton,
        linear_logprob_triton,
        rank_reward_triton,
        similarity_topk_triton,
        tiered_rank_triton,
    )

    monkeypatch.setattr(similarity_topk_triton, "CHUNK", 64)  # the interpreter is slow
    place = torch.library.Library("elva", "IMPL")
    for name, launcher in {
        "infonce_reduce_": infonce_triton.reduce_,
        "infonce_weigh_": infonce_triton.weigh_,
        "linear_logprob": linear_logprob_triton.forward,
        "rank_reward": rank_reward_triton.forward,
        "rank_reward_backward": rank_reward_triton.backward,
        "similarity_topk_": similarity_topk_triton.update,
        "tiered_rank": tiered_rank_triton.forward,
        "tiered_rank_backward": tiered_rank_triton.backward,
    }.items():
        place.impl(name, launcher, "CPU", allow_override=True)
    yield
    place._destroy()


@pytest.mark.skipif(not INTERPRETED, reason="run by test_in_the_interpreter, with TRITON_INTERPRET=1")
@pytest.mark.filterwarnings("ignore:.*[Oo]verriding a previously registered kernel")
@pytest.mark.parametrize("way", ["last dimension first", "every second column", "one number, expanded"])
@pytest.mark.parametrize(
    "name", sorted(calls().keys() - {"shared_prefix_attention", "similarity_topk, screened"})
)
def test_interpreted_launchers(triton_on_the_cpu: None, name: str, way: str) -> None:
    function, arguments = calls()[name]
    changed = {key: WAYS[way](x) for key, x in arguments.items() if not (key in _KEPT and "expanded" in way)}
    compare(function, arguments, changed, WAYS[way])


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="starts the interpreter")
def test_in_the_interpreter(run_interpreted: Callable[[str], None]) -> None:
    run_interpreted(__file__)


class Strict:
    """Attention of packages for GPUs, as far as it is called: refuses what their kernels would read wrongly."""

    attn_bias = SimpleNamespace(
        BlockDiagonalMask=SimpleNamespace(from_seqlens=lambda *lengths: SimpleNamespace(lengths=lengths))
    )

    def __init__(self, piece: Piece) -> None:
        self.piece = piece

    def dense(self, *tensors: Tensor) -> None:
        assert all(x.stride(-1) == 1 for x in tensors)

    def _flash_attention_forward(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
        self.dense(query, key, value)
        out, sums = MATH.forward(query, key, value, self.piece)
        return out, sums.T

    def _flash_attention_backward(self, grad: Tensor, *arguments: Any, **_: Any) -> Any:
        *tensors, sums = arguments[:5]
        self.dense(grad, *tensors, sums)
        return MATH.backward(grad, *tensors, sums.T, self.piece)

    _flash_attn_varlen_forward = _flash_attention_forward

    def _flash_attn_varlen_backward(self, *arguments: Any, **options: Any) -> None:
        for gradient, found in zip(arguments[6:9], self._flash_attention_backward(*arguments), strict=True):
            gradient.copy_(found)

    def memory_efficient_attention_forward_requires_grad(self, *rows: Tensor, **_: Any) -> Any:
        self.dense(*rows)
        out, sums = MATH.forward(*(x[0] for x in rows), self.piece)
        return out[None], sums.T[None]

    def memory_efficient_attention_backward(
        self, grad: Tensor, out: Tensor, sums: Tensor, *rows: Tensor, **_: Any
    ) -> Any:
        self.dense(grad, out, sums, *rows)
        given = (grad[0], *(x[0] for x in rows), out[0], sums[0].T)
        return tuple(x[None] for x in MATH.backward(*given, self.piece))


def backend(name: str, monkeypatch: pytest.MonkeyPatch, piece: Piece) -> Backend:
    if name in ("cpu", "math"):
        return MATH if name == "math" else varlen_backends.CPU
    package = Strict(piece)
    monkeypatch.setattr(varlen_backends, "aten", package)
    monkeypatch.setattr(varlen_backends, "_imported", lambda *names: package)
    monkeypatch.setattr(varlen_backends, "_require_gpu", lambda *given: None)
    if name == "torch's flash":
        return varlen_backends.TORCH_FLASH
    return varlen_backends.BACKENDS[name](torch.device("cpu"), torch.float64)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["cpu", "math", "torch's flash", "flash_attention_2", "xformers"])
def test_every_back_end_of_attention(monkeypatch: pytest.MonkeyPatch, name: str, way: str) -> None:
    piece = Piece((6,), (6,), False, 0.4)
    kernel, change = backend(name, monkeypatch, piece), WAYS[way]
    grad, query, key, value = (draw(6, heads, 8).cpu().double() for heads in (4, 4, 2, 2))
    for place in range(3):
        given = [change(x) if place == i else x for i, x in enumerate((query, key, value))]
        exact = MATH.forward(*(x.contiguous() for x in given), piece)
        torch.testing.assert_close(kernel.forward(*given, piece), exact)
        for upstream in (grad, change(grad)):
            found = kernel.backward(upstream, *given, *exact, piece)
            dense = (x.contiguous() for x in (upstream, *given, *exact))
            torch.testing.assert_close(found, MATH.backward(*dense, piece))
