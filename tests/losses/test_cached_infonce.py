"""CachedInfoNCELoss equals InfoNCELoss on the same embeddings, in value and in every gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from elva.losses import CachedInfoNCELoss, InfoNCELoss


class Encoder(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Dropout(dropout), nn.Linear(9, 4))

    def forward(self, inputs):
        if isinstance(inputs, dict):
            inputs = inputs["x"] * inputs["scale"][:, None]
        elif isinstance(inputs, list):
            inputs = torch.stack(inputs)
        return self.layers(inputs)


def problem(rows=7, count=11):
    torch.manual_seed(0)
    return (
        Encoder().double(),
        torch.randn(rows, 6).double(),
        torch.randn(count, 6).double(),
        torch.randn(5, 6).double(),
    )


def gradients(module: nn.Module) -> list[torch.Tensor]:
    return [p.grad for p in module.parameters()]


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("with_negatives", [False, True])
def test_equals_the_uncached_loss(size, with_negatives):
    encoder, query, keys, negatives = problem()
    other = copy.deepcopy(encoder)
    options = {"temperature": 0.3, "bidirectional": True, "learnable_temperature": True}
    cached, plain = CachedInfoNCELoss(mini_batch_size=size, **options), InfoNCELoss(**options)
    labels = torch.randperm(11)[:7]
    found = cached(encoder, query, keys, labels, negatives=negatives if with_negatives else None)
    expected = plain(
        other(query), other(keys), labels, negatives=other(negatives) if with_negatives else None
    )
    torch.testing.assert_close(found, expected)
    (2 * found).backward()
    (2 * expected).backward()
    for one, another in zip(
        gradients(encoder) + gradients(cached), gradients(other) + gradients(plain), strict=True
    ):
        torch.testing.assert_close(one, another)


@pytest.mark.parametrize("form", ["dict", "list"])
def test_inputs_that_are_not_one_tensor(form):
    encoder, query, keys, _ = problem()
    scale = torch.ones(7).double()
    inputs = {"x": query, "scale": scale} if form == "dict" else list(query)
    loss = CachedInfoNCELoss(mini_batch_size=3)
    torch.testing.assert_close(loss(encoder, inputs, keys), loss(encoder, query, keys))


def test_dropout_drops_the_same_the_second_time():
    torch.manual_seed(1)
    encoder = Encoder(dropout=0.5).double()
    seen: list[torch.Tensor] = []
    encoder.layers[2].register_forward_hook(lambda module, inputs, output: seen.append(output.detach() == 0))
    query, keys = torch.randn(4, 6).double(), torch.randn(6, 6).double()
    loss = CachedInfoNCELoss(mini_batch_size=2)(encoder, query, keys)
    before = torch.get_rng_state()
    loss.backward()
    assert len(seen) == 10
    assert all(torch.equal(one, other) for one, other in zip(seen[:5], seen[5:], strict=True))
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(before, torch.get_rng_state())


def test_no_graph_where_none_is_wanted():
    encoder, query, keys, _ = problem()
    with torch.no_grad():
        loss = CachedInfoNCELoss(mini_batch_size=2)(encoder, query, keys)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, InfoNCELoss()(encoder(query), encoder(keys)).detach())


def test_bad_arguments_are_named():
    encoder, query, keys, _ = problem()
    with pytest.raises(ValueError, match="mini_batch_size must be at least 1, got 0"):
        CachedInfoNCELoss(mini_batch_size=0)
    loss = CachedInfoNCELoss()
    with pytest.raises(TypeError, match="inputs must be a tensor, a dict of tensors or a list, got int"):
        loss(encoder, 3, keys)
    with pytest.raises(ValueError, match=r"the entries of the dict have lengths \[5, 7\]"):
        loss(encoder, {"x": query, "scale": torch.ones(5)}, keys)
    with pytest.raises(ValueError, match="query and keys must hold at least one input each"):
        loss(encoder, query[:0], keys)


@pytest.mark.parametrize("backward_inside", [False, True])
def test_pieces_are_encoded_again_under_the_same_autocast(backward_inside):
    encoder, query, keys, _ = problem()
    encoder.float()
    query, keys = query.float(), keys.float()
    other = copy.deepcopy(encoder)
    seen = []

    def encode(inputs):
        embeddings = encoder(inputs)
        seen.append((embeddings.dtype, embeddings.requires_grad))
        return embeddings

    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = InfoNCELoss()(other(query), other(keys))
        found = CachedInfoNCELoss(mini_batch_size=4)(encode, query, keys)
        if backward_inside:
            found.backward()
    expected.backward()
    if not backward_inside:
        found.backward()
    torch.testing.assert_close(found, expected)
    assert seen == [(torch.bfloat16, False)] * 5 + [(torch.bfloat16, True)] * 5
    for one, another in zip(gradients(encoder), gradients(other), strict=True):
        # the same up to bfloat16's rounding of each piece's share
        assert (one - another).norm() < 1e-2 * another.norm()


def test_pieces_are_encoded_again_without_autocast_where_it_was_off():
    encoder, query, keys, _ = problem()
    encoder.float()
    query, keys = query.float(), keys.float()
    other = copy.deepcopy(encoder)
    InfoNCELoss()(other(query), other(keys)).backward()
    found = CachedInfoNCELoss(mini_batch_size=4)(encoder, query, keys)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found.backward()
    for one, another in zip(gradients(encoder), gradients(other), strict=True):
        torch.testing.assert_close(one, another)


def test_float16_gradients_that_a_scaler_has_not_scaled_yet_survive():
    query, keys = torch.randn(16, 8), torch.randn(16, 8)
    weight = torch.full((8,), 3e4, requires_grad=True)

    def encode(x: torch.Tensor) -> torch.Tensor:
        return (x * weight / 4).half()

    exact = weight.detach().double().requires_grad_()
    InfoNCELoss(temperature=20.0)(*(x.double() * exact / 4 for x in (query, keys))).backward()
    # the embeddings' gradients are below float16's smallest number
    assert exact.grad.abs().max() < 1e-6
    scale = 2.0**16
    (scale * CachedInfoNCELoss(mini_batch_size=4, temperature=20.0)(encode, query, keys)).backward()
    error = (weight.grad / scale - exact.grad).norm() / exact.grad.norm()
    assert error < 1e-2


class Mixed(nn.Module):
    """Half-precision weights among float32 ones, dropout, weights used twice, and a dict in place of a tensor."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.into, self.middle, self.out = nn.Linear(16, 32), nn.Linear(32, 32).to(dtype), nn.Linear(32, 16)
        self.norm, self.dropout = nn.LayerNorm(32), nn.Dropout(0.1)

    def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.middle(torch.tanh(self.into(inputs)))
        hidden = self.dropout(self.norm(hidden.float()))
        skip = 2 * inputs.to(self.middle.weight.dtype)
        # Long vectors, as language models have: the longer they are, the smaller a cosine's gradient.
        return {"embedding": 20 * (self.out(hidden) + self.out(hidden.relu()) + skip), "hidden": hidden}


def of_a_small_loss(loss: float) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Queries and keys whose InfoNCE under `Mixed` is near ``loss``, and the temperature that makes it so."""
    query = torch.randn(16, 16, generator=torch.Generator().manual_seed(3))
    keys = query + 0.05 * torch.randn(16, 16, generator=torch.Generator().manual_seed(4))
    return query, keys, {0.005: 0.065, 0.002: 0.052}[loss]


@pytest.mark.parametrize("inside", [False, True], ids=["backward outside", "backward inside"])
@pytest.mark.parametrize("loss", [0.005, 0.002])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_equals_the_uncached_gradient_under_autocast_with_a_scaler(dtype, loss, inside):
    query, keys, temperature = of_a_small_loss(loss)
    torch.manual_seed(0)
    first = Mixed(dtype)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    found = []
    for cached in (True, False):
        module = copy.deepcopy(first)

        def encode(x: torch.Tensor, module: nn.Module = module) -> torch.Tensor:
            return module(x)["embedding"]

        torch.manual_seed(1)  # of the dropout
        # Without the cache of casts, which sums the pieces' gradients in half precision.
        with torch.autocast("cpu", dtype=dtype, cache_enabled=False):
            if cached:
                value = CachedInfoNCELoss(4, temperature=temperature)(encode, query, keys)
            else:
                pieces = [torch.cat([encode(piece) for piece in x.split(4)]) for x in (query, keys)]
                value = InfoNCELoss(temperature=temperature)(*pieces)
            if inside:
                scaler.scale(value).backward()
        if not inside:
            scaler.scale(value).backward()
        assert loss / 2 < value.item() < 2 * loss
        scale = scaler.get_scale() if scaler.is_enabled() else 1.0
        found.append([p.grad.double() / scale for p in module.parameters()])
    for one, other in zip(*found, strict=True):
        assert other.norm() > 0
        assert (one - other).norm() < (0.003 if dtype == torch.float16 else 0.02) * other.norm()


def test_an_encoder_that_returns_something_else_is_named():
    inputs = torch.randn(5, 4)
    loss = CachedInfoNCELoss(mini_batch_size=3)
    with pytest.raises(
        TypeError, match=r"encoder must return a tensor \[n, D\], got dict; wrap it in a function"
    ):
        loss(lambda x: {"embedding": x}, inputs, inputs)
    with pytest.raises(ValueError, match=r"encoder must return \[3, D\] for 3 inputs, got \[1, 4\]"):
        loss(lambda x: x[:1], inputs, inputs)
    with pytest.raises(ValueError, match=r"encoder must return \[3, D\] for 3 inputs, got \[3, 1, 4\]"):
        loss(lambda x: x[:, None], inputs, inputs)
