"""ELVALoss: the smooth form against its formula, the reward form against the reward, and what its gradient does."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from elva.losses import ELVALoss, InfoNCELoss, TieredRankingLoss, elva_reward


def problem(seed, rows=3, count=6, width=5):
    generator = torch.Generator().manual_seed(seed)
    query, positive = torch.randn(2, rows, width, generator=generator, dtype=torch.float64)
    negatives = torch.randn(rows, count, width, generator=generator, dtype=torch.float64)
    return query, positive, negatives, torch.rand(rows, count, generator=generator) > 0.3


def parts(query, positive, negatives, mask, temperature=0.05, delta=0.1, margin_temperature=0.05):
    """InfoNCE and margin term of every row, from torch's own cross-entropy and cosine."""
    infonce, margin = [], []
    for q, p, ns, use in zip(query, positive, negatives, mask, strict=True):
        s_pos, s_neg = torch.cosine_similarity(q, p, dim=0), torch.cosine_similarity(q, ns[use], dim=-1)
        scores = torch.cat([s_pos[None], s_neg])[None] / temperature
        infonce.append(F.cross_entropy(scores, torch.tensor([0])))
        gap = s_pos - s_neg.max() if len(s_neg) else torch.tensor(math.inf)
        margin.append(F.softplus((delta - gap) / margin_temperature))
    return torch.stack(infonce).mean(), torch.stack(margin).double().mean()


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    rows=st.integers(1, 4),
    count=st.integers(0, 8),
    tier_weight=st.sampled_from([0.0, 0.3]),
    infonce_weight=st.sampled_from([0.0, 1.0]),
)
def test_smooth_form_equals_its_formula(seed, rows, count, tier_weight, infonce_weight):
    inputs = problem(seed, rows, count)
    infonce, margin = parts(*inputs)
    ranking = infonce + tier_weight * TieredRankingLoss(0.05)(*inputs)
    loss = ELVALoss(tier_weight=tier_weight, infonce_weight=infonce_weight)(*inputs)
    torch.testing.assert_close(loss, 0.6 * ranking + 0.4 * margin + infonce_weight * infonce)


@pytest.mark.parametrize("normalize_gamma", [True, False])
def test_reward_form_is_minus_the_reward(normalize_gamma):
    query, positive, negatives, mask = problem(1)
    reward = elva_reward(
        query, positive, negatives, mask, gamma=0.02, delta=0.2, normalize_gamma=normalize_gamma
    )
    options = {"form": "reward", "gamma": 0.02, "delta": 0.2, "normalize_gamma": normalize_gamma}
    torch.testing.assert_close(ELVALoss(**options)(query, positive, negatives, mask), -reward.mean())
    infonce, _ = parts(query, positive, negatives, mask)
    added = ELVALoss(**options, infonce_weight=0.5)(query, positive, negatives, mask)
    torch.testing.assert_close(added, 0.5 * infonce - reward.mean())


def test_smooth_form_without_extras_over_shared_keys_is_infonce():
    query, keys, *_ = problem(2, rows=5)
    own = torch.eye(5, dtype=torch.bool)
    loss = ELVALoss(alpha=0, epsilon=1, tier_weight=0)
    torch.testing.assert_close(loss(query, keys, keys, ~own), InfoNCELoss()(query, keys))


@pytest.mark.parametrize("form", ["smooth", "reward"])
def test_shared_negatives_and_further_leading_dimensions(form):
    query, positive, negatives, mask = problem(3, rows=4)
    loss = ELVALoss(form=form)
    folded = [t.unflatten(0, (2, 2)) for t in (query, positive, negatives, mask)]
    torch.testing.assert_close(loss(*folded), loss(query, positive, negatives, mask))
    shared = negatives[0]
    torch.testing.assert_close(
        loss(query, positive, shared, mask), loss(query, positive, shared.expand(4, 6, 5), mask)
    )
    torch.testing.assert_close(
        loss(query[0], positive[0], shared), loss(query[:1], positive[:1], shared[None])
    )


@pytest.mark.parametrize("form", ["smooth", "reward"])
def test_gradcheck(form):
    query, positive, negatives, mask = problem(4)
    loss = ELVALoss(form=form, temperature=0.3, margin_temperature=0.3, delta=-0.5, infonce_weight=0.5)
    inputs = [t.requires_grad_() for t in (query, positive, negatives)]
    assert torch.autograd.gradcheck(lambda q, p, n: loss(q, p, n, mask), inputs)


@pytest.mark.parametrize("threshold", [None, 0.4])
@pytest.mark.parametrize("form", ["smooth", "reward"])
def test_nan_in_padding_changes_nothing(form, threshold):
    query, positive, negatives, mask = problem(5)
    mask[0] = False
    loss = ELVALoss(form=form, infonce_weight=0.5, false_negative_threshold=threshold)
    results = []
    for padding in (0.0, torch.nan, torch.inf):
        filled = torch.where(mask[..., None], negatives, padding).requires_grad_()
        leaves = [query.clone().requires_grad_(), positive.clone().requires_grad_(), filled]
        value = loss(*leaves, mask)
        results.append((value.detach(), *torch.autograd.grad(value, leaves)))
        assert not results[-1][3][~mask].any()
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=0)


def test_a_row_without_negatives_costs_nothing():
    query, positive, negatives, mask = problem(6)
    loss = ELVALoss()
    assert loss(query, positive, negatives, torch.zeros_like(mask)) == 0
    assert loss(query, positive, negatives[:, :0]) == 0
    mask[0] = False
    rest = loss(query[1:], positive[1:], negatives[1:], mask[1:])
    torch.testing.assert_close(loss(query, positive, negatives, mask), rest * 2 / 3)


@pytest.mark.parametrize("form", ["smooth", "reward"])
def test_suspected_false_negatives_are_left_out(form):
    query, positive, negatives, mask = problem(7)
    near = torch.cosine_similarity(positive[:, None], negatives, dim=-1) > 0.2
    assert (near & mask).any()
    loss = ELVALoss(form=form, false_negative_threshold=0.2)(query, positive, negatives, mask)
    torch.testing.assert_close(loss, ELVALoss(form=form)(query, positive, negatives, mask & ~near))


def test_the_first_of_tied_hardest_negatives_takes_the_gradient():
    query, positive = torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.8])
    negatives = torch.tensor([[0.0, 1.0], [0.8, 0.6], [0.8, 0.6]], requires_grad=True)
    ELVALoss(epsilon=0.0)(query, positive, negatives).backward()
    assert negatives.grad[1].any()
    assert not negatives.grad[0].any()
    assert not negatives.grad[2].any()


def test_smooth_gradient_is_strong_where_the_positive_loses_and_the_rewards_is_not():
    """The reason for the smooth form: the pull on a losing positive must not fade with its rank."""
    query = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    negatives = torch.tensor([1.0, 0.1, 0.1]) + 0.05 * torch.randn(30, 3, generator=generator)

    def pull(form, cosine):
        positive = torch.tensor(
            [cosine, math.sqrt(1 - cosine**2), 0.0], dtype=torch.float64, requires_grad=True
        )
        (grad,) = torch.autograd.grad(ELVALoss(form=form)(query, positive, negatives.double()), positive)
        assert grad[0] < 0  # a larger cosine is better
        return grad.norm().item() / math.sqrt(1 - cosine**2)

    lost = 0.3
    assert pull("smooth", lost) > 10 * pull("reward", lost)
    assert pull("reward", lost) == pytest.approx(0.6 / (1 + math.log(31)), rel=1e-6)
    assert pull("smooth", lost) == pytest.approx(0.6 / 0.05 + 0.4 / 0.05, rel=1e-2)


@pytest.mark.parametrize("form", ["smooth", "reward"])
def test_half_precision(form):
    query, positive, negatives, mask = problem(8)
    half = [t.bfloat16().requires_grad_() for t in (query, positive, negatives)]
    loss = ELVALoss(form=form)(*half, mask)
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(t.grad.dtype == torch.bfloat16 and t.grad.isfinite().all() for t in half)
    exact = ELVALoss(form=form)(*(t.detach().double() for t in half), mask)
    torch.testing.assert_close(loss.double(), exact, atol=1e-4, rtol=1e-4)


def test_autocast_does_not_lower_the_precision():
    query, positive, negatives, mask = problem(9)
    inputs = [t.float() for t in (query, positive, negatives)]
    expected = ELVALoss()(*inputs, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ELVALoss()(*inputs, mask), expected)


@pytest.mark.parametrize(
    ("form", "backend"),
    [
        ("smooth", "aot_eager"),
        ("reward", "aot_eager"),
        pytest.param("smooth", "inductor", marks=pytest.mark.slow),  # half a minute in the C++ compiler
    ],
)
def test_compiles_without_graph_break(form, backend):
    query, positive, negatives, mask = problem(10)
    inputs = [t.float().requires_grad_() for t in (query, positive, negatives)]
    loss = ELVALoss(form=form, infonce_weight=0.1)
    expected = torch.autograd.grad(loss(*inputs, mask), inputs)
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    torch.testing.assert_close(torch.autograd.grad(compiled(*inputs, mask), inputs), expected)


def test_two_settings_compile_one_after_the_other():
    query, positive, negatives, mask = problem(10)
    inputs = [t.float() for t in (query, positive, negatives)]
    for alpha in (0.3, 0.4, 0.5):
        loss = ELVALoss(form="reward", alpha=alpha)
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*inputs, mask), loss(*inputs, mask))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "hinge"}, "form must be one of"),
        ({"temperature": 0.0}, "temperature must be above 0 and finite, got 0.0"),
        ({"margin_temperature": -1.0}, "margin_temperature must be above 0"),
        ({"num_tiers": 1}, "num_tiers must be at least 2"),
    ],
)
def test_bad_construction_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        ELVALoss(**options)


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="no rows"):
        ELVALoss()(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, 2, 3))
