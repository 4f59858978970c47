"""GRPOLoss against TRL's formula written token by token, and against an expectation that can be enumerated."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elva.losses import GRPOLoss, group_advantage


def problem(seed, rows=4, length=5, spread=0.4):
    generator = torch.Generator().manual_seed(seed)
    logps = -torch.rand(rows, length, generator=generator, dtype=torch.float64) * 3
    old, ref = (
        logps + spread * torch.randn(rows, length, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    mask = torch.rand(rows, length, generator=generator) > 0.3
    return logps, torch.randn(rows, generator=generator, dtype=torch.float64), mask, old, ref


def loop(logps, advantages, mask, old, ref, beta, low, high):
    sequences = []
    for r in range(len(logps)):
        tokens = []
        for t in range(logps.shape[1]):
            if mask[r, t]:
                lp, a = logps[r, t].item(), advantages[r].item()
                ratio = math.exp(lp - old[r, t].item())
                clipped = min(max(ratio, 1 - low), 1 + high)
                drift = ref[r, t].item() - lp
                tokens.append(-min(ratio * a, clipped * a) + beta * (math.exp(drift) - drift - 1))
        sequences.append(sum(tokens) / len(tokens) if tokens else 0.0)
    return sum(sequences) / len(sequences)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    rows=st.integers(1, 5),
    length=st.integers(0, 6),
    beta=st.sampled_from([0.0, 0.2]),
    epsilon_high=st.sampled_from([None, 0.5]),
)
def test_equals_the_formula(seed, rows, length, beta, epsilon_high):
    logps, advantages, mask, old, ref = problem(seed, rows, length)
    loss = GRPOLoss(beta, 0.2, epsilon_high)(logps, advantages, mask, old, ref)
    expected = loop(logps, advantages, mask, old, ref, beta, 0.2, epsilon_high or 0.2)
    assert loss.item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
def test_rewards_become_advantages(scale_rewards):
    logps, rewards, mask, old, ref = problem(1, rows=6)
    rewards = rewards.view(2, 3)
    loss = GRPOLoss(scale_rewards=scale_rewards)
    advantages = group_advantage(rewards, scale_rewards=scale_rewards).flatten()
    expected = loss(logps, advantages, mask, old, ref)
    torch.testing.assert_close(loss(logps, rewards, mask, old, ref), expected)


def test_a_constant_length_weights_every_token_alike():
    logps, advantages, mask, old, ref = problem(8)
    token_sums = mask.sum(1) * torch.tensor(
        [
            loop(*(t[r : r + 1] for t in (logps, advantages, mask, old, ref)), 0.2, 0.2, 0.2)
            for r in range(len(logps))
        ]
    )
    loss = GRPOLoss(max_completion_length=7)(logps, advantages, mask, old, ref)
    assert loss.item() == pytest.approx((token_sums / 7).mean().item(), abs=1e-6)


def test_gradcheck():
    logps, advantages, mask, old, ref = problem(2)
    loss = GRPOLoss()
    assert torch.autograd.gradcheck(lambda lp: loss(lp, advantages, mask, old, ref), [logps.requires_grad_()])


def test_first_update_is_the_policy_gradient():
    logps, advantages, mask, _, _ = problem(3)
    logps.requires_grad_()
    (grad,) = torch.autograd.grad(GRPOLoss(beta=0.0)(logps, advantages, mask), logps)
    lengths = mask.sum(1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(grad, torch.where(mask, -advantages[:, None] / lengths / len(logps), 0))


def test_expected_gradient_is_that_of_the_expected_reward():
    """One token, three symbols: averaging over all samples, weighted by the policy, gives exactly -d E[R]."""
    logits = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64, requires_grad=True)
    reward = torch.tensor([1.0, 0.2, -0.5], dtype=torch.float64)
    policy = logits.log_softmax(0)
    (expected,) = torch.autograd.grad((policy.exp() * reward).sum(), logits, retain_graph=True)
    total = torch.zeros_like(logits)
    for symbol in range(3):
        loss = GRPOLoss(beta=0.0)(policy[symbol].view(1, 1), reward[symbol].view(1), torch.ones(1, 1))
        (grad,) = torch.autograd.grad(loss, logits, retain_graph=True)
        total += policy[symbol].exp().detach() * grad
    torch.testing.assert_close(total, -expected)


def test_nothing_moves_where_policy_and_reference_agree_and_rewards_are_equal():
    logps, _, mask, _, _ = problem(4)
    logps.requires_grad_()
    loss = GRPOLoss()
    value = loss(logps, torch.full((2, 2), 0.7), mask, ref_logps=logps.detach())
    (grad,) = torch.autograd.grad(value, logps)
    assert value == 0
    assert not grad.any()
    assert loss.metrics["kl"] == 0
    assert loss.metrics["ratio_mean"] == 1


def test_padding_may_hold_anything():
    logps, advantages, mask, old, ref = problem(5)
    mask[2] = False
    results = []
    for padding in (0.0, -torch.inf, torch.nan):
        filled = [torch.where(mask, t, padding) for t in (logps, old, ref)]
        leaf = filled[0].requires_grad_()
        loss = GRPOLoss()
        value = loss(leaf, advantages, mask, *filled[1:])
        results.append((value.detach(), torch.autograd.grad(value, leaf)[0], *loss.metrics.values()))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    torch.testing.assert_close(results[2], results[0], rtol=0, atol=0)


def test_metrics_count_only_tokens_whose_gradient_was_cut():
    old = torch.zeros(2, 2)
    ratio = torch.tensor([[1.5, 1.0], [1.5, 0.5]])
    loss = GRPOLoss(beta=0.0)
    loss(ratio.log().requires_grad_(), torch.tensor([1.0, -1.0]), torch.ones(2, 2, dtype=torch.bool), old)
    # cut: 1.5 with A > 0 and 0.5 with A < 0; 1.5 with A < 0 still pulls the policy back
    assert loss.metrics["clip_ratio"].item() == pytest.approx(0.5)
    assert loss.metrics["ratio_mean"].item() == pytest.approx(4.5 / 4)
    assert set(loss.metrics) == {"kl", "clip_ratio", "ratio_mean"}
    assert not any(value.requires_grad for value in loss.metrics.values())


def test_half_precision_gives_float32():
    logps, advantages, mask, old, ref = (t if t.dtype == torch.bool else t.bfloat16() for t in problem(6))
    assert GRPOLoss()(logps, advantages, mask, old, ref).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ref_logps": None}, "ref_logps is needed for the KL penalty"),
        ({"rewards_or_advantages": torch.zeros(3)}, r"B \* G = 4 or advantages \[4\], got \[3\]"),
        ({"rewards_or_advantages": torch.tensor([[0.0, 1.0, torch.inf, 0.0]])}, "rewards must be finite"),
        ({"mask": torch.ones(4, 4)}, r"mask must have the shape of logps \[4, 5\], got \[4, 4\]"),
        ({"logps": torch.zeros(4)}, r"logps must have shape \[R, T\]"),
    ],
)
def test_bad_input_is_named(change, message):
    names = ("logps", "rewards_or_advantages", "mask", "old_logps", "ref_logps")
    with pytest.raises(ValueError, match=message):
        GRPOLoss()(**{**dict(zip(names, problem(7), strict=True)), **change})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -0.1}, "beta must be at least 0"),
        ({"epsilon": 1.0}, "epsilon must be between 0 and 1"),
        ({"epsilon_high": 0.0}, "epsilon_high must be above 0"),
        ({"scale_rewards": "std"}, "scale_rewards must be one of"),
        ({"max_completion_length": 0}, "max_completion_length must be at least 1, got 0"),
    ],
)
def test_bad_construction_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        GRPOLoss(**options)


def hidden_problem(dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(4, 5, 6, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(11, 6, generator=generator, dtype=torch.float64).to(dtype)
    ids = torch.randint(0, 11, (4, 5), generator=generator)
    mask = torch.rand(4, 5, generator=generator) > 0.3
    mask[2] = False
    rewards, old, ref = (torch.randn(*s, generator=generator).double() for s in ((2, 2), (4, 5), (4, 5)))
    return hidden, weight, ids, rewards, mask, old, ref


@pytest.mark.parametrize("trained", ["hidden", "head", "rows"])
@pytest.mark.parametrize("references", [False, True])
def test_from_hidden_equals_the_loss_of_the_logits(trained, references):
    hidden, weight, ids, rewards, mask, old, ref = hidden_problem()
    loss = GRPOLoss(beta=0.3 if references else 0.0)
    extra = (old, ref) if references else (None, None)
    frozen, options = weight, {}
    values = {"hidden": None, "head": weight, "rows": torch.ones(1, 6, dtype=torch.float64)}[trained]
    inputs = [x.requires_grad_() for x in (hidden, values) if x is not None]
    if trained == "rows":
        rows = ids[mask][:1]
        options = {"trainable_rows": rows, "row_values": values}
        weight = weight.index_copy(0, rows, values)
    logps = (hidden @ weight.T / 0.8).log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)
    expected = loss(logps, rewards, mask, *extra)
    metrics = loss.metrics
    found = loss.from_hidden(hidden, frozen, ids, rewards, mask, *extra, temperature=0.8, **options)
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        torch.testing.assert_close(one, other)
    entropy = torch.distributions.Categorical(logits=hidden.detach() @ weight.detach().T / 0.8).entropy()
    torch.testing.assert_close(loss.metrics.pop("entropy"), entropy[mask].mean())
    assert {k: v.item() for k, v in loss.metrics.items()} == pytest.approx(
        {k: v.item() for k, v in metrics.items()}
    )


def test_from_hidden_ignores_padding_and_needs_no_token():
    hidden, weight, ids, rewards, mask, _, _ = hidden_problem(torch.float32)
    loss = GRPOLoss(beta=0.0)
    expected = loss.from_hidden(hidden, weight, ids, rewards, mask)
    poisoned = hidden.masked_fill(~mask[..., None], float("nan")).requires_grad_()
    found = loss.from_hidden(poisoned, weight, ids.masked_fill(~mask, -1), rewards, mask)
    assert torch.equal(found, expected)
    (grad,) = torch.autograd.grad(found, poisoned)
    assert grad.isfinite().all()
    assert loss.from_hidden(hidden, weight, ids, rewards, torch.zeros_like(mask)) == 0
    with pytest.raises(ValueError, match=r"completion_ids must have shape \[4, 5\]"):
        loss.from_hidden(hidden, weight, ids[:, :3], rewards, mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("log_ratio", "advantage", "value", "slope"),
    [
        (1.0, 1.5, -1.2 * 1.5, 0.0),  # clipped above
        (-1.0, -1.5, 0.8 * 1.5, 0.0),  # clipped below
        (1.0, 0.0, 0.0, 0.0),
        (-1.0, 1.5, 0.0, 0.0),  # a ratio of 0
        (1.0, -1.5, math.inf, math.inf),  # what the clip leaves unbounded
    ],
)
def test_a_log_ratio_that_overflows(dtype, log_ratio, advantage, value, slope):
    beyond = {torch.float32: 120.0, torch.float64: 800.0}[dtype]
    logps = torch.tensor([[-1.0, -1.0 + log_ratio * beyond]], dtype=dtype, requires_grad=True)
    old = torch.full((1, 2), -1.0, dtype=dtype)
    loss = GRPOLoss(beta=0.0)
    found = loss(logps, torch.tensor([advantage]), torch.ones(1, 2), old)
    (gradient,) = torch.autograd.grad(found, logps)
    torch.testing.assert_close(
        found.detach(), torch.tensor((value - advantage) / 2, dtype=dtype), atol=1e-30, rtol=1e-6
    )
    expected = torch.tensor([[-advantage / 2, slope]], dtype=dtype)
    torch.testing.assert_close(gradient, expected, atol=1e-30, rtol=1e-6)
    assert loss.metrics["clip_ratio"] == (0.5 if log_ratio * advantage > 0 else 0.0)


def test_a_cut_off_ratio_that_overflows_leaves_the_penalty_its_gradient():
    logps = torch.tensor([[-1.0]], requires_grad=True)
    found = GRPOLoss(beta=0.5)(
        logps, torch.tensor([2.0]), torch.ones(1, 1), torch.tensor([[-200.0]]), torch.tensor([[-2.0]])
    )
    (gradient,) = torch.autograd.grad(found, logps)
    # kl = e^-1 + 1 - 1, its slope 1 - e^-1
    torch.testing.assert_close(found.detach(), torch.tensor(-1.2 * 2 + 0.5 * math.exp(-1)))
    torch.testing.assert_close(gradient, torch.tensor([[0.5 * (1 - math.exp(-1))]]))


def test_dtypes_that_do_not_fit_are_named():
    logps, mask, rewards = torch.zeros(2, 3), torch.ones(2, 3), torch.zeros(1, 2)
    with pytest.raises(TypeError, match=r"^logps must be floating point, got torch.int64"):
        GRPOLoss(beta=0)(logps.long(), rewards, mask)
    with pytest.raises(TypeError, match=r"^old_logps must be floating point, got torch.int64"):
        GRPOLoss(beta=0)(logps, rewards, mask, logps.long())
    with pytest.raises(TypeError, match=r"^ref_logps must be floating point, got torch.complex64"):
        GRPOLoss()(logps, rewards, mask, None, logps.to(torch.complex64))
    with pytest.raises(TypeError, match=r"^rewards_or_advantages must be real, got torch.complex64"):
        GRPOLoss(beta=0)(logps, rewards.to(torch.complex64), mask)
    with pytest.raises(TypeError, match=r"^rewards must be real, got torch.complex64"):
        group_advantage(rewards.to(torch.complex64))
