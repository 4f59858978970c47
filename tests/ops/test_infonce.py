"""The InfoNCE operator against a loop written from the formula, and its own backward against finite differences."""

from __future__ import annotations

import itertools
import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elva.ops.infonce import infonce, infonce_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPTIONS = list(itertools.product(["cosine", "dot"], [False, True], [False, True]))


def loop(query, keys, labels, temperature, similarity, bidirectional, mask):
    """The definition, one score at a time, in Python floats."""

    def score(b, m):
        q, k = query[b].tolist(), keys[m].tolist()
        dot = sum(x * y for x, y in zip(q, k, strict=True))
        if similarity == "cosine":
            norm = math.sqrt(sum(x * x for x in q)) * math.sqrt(sum(x * x for x in k))
            dot = dot / norm if norm else 0.0
        return dot / temperature

    def counts(b, m):
        return mask is None or m == labels[b] or bool(mask[b, m])

    rows = range(len(query))
    losses = []
    for b in rows:
        positive = score(b, labels[b])
        loss = math.log(sum(math.exp(score(b, m)) for m in range(len(keys)) if counts(b, m))) - positive
        if bidirectional:
            others = sum(math.exp(score(other, labels[b])) for other in rows if counts(other, labels[b]))
            loss = 0.5 * (loss + math.log(others) - positive)
        losses.append(loss)
    return torch.tensor(losses, dtype=torch.float64, device=query.device)


def problem(seed, rows=4, count=7, width=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    keys = torch.randn(count, width, generator=generator, dtype=torch.float64)
    labels = torch.randperm(count, generator=generator)[:rows]
    mask = torch.rand(rows, count, generator=generator) > 0.4
    return query.to(DEVICE, dtype), keys.to(DEVICE, dtype), labels.to(DEVICE), mask.to(DEVICE)


@pytest.mark.parametrize(("similarity", "bidirectional", "masked"), OPTIONS)
def test_equals_the_formula(similarity, bidirectional, masked):
    query, keys, labels, mask = problem(0)
    options = {"similarity": similarity, "bidirectional": bidirectional, "mask": mask if masked else None}
    expected = loop(query, keys, labels.tolist(), 0.3, **options)
    torch.testing.assert_close(infonce(query, keys, labels, temperature=0.3, **options), expected)
    torch.testing.assert_close(infonce_reference(query, keys, labels, temperature=0.3, **options), expected)


@pytest.mark.parametrize(("similarity", "bidirectional", "masked"), OPTIONS)
def test_gradcheck(similarity, bidirectional, masked):
    query, keys, labels, mask = problem(1)
    temperature = torch.tensor(0.4, dtype=torch.float64, device=DEVICE)
    options = {"similarity": similarity, "bidirectional": bidirectional, "mask": mask if masked else None}
    inputs = [t.requires_grad_() for t in (query, keys, temperature)]
    for function in (infonce, infonce_reference):
        assert torch.autograd.gradcheck(
            lambda q, k, t, f=function: f(q, k, labels, temperature=t, **options), inputs
        )


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(("similarity", "bidirectional", "masked"), OPTIONS)
def test_opcheck(similarity, bidirectional, masked, keep):
    query, keys, labels, mask = problem(2, dtype=torch.float32)
    temperature = torch.tensor(0.4, requires_grad=True, device=DEVICE)
    inputs = (
        query.requires_grad_(),
        keys.requires_grad_(),
        temperature,
        labels,
        mask if masked else None,
        None,
        None,
        None,
    )
    torch.library.opcheck(torch.ops.elva.infonce, (*inputs, similarity, bidirectional, keep))


@pytest.mark.parametrize("keep", [False, True])
def test_opcheck_with_several_positives_and_ids(keep):
    query, keys, labels, mask, query_ids, key_ids, _ = several_positives(5)
    temperature = torch.tensor(0.4, dtype=torch.float64, device=DEVICE, requires_grad=True)
    inputs = (query.requires_grad_(), keys.requires_grad_(), temperature)
    who = (labels, mask, query_ids, key_ids, torch.tensor([[10, -1]], device=DEVICE))
    torch.library.opcheck(torch.ops.elva.infonce, (*inputs, *who, "cosine", False, keep))


@pytest.mark.parametrize("budget", [0, 1 << 30])
@pytest.mark.parametrize(("similarity", "bidirectional", "masked"), OPTIONS)
def test_many_parts_kept_or_computed_again(monkeypatch, similarity, bidirectional, masked, budget):
    module, blocks = (sys.modules[f"elva.ops.{name}"] for name in ("infonce", "infonce_blocks"))
    monkeypatch.setattr(blocks, "PART_ELEMENTS", 1)
    monkeypatch.setattr(blocks, "LEAST_ROWS", 16)
    monkeypatch.setattr(module, "SCORE_BUDGET", budget)
    query, keys, labels, mask = problem(3, rows=70, count=90)
    temperature = torch.tensor(0.4, dtype=torch.float64, device=DEVICE)
    options = {"similarity": similarity, "bidirectional": bidirectional, "mask": mask if masked else None}
    inputs = [t.requires_grad_() for t in (query, keys, temperature)]
    assert module.keeps_scores(*inputs) == (budget > 0)
    upstream = torch.linspace(-1, 2, 70, dtype=torch.float64, device=DEVICE)
    found, expected = (
        f(*inputs[:2], labels, temperature=temperature, **options) for f in (infonce, infonce_reference)
    )
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad(loss, inputs, upstream) for loss in (found, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_keeps_scores_only_for_a_gradient_and_within_the_budget():
    module = sys.modules["elva.ops.infonce"]
    query, temperature = torch.zeros(4, 2), torch.tensor(0.1)
    assert not module.keeps_scores(query, query, temperature)
    assert module.keeps_scores(query, query, temperature.requires_grad_())
    large = torch.zeros(1, 1).expand(1 << 15, 2).requires_grad_()
    assert not module.keeps_scores(large, large, temperature)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 6),
    extra=st.integers(0, 5),
    width=st.integers(1, 9),
    seed=st.integers(0, 2**16),
    similarity=st.sampled_from(["cosine", "dot"]),
    bidirectional=st.booleans(),
    masked=st.booleans(),
    zero_row=st.booleans(),
)
def test_agrees_with_the_reference(rows, extra, width, seed, similarity, bidirectional, masked, zero_row):
    query, keys, labels, mask = problem(seed, rows, rows + extra, width)
    if zero_row:
        query[0] = keys[-1] = 0
    options = {"temperature": 0.2, "similarity": similarity, "bidirectional": bidirectional}
    options["mask"] = mask if masked else None
    weights = torch.linspace(-1, 2, rows, dtype=torch.float64, device=DEVICE)
    results = []
    for function in (infonce, infonce_reference):
        inputs = [t.clone().requires_grad_() for t in (query, keys)]
        loss = function(*inputs, labels, **options)
        assert (loss > -1e-9).all()
        results.append((loss.detach(), *torch.autograd.grad(loss, inputs, weights)))
    torch.testing.assert_close(results[0], results[1])


def several_positives(seed, rows=5, count=11, width=4):
    """One to three positives a query, ids of which some are shared, and the pairs that must not be negatives."""
    query, keys, _, mask = problem(seed, rows, count, width)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.stack([torch.randperm(count, generator=generator)[:3] for _ in range(rows)])
    labels[:, 1:][torch.rand(rows, 2, generator=generator) < 0.4] = -1
    query_ids = torch.randint(10, 13, (rows,), generator=generator)
    key_ids = torch.randint(-5, 1, (count,), generator=generator)
    known = {(int(query_ids[b]), int(key_ids[m])) for b in range(rows) for m in labels[b].tolist() if m >= 0}
    left_out = torch.tensor([[(int(q), int(k)) in known for k in key_ids] for q in query_ids])
    ids = (tensor.to(DEVICE) for tensor in (labels, mask, query_ids, key_ids, left_out))
    return query, keys, *ids


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), masked=st.booleans(), similarity=st.sampled_from(["cosine", "dot"]))
def test_several_positives_and_ids_equal_the_formula(seed, masked, similarity):
    query, keys, labels, mask, query_ids, key_ids, left_out = several_positives(seed)
    allowed = ~left_out & mask if masked else ~left_out
    expected = []
    for b, own in enumerate(labels.tolist()):
        own = [m for m in own if m >= 0]
        allowed[b, own] = False
        losses = []
        for m in own:  # the other positives are no negatives, the one itself always counts
            row = allowed[b : b + 1].clone()
            row[0, m] = True
            losses.append(loop(query[b : b + 1], keys, [m], 0.3, similarity, False, row))
        expected.append(torch.stack(losses).mean())
    options = {"temperature": 0.3, "similarity": similarity, "mask": mask if masked else None}
    options |= {"query_ids": query_ids, "key_ids": key_ids}
    inputs = [t.requires_grad_() for t in (query, keys)]
    results = [function(*inputs, labels, **options) for function in (infonce, infonce_reference)]
    for loss in results:
        torch.testing.assert_close(loss.detach(), torch.stack(expected))
    upstream = torch.linspace(-1, 2, len(query), dtype=torch.float64, device=DEVICE)
    found, wanted = (torch.autograd.grad(loss, inputs, upstream) for loss in results)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("budget", [0, 1 << 30])
def test_gradcheck_with_several_positives_and_ids(monkeypatch, budget):
    monkeypatch.setattr(sys.modules["elva.ops.infonce"], "SCORE_BUDGET", budget)
    query, keys, labels, mask, query_ids, key_ids, _ = several_positives(4)
    temperature = torch.tensor(0.4, dtype=torch.float64, device=DEVICE)
    inputs = [t.requires_grad_() for t in (query, keys, temperature)]
    options = {"mask": mask, "query_ids": query_ids, "key_ids": key_ids}
    assert torch.autograd.gradcheck(lambda q, k, t: infonce(q, k, labels, temperature=t, **options), inputs)


def test_one_kind_of_id_is_enough():
    query, keys, _, _ = problem(12)
    labels = torch.tensor([0, 1, 2, 3], device=DEVICE)
    by_key = torch.ones(4, 7, dtype=torch.bool, device=DEVICE)
    by_key[0, 4] = by_key[4 - 1, 5] = False
    key_ids = torch.tensor([9, 1, 2, 3, 9, 3], device=DEVICE)  # the last key has none
    torch.testing.assert_close(
        infonce(query, keys, labels, key_ids=key_ids), infonce(query, keys, labels, mask=by_key)
    )
    by_query = torch.ones(4, 7, dtype=torch.bool, device=DEVICE)
    by_query[1, 2] = by_query[2, 1] = False
    query_ids = torch.tensor([5, 6, 6, 7], device=DEVICE)
    torch.testing.assert_close(
        infonce(query, keys, labels, query_ids=query_ids), infonce(query, keys, labels, mask=by_query)
    )


def test_pairs_known_from_elsewhere_replace_those_of_the_labels():
    query, keys, _, _ = problem(13)
    labels, query_ids, key_ids = (torch.arange(count, device=DEVICE) for count in (4, 4, 7))
    pairs = torch.tensor([[0, 5], [99, 3], [2, 77]], device=DEVICE)
    mask = torch.ones(4, 7, dtype=torch.bool, device=DEVICE)
    mask[0, 5] = False
    found = infonce(query, keys, labels, query_ids=query_ids, key_ids=key_ids, positive_pairs=pairs)
    torch.testing.assert_close(found, infonce(query, keys, labels, mask=mask))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_error_is_below_twice_that_of_plain_pytorch(dtype, bidirectional):
    query, keys, labels, _ = problem(3, rows=33, count=70, width=19, dtype=dtype)

    def plain(q, k):
        scores = torch.nn.functional.normalize(q, dim=1) @ torch.nn.functional.normalize(k, dim=1).T / 0.05
        forward = torch.nn.functional.cross_entropy(scores, labels, reduction="none")
        if not bidirectional:
            return forward
        backward = torch.nn.functional.cross_entropy(
            scores[:, labels].T, torch.arange(len(labels), device=DEVICE), reduction="none"
        )
        return (forward + backward) / 2

    def run(function, q, k):
        inputs = [q.clone().requires_grad_(), k.clone().requires_grad_()]
        loss = function(*inputs)
        return [loss.double(), *(g.double() for g in torch.autograd.grad(loss.sum(), inputs))]

    ours = run(lambda q, k: infonce(q, k, labels, bidirectional=bidirectional), query, keys)
    theirs = run(plain, query, keys)
    exact = run(
        lambda q, k: infonce_reference(q, k, labels, bidirectional=bidirectional),
        query.double(),
        keys.double(),
    )
    for mine, plain_result, truth in zip(ours, theirs, exact, strict=True):
        assert (mine - truth).abs().max() <= 2 * (plain_result - truth).abs().max() + 1e-6


def test_half_precision_results_are_float32_and_gradients_keep_the_dtype():
    query, keys, labels, _ = problem(4, dtype=torch.bfloat16)
    query.requires_grad_()
    loss = infonce(query, keys.requires_grad_(), labels)
    loss.sum().backward()
    assert (loss.dtype, query.grad.dtype, keys.grad.dtype) == (torch.float32, torch.bfloat16, torch.bfloat16)


def test_autocast_does_not_lower_the_precision():
    query, keys, labels, _ = problem(5, dtype=torch.float32)
    query.requires_grad_()
    expected = infonce(query, keys, labels)
    (expected_grad,) = torch.autograd.grad(expected.sum(), query)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        loss = infonce(query, keys, labels)
        (grad,) = torch.autograd.grad(loss.sum(), query)
        reference = infonce_reference(query, keys, labels)
    assert torch.equal(loss, expected)
    assert torch.equal(grad, expected_grad)
    torch.testing.assert_close(reference, expected)


def test_non_contiguous_inputs():
    query, keys, labels, mask = problem(6)
    expected = infonce(query, keys, labels, mask=mask)
    strided = infonce(query.T.contiguous().T, keys.repeat(1, 2)[:, :5], labels, mask=mask.T.contiguous().T)
    torch.testing.assert_close(strided, expected)


def test_gradient_of_the_keys_alone():
    query, keys, labels, _ = problem(7)
    keys.requires_grad_()
    infonce(query, keys, labels).sum().backward()
    assert query.grad is None
    expected = keys.detach().clone().requires_grad_()
    infonce_reference(query, expected, labels).sum().backward()
    torch.testing.assert_close(keys.grad, expected.grad)


def test_nan_in_a_key_that_nobody_uses_is_harmless():
    query, keys, labels, mask = problem(8)
    unused = next(m for m in range(len(keys)) if m not in labels.tolist())
    mask[:, unused] = False
    expected = [t.clone().requires_grad_() for t in (query, keys)]
    infonce(*expected, labels, mask=mask).sum().backward()
    keys[unused] = torch.nan
    inputs = [query.requires_grad_(), keys.requires_grad_()]
    for function in (infonce, infonce_reference):
        loss = function(*inputs, labels, mask=mask).sum()
        for grad, wanted in zip(torch.autograd.grad(loss, inputs), expected, strict=True):
            torch.testing.assert_close(grad, wanted.grad)


def test_zero_vector_has_cosine_and_gradient_zero():
    query = torch.zeros(1, 3, requires_grad=True, device=DEVICE)
    loss = infonce(query, torch.eye(3, device=DEVICE))
    loss.backward()
    torch.testing.assert_close(loss, torch.full((1,), math.log(3), device=DEVICE))
    assert torch.equal(query.grad, torch.zeros(1, 3, device=DEVICE))


def test_one_candidate_costs_nothing():
    query, keys, _, _ = problem(11, rows=1, count=1)
    assert infonce(query, keys).item() == 0


def test_compiles_without_graph_break():
    query, keys, labels, mask = problem(9)
    inputs = [
        t.requires_grad_() for t in (query, keys, torch.tensor(0.3, dtype=torch.float64, device=DEVICE))
    ]

    def step(q, k, t):
        return infonce(q, k, labels, temperature=t, mask=mask, bidirectional=True).sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(step(*inputs), inputs)
    torch.testing.assert_close(torch.autograd.grad(compiled(*inputs), inputs), expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"keys": torch.randn(7, 4)},
            ValueError,
            r"query \[B, D\] and keys \[M, D\] expected, got \[4, 5\] and \[7, 4\]",
        ),
        ({"keys": torch.ones(7, 5, dtype=torch.int64)}, TypeError, "keys must be floating point"),
        ({"labels": torch.tensor([0, 1, 2, 7])}, ValueError, r"0 to 6, got \[0, 1, 2, 7\]"),
        ({"labels": torch.tensor([0, 1, 2, -1])}, ValueError, "labels must be indices into keys"),
        (
            {"labels": torch.tensor([0, 1, 2])},
            ValueError,
            r"labels must have shape \[4\] or \[4, P\], got \[3\]",
        ),
        ({"labels": torch.zeros(4)}, TypeError, "labels must be int64"),
        ({"labels": torch.zeros(4, dtype=torch.int64), "bidirectional": True}, ValueError, "one to one"),
        ({"labels": None, "keys": torch.randn(3, 5)}, ValueError, "needs 4 keys; got 3"),
        ({"mask": torch.ones(4, 7)}, TypeError, "mask must be bool"),
        (
            {"mask": torch.ones(7, 4, dtype=torch.bool)},
            ValueError,
            r"mask must have shape \[4, 7\], got \[7, 4\]",
        ),
        ({"labels": torch.tensor([[0, -1]] * 3 + [[-1, -1]])}, ValueError, "must name a key for every query"),
        ({"labels": torch.tensor([[0, 7]] * 4)}, ValueError, "0 to 6, or -1 for none"),
        (
            {"labels": torch.tensor([[0, 1]] * 4), "bidirectional": True},
            ValueError,
            r"labels must be one a query, \[4\], with bidirectional=True, got \[4, 2\]",
        ),
        ({"query_ids": torch.zeros(4)}, TypeError, "query_ids must be integers, got torch.float32"),
        ({"query_ids": torch.arange(5)}, ValueError, r"query_ids must have shape \[4\], got \[5\]"),
        ({"key_ids": torch.arange(8)}, ValueError, r"key_ids must have shape \[7\] \(or fewer\), got \[8\]"),
        (
            {"positive_pairs": torch.zeros(1, 2).long()},
            ValueError,
            "positive_pairs needs query_ids and key_ids",
        ),
        ({"similarity": "euclid"}, ValueError, "similarity must be one of"),
        ({"temperature": 0.0}, ValueError, "temperature must be above 0 and finite, got 0.0"),
        ({"temperature": torch.ones(2)}, ValueError, "temperature must be a scalar tensor"),
    ],
)
def test_bad_input_is_named(change, error, message):
    # values are checked, and named, on CPUs alone
    query, keys, labels, _ = (tensor.cpu() for tensor in problem(10, dtype=torch.float32))
    arguments = {"query": query, "keys": keys, "labels": labels, **change}
    for function in (infonce, infonce_reference):
        with pytest.raises(error, match=message):
            function(**arguments)
