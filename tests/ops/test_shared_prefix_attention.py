"""Attention behind a shared prompt: three pieces against one masked softmax."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elva.ops.shared_prefix_attention import (
    PrefixLayout,
    shared_prefix_attention,
    shared_prefix_attention_reference,
    visible,
)
from elva.ops.varlen_attention import Piece
from elva.ops.varlen_backends import CPU, MATH

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def problem(
    layout: PrefixLayout, dtype: torch.dtype = torch.float64, heads: int = 4, groups: int = 2, seed: int = 0
):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(layout.tokens, heads, 8)] + 2 * [(layout.tokens, heads // groups, 8)]
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype) for shape in shapes
    ]


def test_what_each_token_sees() -> None:
    seen = visible(PrefixLayout((2, 1), (1, 2, 1, 1), 2)).int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 1, 0, 0],
        [0, 0, 1, 0, 0, 0, 1, 0],
        [0, 0, 1, 0, 0, 0, 0, 1],
    ]


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(), items=st.integers(1, 3), generations=st.integers(1, 3), groups=st.sampled_from([1, 2, 4])
)
def test_equals_the_reference(data: st.DataObject, items: int, generations: int, groups: int) -> None:
    lengths = st.integers(1, 9)
    prompts = tuple(data.draw(lengths) for _ in range(items))
    completions = tuple(data.draw(lengths) for _ in range(items * generations))
    layout = PrefixLayout(prompts, completions, generations)
    results = []
    for function in (shared_prefix_attention, shared_prefix_attention_reference):
        inputs = [x.requires_grad_() for x in problem(layout, groups=groups)]
        out = function(*inputs, layout)
        upstream = torch.linspace(-1, 2, out.numel(), dtype=out.dtype, device=DEVICE).view_as(out)
        results.append((out.detach(), *torch.autograd.grad(out, inputs, upstream)))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_is_below_twice_that_of_plain_pytorch(dtype: torch.dtype) -> None:
    layout = PrefixLayout((40, 33), (7, 1, 16, 5), 2)
    results = []
    for function, kind in (
        (shared_prefix_attention, dtype),
        (shared_prefix_attention_reference, dtype),
        (shared_prefix_attention_reference, torch.float64),
    ):
        inputs = [x.to(kind).requires_grad_() for x in problem(layout, dtype)]
        out = function(*inputs, layout)
        results.append([x.double() for x in (out, *torch.autograd.grad(out.sum(), inputs))])
    for found, plain, exact in zip(*results, strict=True):
        bound = 2 * (plain - exact).abs().max() + 4 * torch.finfo(dtype).eps * (1 + exact.abs().max())
        assert (found - exact).abs().max() <= bound


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
        lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    ],
    ids=["transposed", "every second column", "heads first"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides_are_of_no_consequence(change, dtype: torch.dtype) -> None:
    layout = PrefixLayout((12, 5), (3, 1, 6, 2), 2)
    results = []
    for way in (change, lambda x: x):
        inputs = [way(x).requires_grad_() for x in problem(layout, dtype)]
        out = shared_prefix_attention(*inputs, layout)
        results.append([out.detach(), *torch.autograd.grad(out.sum(), inputs)])
    torch.testing.assert_close(*results)


def test_gradcheck() -> None:
    layout = PrefixLayout((2, 1), (1, 2), 1)
    inputs = [x.requires_grad_() for x in problem(layout, heads=2)]
    assert torch.autograd.gradcheck(lambda *x: shared_prefix_attention(*x, layout, scale=0.3), inputs)


def test_opcheck() -> None:
    layout = PrefixLayout((3, 2), (1, 2, 2, 1), 2)
    inputs = [x.requires_grad_() for x in problem(layout, torch.float32)]
    options = (list(layout.prompts), list(layout.completions), layout.generations, 0.3, "sdpa")
    torch.library.opcheck(torch.ops.elva.shared_prefix_attention, (*inputs, *options))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [((4, 4), (4, 4)), ((2, 5, 1), (2, 5, 1))])
def test_plain_products_equal_the_kernels_for_cpus(lengths, causal: bool) -> None:
    piece = Piece(*lengths, causal, 0.4)
    generator = torch.Generator().manual_seed(1)
    query, key, value, grad = (
        torch.randn(sum(lengths[0]), heads, 8, generator=generator, dtype=torch.float64)
        for heads in (4, 2, 2, 4)
    )
    found, expected = (backend.forward(query, key, value, piece) for backend in (MATH, CPU))
    torch.testing.assert_close(found, expected)
    back = [b.backward(grad, query, key, value, *expected, piece) for b in (MATH, CPU)]
    torch.testing.assert_close(*back)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": ()}, "prompts must be lengths of at least 1"),
        ({"prompts": (0,)}, r"prompts must be lengths of at least 1, got \[0\]"),
        ({"completions": (1,)}, "completions must be 1 x generations = 2 lengths, got 1"),
        ({"completions": (1, 0)}, "completions must be lengths of at least 1"),
    ],
)
def test_bad_layouts_are_named(change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrefixLayout(**{"prompts": (3,), "completions": (1, 2), "generations": 2, **change})


def test_bad_tensors_are_named() -> None:
    layout = PrefixLayout((3,), (1, 2), 2)
    query, key, value = problem(layout)
    with pytest.raises(ValueError, match=r"key must be \[6, heads, 8\], got \[5, 2, 8\]"):
        shared_prefix_attention(query, key[1:], value, layout)
    with pytest.raises(ValueError, match="heads a multiple of theirs"):
        shared_prefix_attention(query[:, :3], key, value, layout)
    with pytest.raises(ValueError, match="backend must be one of sdpa"):
        shared_prefix_attention(query, key, value, layout, backend="cudnn")


@pytest.mark.parametrize("form", [shared_prefix_attention, shared_prefix_attention_reference])
def test_dtypes_and_devices_that_do_not_fit_are_named(form) -> None:
    layout = PrefixLayout((3,), (1, 2), 2)
    query, key, value = problem(layout, torch.float32)
    with pytest.raises(
        TypeError, match=r"key has dtype torch.float64; expected that of query, torch.float32"
    ):
        form(query, key.double(), value, layout)
    with pytest.raises(
        TypeError, match=r"value has dtype torch.float16; expected that of query, torch.float32"
    ):
        form(query, key, value.half(), layout)
    with pytest.raises(
        TypeError, match=r"query has dtype torch.int64; expected one of torch.float32, torch.fl"
    ):
        form(query.long(), key.long(), value.long(), layout)
    with pytest.raises(ValueError, match="value is on meta; expected the device of query, " + DEVICE):
        form(query, key, value.to("meta"), layout)


@pytest.mark.parametrize(
    ("backend", "package"), [("flash_attention_2", "flash-attn"), ("xformers", "xformers")]
)
def test_an_absent_package_is_named(backend: str, package: str) -> None:
    layout = PrefixLayout((3,), (1,), 1)
    try:
        __import__(package.replace("-", "_"))
    except ImportError:
        with pytest.raises(ImportError, match=f"{package} is not installed"):
            shared_prefix_attention(*problem(layout), layout, backend=backend)
    else:
        pytest.skip(f"{package} is installed")
