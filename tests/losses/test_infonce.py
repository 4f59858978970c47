"""InfoNCELoss: hard negatives, ids and masks against cross-entropy over hand-built score tables."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from elva.losses import InfoNCELoss


def problem(seed, rows=4, count=6, width=5):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return query, torch.randn(count, width, generator=generator, dtype=torch.float64)


def table(query, keys, temperature=0.05):
    return F.normalize(query, dim=1) @ F.normalize(keys, dim=1).T / temperature


def test_default_is_cross_entropy_over_all_keys():
    query, keys = problem(0)
    expected = F.cross_entropy(table(query, keys), torch.arange(4))
    torch.testing.assert_close(InfoNCELoss()(query, keys), expected)


def test_dot_product_and_both_directions():
    query, keys = problem(1, count=4)
    scores, labels = query @ keys.T / 0.5, torch.tensor([2, 0, 3, 1])
    expected = (F.cross_entropy(scores, labels) + F.cross_entropy(scores.T[labels], torch.arange(4))) / 2
    loss = InfoNCELoss(0.5, similarity="dot", bidirectional=True)
    torch.testing.assert_close(loss(query, keys, labels), expected)


@pytest.mark.parametrize("shape", [(3,), (4, 2)])
def test_hard_negatives_are_candidates_of_every_query(shape):
    query, keys = problem(2)
    negatives = torch.randn(*shape, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    everything = torch.cat([keys, negatives.reshape(-1, 5)])
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[1, 3] = False
    scores = table(query, everything)
    torch.testing.assert_close(
        InfoNCELoss()(query, keys, negatives=negatives), F.cross_entropy(scores, torch.arange(4))
    )
    scores[1, 3] = -torch.inf
    torch.testing.assert_close(
        InfoNCELoss()(query, keys, negatives=negatives, mask=mask), F.cross_entropy(scores, torch.arange(4))
    )


def test_copies_of_the_positive_are_no_negatives():
    query, keys = problem(3)
    scores = table(query, keys)
    for row, column in ((0, 2), (2, 0), (1, 5)):  # keys 0 and 2 are one item, 1 and 5 another
        scores[row, column] = -torch.inf
    loss = InfoNCELoss()(query, keys, key_ids=torch.tensor([7, 8, 7, 9, 10, 8]))
    torch.testing.assert_close(loss, F.cross_entropy(scores, torch.arange(4)))


def test_positives_of_the_same_query_are_no_negatives():
    query, keys = problem(4)
    scores = table(query, keys)
    scores[0, 3] = scores[3, 0] = -torch.inf
    loss = InfoNCELoss()(query, keys, query_ids=torch.tensor([1, 2, 3, 1]))
    torch.testing.assert_close(loss, F.cross_entropy(scores, torch.arange(4)))


def test_both_ids_together():
    query, keys = problem(5)
    scores = table(query, keys)
    # queries 0 and 3 are one query, so both have items 7 and 10; key 5 is a copy of item 10
    for row, column in ((0, 3), (0, 5), (3, 0), (3, 5)):
        scores[row, column] = -torch.inf
    loss = InfoNCELoss()(
        query, keys, query_ids=torch.tensor([1, 2, 3, 1]), key_ids=torch.tensor([7, 8, 9, 10, 11, 10])
    )
    torch.testing.assert_close(loss, F.cross_entropy(scores, torch.arange(4)))


def test_several_positives_of_a_query_count_alike_and_are_no_negatives():
    query, keys = problem(12)
    labels = torch.tensor([[0, 4], [1, -1], [2, 5], [3, -1]])
    scores = table(query, keys)
    losses = []
    for row, own in enumerate(labels.tolist()):
        own = [m for m in own if m >= 0]
        apart = [
            scores[row].index_fill(
                0, torch.tensor([m for m in own if m != label], dtype=torch.int64), -torch.inf
            )
            for label in own
        ]
        losses.append(F.cross_entropy(torch.stack(apart), torch.tensor(own)))
    torch.testing.assert_close(InfoNCELoss()(query, keys, labels), torch.stack(losses).mean())


def test_bidirectional_masks_false_negatives_in_both_directions():
    query, keys = problem(6, count=4)
    scores = table(query, keys)
    scores[0, 3] = scores[3, 0] = -torch.inf
    labels = torch.arange(4)
    expected = (F.cross_entropy(scores, labels) + F.cross_entropy(scores.T, labels)) / 2
    loss = InfoNCELoss(bidirectional=True)(query, keys, query_ids=torch.tensor([1, 2, 3, 1]))
    torch.testing.assert_close(loss, expected)


def test_learnable_temperature_follows_its_gradient():
    query, keys = problem(7)
    loss = InfoNCELoss(temperature=0.2, learnable_temperature=True).double()
    assert loss.temperature.item() == pytest.approx(0.2)
    loss(query, keys).backward()
    step = 1e-6
    up, down = (InfoNCELoss(0.2 * math.exp(d))(query, keys).item() for d in (step, -step))
    assert loss.log_temperature.grad.item() == pytest.approx((up - down) / (2 * step), rel=1e-5)
    assert [name for name, _ in loss.named_parameters()] == ["log_temperature"]
    assert not list(InfoNCELoss().parameters())


def test_gradcheck():
    query, keys = problem(8)
    negatives = torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (query, keys, negatives)]
    ids = torch.tensor([0, 1, 2, 0])
    assert torch.autograd.gradcheck(
        lambda q, k, n: InfoNCELoss(0.5, bidirectional=True)(q, k, negatives=n, query_ids=ids), inputs
    )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), rows=st.integers(1, 5), extra=st.integers(0, 4))
def test_invariances(seed, rows, extra):
    query, keys = problem(seed, rows, rows + extra)
    loss = InfoNCELoss()
    value = loss(query, keys)
    assert value >= -1e-9
    torch.testing.assert_close(loss(3.0 * query, 0.5 * keys), value)  # cosine ignores lengths
    order = torch.randperm(rows + extra, generator=torch.Generator().manual_seed(seed))
    labels = order.argsort()[:rows]
    torch.testing.assert_close(loss(query, keys[order], labels), value)
    assert loss(query, torch.cat([keys, keys[:1]])) >= value - 1e-9  # a further candidate never helps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    query, keys = (t.to(dtype).requires_grad_() for t in problem(9))
    loss = InfoNCELoss()(query, keys)
    loss.backward()
    assert loss.dtype == torch.float32
    assert query.grad.dtype == keys.grad.dtype == dtype
    torch.testing.assert_close(
        loss.double(), InfoNCELoss()(query.double(), keys.double()), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_without_graph_break(backend):
    query, keys = (t.float().requires_grad_() for t in problem(10))
    loss = InfoNCELoss(learnable_temperature=True, bidirectional=True)
    options = {"query_ids": torch.tensor([0, 1, 2, 0]), "key_ids": torch.tensor([0, 1, 2, 3, 0, 1])}
    expected = torch.autograd.grad(loss(query, keys, **options), [query, keys, loss.log_temperature])
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    actual = torch.autograd.grad(compiled(query, keys, **options), [query, keys, loss.log_temperature])
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query_ids": torch.zeros(3, dtype=torch.int64)}, r"query_ids must have shape \[4\], got \[3\]"),
        ({"key_ids": torch.zeros(4, dtype=torch.int64)}, r"key_ids must have shape \[6\], got \[4\]"),
        ({"negatives": torch.zeros(3, 2, 5)}, r"negatives must be \[N, 5\] or \[4, N, 5\], got \[3, 2, 5\]"),
        ({"mask": torch.ones(4, 8, dtype=torch.bool)}, r"mask must have shape \[4, 6\], got \[4, 8\]"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        InfoNCELoss()(*problem(11), **options)


def test_bad_construction_is_named():
    with pytest.raises(ValueError, match="temperature must be above 0 and finite, got -1"):
        InfoNCELoss(-1)
    with pytest.raises(ValueError, match="similarity must be one of"):
        InfoNCELoss(similarity="l2")
    with pytest.raises(ValueError, match="no rows"):
        InfoNCELoss()(torch.zeros(0, 3), torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": torch.tensor([0, 1, 9])}, ValueError, "labels must be indices into keys, 0 to 3"),
        ({"labels": torch.zeros(3)}, TypeError, "labels must be int64"),
        ({"keys": torch.zeros(2, 4), "key_ids": torch.zeros(2)}, ValueError, "needs 3 keys; got 2"),
        ({"mask": torch.ones(3, 4)}, TypeError, "mask must be bool"),
        ({"query": torch.tensor(1.0)}, ValueError, r"query \[B, D\] and keys \[M, D\] expected"),
    ],
)
def test_bad_arguments_are_named_with_ids_too(change, error, message):
    arguments = {"query": torch.randn(3, 4), "keys": torch.randn(4, 4), "key_ids": torch.arange(4), **change}
    query, keys = arguments.pop("query"), arguments.pop("keys")
    with pytest.raises(error, match=message):
        InfoNCELoss()(query, keys, **arguments)


def test_negatives_of_another_kind_are_named():
    query = torch.randn(3, 4)
    with pytest.raises(TypeError, match=r"^negatives must be floating point, got torch.int64"):
        InfoNCELoss()(query, query, negatives=torch.ones(2, 4, dtype=torch.int64))
