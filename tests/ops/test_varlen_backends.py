"""Back-ends that need a GPU, on a stand-in for the package behind them: shapes in, shapes out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from elva.ops import varlen_backends
from elva.ops.varlen_attention import Piece
from elva.ops.varlen_backends import BACKENDS, MATH

PIECES = {
    "causal": Piece((3, 1, 6), (3, 1, 6), True, 0.4),
    "one segment": Piece((5,), (5,), True, 0.4),
    "rectangle": Piece((4, 7), (2, 5), False, 0.4),
}


class Mask(SimpleNamespace):
    @classmethod
    def from_seqlens(cls, queries: tuple[int, ...], keys: tuple[int, ...]) -> Mask:
        return cls(queries=queries, keys=keys, causal=False)

    def make_causal(self) -> Mask:
        return Mask(queries=self.queries, keys=self.keys, causal=True)


class Fmha:
    """xformers.ops.fmha 0.0.35 as far as it is called, ``[1, T, H, D]``; float64 stands in for half precision."""

    attn_bias = SimpleNamespace(BlockDiagonalMask=Mask)

    @staticmethod
    def memory_efficient_attention_forward_requires_grad(
        query: Tensor, key: Tensor, value: Tensor, *, attn_bias: Mask, scale: float
    ) -> tuple[Tensor, Tensor]:
        assert query.shape[2] == key.shape[2] and query.stride(-1) == 1
        piece = Piece(attn_bias.queries, attn_bias.keys, attn_bias.causal, scale)
        out, sums = MATH.forward(query[0], key[0], value[0], piece)
        if query.dtype != torch.float32:
            return out[None], sums.T[None]
        padded = sums.new_full((len(piece.query_lengths), sums.shape[1], 32), torch.inf)
        for row, part in zip(padded, sums.split(piece.query_lengths), strict=True):
            row[:, : len(part)] = part.T
        return out[None], padded

    @staticmethod
    def memory_efficient_attention_backward(
        grad: Tensor,
        out: Tensor,
        sums: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        attn_bias: Mask,
        scale: float,
    ) -> tuple[Tensor, ...]:
        piece = Piece(attn_bias.queries, attn_bias.keys, attn_bias.causal, scale)
        if query.dtype == torch.float32:  # its kernel takes no other
            assert sums.shape == (len(piece.query_lengths), query.shape[2], max(piece.query_lengths))
            parts = zip(sums, piece.query_lengths, strict=True)
            packed = torch.cat([row[:, :length].T for row, length in parts])
        else:
            assert sums.shape == (1, query.shape[2], query.shape[1])
            packed = sums[0].T
        found = MATH.backward(grad[0], query[0], key[0], value[0], out[0], packed, piece)
        return tuple(x[None] for x in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PIECES)
def test_xformers_log_sum_exps_have_two_formats(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(varlen_backends, "_imported", lambda *names: Fmha)
    monkeypatch.setattr(varlen_backends, "_require_gpu", lambda *given: None)
    piece = PIECES[name]
    generator = torch.Generator().manual_seed(0)
    tokens, others = sum(piece.query_lengths), sum(piece.key_lengths)
    sizes = [(tokens, 4), (tokens, 4), (others, 2), (others, 2)]
    grad, query, key, value = (torch.randn(*size, 8, generator=generator).to(dtype) for size in sizes)
    backend = BACKENDS["xformers"](torch.device("cpu"), dtype)
    found = backend.forward(query, key, value, piece)
    expected = MATH.forward(query, key, value, piece)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        backend.backward(grad, query, key, value, *found, piece),
        MATH.backward(grad, query, key, value, *expected, piece),
    )
