"""`rank_reward` against its definition, written out here in float64 with a sort and no tensors."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from elva.ops import library, rank_reward, rank_reward_reference
from elva.ops.rank_reward import RankReward, _composite, _composite_backward

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DEFAULTS = {
    "delta": 0.1,
    "gamma": 0.5,
    "normalize_gamma": True,
    "alpha": 0.4,
    "epsilon": 0.6,
    "log_base": math.e,
    "clamp_negative_weight": False,
}
Options = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def poisoned_outputs() -> Iterator[None]:
    """Fresh memory is filled with NaN in this mode, so that a place which a kernel leaves out shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # some of CUDA's sums are not
    yield
    torch.use_deterministic_algorithms(False)


@dataclass
class Case:
    query: Tensor
    positive: Tensor
    negatives: Tensor
    mask: Tensor | None
    options: Options
    upstream: list[Tensor]  # gradients of similarities, margin, ranking, total

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.query, self.positive, self.negatives

    def used(self, b: int, g: int) -> list[bool]:
        if self.mask is None:
            return [True] * self.negatives.shape[2]
        flags: list[bool] = self.mask[b, g % self.mask.shape[1]].tolist()
        return flags


def run_autograd(function: Callable[..., RankReward], case: Case) -> tuple[RankReward, list[Tensor]]:
    inputs = [tensor.detach().requires_grad_() for tensor in case.inputs]
    out = function(*inputs, case.mask, **case.options)
    # `margin` of the reference hangs on no input where there is no negative.
    pairs = zip([out.similarities, out.margin, out.ranking, out.total], case.upstream, strict=True)
    outputs, upstream = zip(*[pair for pair in pairs if pair[0].requires_grad], strict=True)
    gradients = torch.autograd.grad(outputs, inputs, upstream, allow_unused=True, materialize_grads=True)
    return RankReward(*(tensor if tensor is None else tensor.detach() for tensor in out)), list(gradients)


def run_fallback(case: Case) -> tuple[RankReward, list[Tensor]]:
    options = [case.options[name] for name in DEFAULTS]
    scale_rewards = case.options.get("scale_rewards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "_warned", True)
        *out, advantages = _composite(*case.inputs, case.mask, *options, scale_rewards)
    out = RankReward(*out, advantages if scale_rewards else None)
    return out, list(_composite_backward(*case.upstream, *case.inputs, case.mask, out.similarities, *options))


BACKENDS: dict[str, Callable[[Case], tuple[RankReward, list[Tensor]]]] = {
    "operator": lambda case: run_autograd(rank_reward, case),
    "reference": lambda case: run_autograd(rank_reward_reference, case),
    "fallback": run_fallback,
}


def define(
    similarities: list[float], used: list[bool], options: Options
) -> tuple[int, float, float, list, list]:
    """Rank, R_margin, R_rank and their derivatives in the similarities: the definition, word by word."""

    def log(x: float) -> float:
        return math.log(x) / math.log(options["log_base"])

    negatives = [i for i in range(1, len(similarities)) if used[i - 1]]
    # Ties: a negative stands before the positive, and before a negative of higher index.
    order = sorted([*negatives, 0], key=lambda i: (-similarities[i], i == 0, i))
    gamma = options["gamma"]
    if options["normalize_gamma"]:
        total = sum(max(log(k) - 1, 0) for k in range(1, len(order) + 1))
        gamma = gamma / total if total > 0 else 0.0
    ranking_weights, margin_weights = [0.0] * len(similarities), [0.0] * len(similarities)
    for k, i in enumerate(order, start=1):
        weight = log(k) - 1
        if options["clamp_negative_weight"]:
            weight = max(weight, 0.0)
        ranking_weights[i] = 1 / (1 + log(k)) if i == 0 else -gamma * weight
    ranking = sum(weight * s for weight, s in zip(ranking_weights, similarities, strict=True))
    margin = 0.0
    if negatives:
        hardest = min(negatives, key=lambda i: (-similarities[i], i))
        margin = max(0.0, similarities[0] - similarities[hardest] - options["delta"])
        if margin > 0:
            margin_weights[0], margin_weights[hardest] = 1.0, -1.0
    return order.index(0) + 1, margin, ranking, margin_weights, ranking_weights


def exact_similarities(query: Tensor, positive: Tensor, negatives: Tensor, case: Case) -> Tensor:
    """Cosines [B,G,1+N] of float64 tensors, differentiable; 0 for zero vectors and masked negatives."""
    batch, groups, _ = query.shape
    rows = []
    for b in range(batch):
        for g in range(groups):
            candidates = [positive[b, g % positive.shape[1]]]
            candidates += list(negatives[b, g % negatives.shape[1]])
            used = [True, *case.used(b, g)]
            zero = 0 * query[b, g].sum()
            for candidate, use in zip(candidates, used, strict=True):
                defined = use and bool(candidate.any()) and bool(query[b, g].any())
                norms = query[b, g].norm() * candidate.norm()
                rows.append(query[b, g].dot(candidate) / norms if defined else zero)
    return torch.stack(rows).reshape(batch, groups, -1)


def assert_as_defined(case: Case, backend: str) -> None:
    """KERNELS' rule: error below twice that of plain PyTorch in this dtype plus a small constant.

    Ranks jump, so rewards and gradients are judged at the similarities that the back-end itself found.
    """
    out, gradients = BACKENDS[backend](case)
    plain, plain_gradients = run_autograd(rank_reward_reference, case)
    exact_inputs = [tensor.double().requires_grad_() for tensor in case.inputs]
    similarities = exact_similarities(*exact_inputs, case)
    accumulator = torch.promote_types(case.query.dtype, torch.float32)
    tiny = torch.finfo(accumulator).eps
    assert out.similarities.dtype == out.margin.dtype == out.ranking.dtype == out.total.dtype == accumulator
    assert out.rank.dtype == torch.int64

    assert out.weights.dtype == accumulator
    assert_advantages(out, case.options.get("scale_rewards"))

    allowed = 2 * (plain.similarities.double() - similarities).abs().nan_to_num() + 8 * tiny
    assert ((out.similarities.double() - similarities).abs() <= allowed).all()

    weights = torch.zeros_like(similarities)
    on_similarities, on_margin, on_ranking, on_total = (tensor.double() for tensor in case.upstream)
    for b in range(similarities.shape[0]):
        for g in range(similarities.shape[1]):
            own = out.similarities[b, g].double().tolist()
            used = case.used(b, g)
            rank, margin, ranking, margin_weights, ranking_weights = define(own, used, case.options)
            total = case.options["alpha"] * margin + case.options["epsilon"] * ranking
            assert out.rank[b, g].item() == rank
            scale = 8 * tiny * (1 + sum(map(abs, ranking_weights)))
            assert out.margin[b, g].item() == pytest.approx(margin, abs=scale)
            assert out.ranking[b, g].item() == pytest.approx(ranking, abs=scale)
            assert out.total[b, g].item() == pytest.approx(total, abs=scale)
            weight = case.options["alpha"] * torch.tensor(margin_weights, dtype=torch.float64)
            weight += case.options["epsilon"] * torch.tensor(ranking_weights, dtype=torch.float64)
            assert ((out.weights[b, g].double().cpu() - weight).abs() <= scale).all()
            per_margin = on_margin[b, g] + case.options["alpha"] * on_total[b, g]
            per_ranking = on_ranking[b, g] + case.options["epsilon"] * on_total[b, g]
            weights[b, g] = per_margin * weights.new_tensor(margin_weights)
            weights[b, g] += per_ranking * weights.new_tensor(ranking_weights)
            weights[b, g] += on_similarities[b, g] * weights.new_tensor([1.0, *used])

    exact = torch.autograd.grad(
        similarities, exact_inputs, weights.detach(), allow_unused=True, materialize_grads=True
    )
    norms = torch.cat([tensor.detach().norm(dim=-1).flatten() for tensor in exact_inputs])
    steepest = 1 / norms[norms > 0].min().item() if (norms > 0).any() else 0.0
    for gradient, other, expected, source in zip(gradients, plain_gradients, exact, case.inputs, strict=True):
        assert gradient.shape == source.shape and gradient.dtype == source.dtype
        rounding = torch.finfo(source.dtype).eps * expected.abs()
        allowed = (
            2 * (other.double() - expected).abs() + rounding + 16 * tiny * weights.abs().sum() * steepest
        )
        assert ((gradient.double() - expected).abs() <= allowed).all()


def assert_advantages(out: RankReward, scale_rewards: str | None) -> None:
    """The definition in float64, at the totals that the back-end itself found."""
    if scale_rewards is None:
        assert out.advantage is None
        return
    assert out.advantage is not None
    assert out.advantage.dtype == out.total.dtype and out.advantage.shape == out.total.shape
    tiny = torch.finfo(out.total.dtype).eps
    for rewards, found in zip(out.total.double().tolist(), out.advantage.double().tolist(), strict=True):
        mean, equal = statistics.fmean(rewards), len(set(rewards)) == 1
        std = 0.0 if equal else statistics.stdev(rewards)
        scale = std + 1e-4 if scale_rewards == "group" else 1.0
        for reward, value in zip(rewards, found, strict=True):
            expected = 0.0 if equal else (reward - mean) / scale
            # The mean is rounded before the division, and then the spread of nearly equal rewards too.
            allowed = 4 * tiny * (abs(expected) + (1 + abs(expected)) * max(map(abs, rewards)) / scale)
            assert abs(value - expected) <= (0.0 if equal else allowed)


def lay_out(tensor: Tensor, layout: str) -> Tensor:
    """The same values with other strides."""
    if layout == "transposed":
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "strided":
        return tensor.repeat_interleave(2, dim=-1)[..., ::2]
    if layout == "padded":
        return torch.cat([tensor, tensor], dim=1)[:, : tensor.shape[1]]
    return tensor


def make_case(
    seed: int,
    batch: int = 2,
    groups: int = 3,
    count: int = 5,
    dim: int = 7,
    dtype: torch.dtype = torch.float32,
    shared: tuple[bool, bool] = (False, False),
    masking: str = "none",
    layout: str = "plain",
    ties: bool = False,
    zeros: bool = False,
    **options: Any,
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    query, positive = draw(batch, groups, dim), draw(batch, 1 if shared[0] else groups, dim)
    negatives = draw(batch, 1 if shared[1] else groups, count, dim)
    if ties and count:
        negatives[:, :, count // 2] = positive[:, :1]
        negatives[:, :, -1] = negatives[:, :, 0]
    if zeros:
        query[0, 0] = 0
        positive[-1, -1] = 0
        negatives[:, 0, : count // 2] = 0
    mask = None
    if masking != "none":
        rows = 1 if masking == "shared" else groups
        mask = torch.rand(batch, rows, count, generator=generator) > (2.0 if masking == "all" else 0.4)
        dead = ~mask.expand(-1, groups, -1)
        dead = dead.all(1, keepdim=True) if shared[1] else dead
        negatives = negatives.masked_fill(dead[..., None], math.nan)
        mask = lay_out(mask, layout).to(DEVICE)
    tensors = [lay_out(x.to(dtype), layout).to(DEVICE) for x in (query, positive, negatives)]
    upstream = [draw(batch, groups, 1 + count), *(draw(batch, groups) for _ in range(3))]
    accumulator = torch.promote_types(dtype, torch.float32)
    return Case(*tensors, mask, {**DEFAULTS, **options}, [x.to(DEVICE, accumulator) for x in upstream])


cases = st.builds(
    make_case,
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 2),
    groups=st.integers(1, 3),
    count=st.integers(0, 7),
    dim=st.integers(1, 9),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    shared=st.tuples(st.booleans(), st.booleans()),
    masking=st.sampled_from(["none", "shared", "rollout", "all"]),
    layout=st.sampled_from(["plain", "transposed", "strided", "padded"]),
    ties=st.booleans(),
    zeros=st.booleans(),
    delta=st.sampled_from([0.1, -0.7]),
    gamma=st.sampled_from([0.5, 0.01]),
    normalize_gamma=st.booleans(),
    alpha=st.sampled_from([0.4, 0.0]),
    log_base=st.sampled_from([math.e, 2.0]),
    clamp_negative_weight=st.booleans(),
    scale_rewards=st.sampled_from([None, "group", "none"]),
)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=cases)
def test_backend_agrees_with_the_definition(backend: str, case: Case) -> None:
    assert_as_defined(case, backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shared", [(False, False), (True, True)])
def test_sizes_beyond_every_block(dtype: torch.dtype, shared: tuple[bool, bool]) -> None:
    case = make_case(3, batch=1, groups=2, count=130, dim=333, dtype=dtype, shared=shared, masking="rollout")
    assert_as_defined(case, "operator")


def test_worked_example() -> None:
    query = torch.tensor([[[1.0, 0.0]]], device=DEVICE)
    positive = torch.tensor([[[0.6, 0.8]]], device=DEVICE)
    negatives = torch.tensor([[[[0.8, 0.6], [0.0, 2.0]]]], device=DEVICE)
    out = rank_reward(query, positive, negatives, gamma=0.01, normalize_gamma=False)
    torch.testing.assert_close(out.similarities.cpu(), torch.tensor([[[0.6, 0.8, 0.0]]]))
    assert out.rank.item() == 2
    assert out.margin.item() == 0
    # 0.6 / (1 + ln 2) − 0.01 · 0.8 · (ln 1 − 1)
    assert out.ranking.item() == pytest.approx(0.354370 + 0.008, abs=1e-5)
    assert out.total.item() == pytest.approx(0.6 * 0.362370, abs=1e-5)


@pytest.mark.parametrize("function", [rank_reward, rank_reward_reference])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [1, 3, 64, 257])
def test_a_collapsed_encoder_ranks_last(function: Callable, dtype: torch.dtype, dim: int) -> None:
    point = torch.randn(1, 1, dim, generator=torch.Generator().manual_seed(dim)).to(DEVICE, dtype)
    out = function(point, point, point[:, :, None].expand(1, 1, 70, dim))
    assert out.rank.item() == 71
    assert out.margin.item() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_first_of_equally_hard_negatives_takes_the_gradient(backend: str) -> None:
    case = make_case(0, batch=1, groups=1, count=4, delta=-3.0)
    case.negatives[0, 0, 3] = case.negatives[0, 0, 1] = case.query[0, 0] + 0.5 * case.positive[0, 0]
    case.upstream = [torch.zeros_like(tensor) for tensor in case.upstream]
    case.upstream[1] += 1
    _, (_, _, gradient) = BACKENDS[backend](case)
    assert [bool(row.any()) for row in gradient[0, 0]] == [False, True, False, False]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shared", [False, True])
def test_masked_negatives_are_as_good_as_absent(backend: str, shared: bool) -> None:
    case = make_case(1, count=4, shared=(shared, shared))
    out, gradients = BACKENDS[backend](case)
    padding = torch.full_like(case.negatives, math.nan)
    mask = torch.tensor([True] * 4 + [False] * 4, device=DEVICE).expand(2, 1, 8)
    on_similarities = torch.cat([case.upstream[0], torch.ones_like(case.upstream[0][..., 1:])], dim=2)
    negatives = torch.cat([case.negatives, padding], dim=2)
    padded = Case(
        case.query, case.positive, negatives, mask, case.options, [on_similarities, *case.upstream[1:]]
    )
    padded_out, padded_gradients = BACKENDS[backend](padded)
    assert not padded_out.similarities[..., 5:].any()
    torch.testing.assert_close(padded_out.similarities[..., :5], out.similarities)
    assert not padded_out.weights[..., 5:].any()
    torch.testing.assert_close(padded_out.weights[..., :5], out.weights)
    for found, expected in zip(padded_out[1:5], out[1:5], strict=True):
        torch.testing.assert_close(found, expected)
    assert not padded_gradients[2][:, :, 4:].any()
    torch.testing.assert_close(padded_gradients[:2], gradients[:2])
    torch.testing.assert_close(padded_gradients[2][:, :, :4], gradients[2])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [0, 3])
def test_without_negatives_the_reward_is_the_similarity(backend: str, count: int) -> None:
    case = make_case(2, count=count, masking="all", alpha=1.0, epsilon=1.0)
    out, _ = BACKENDS[backend](case)
    assert (out.rank == 1).all()
    assert not out.margin.any()
    torch.testing.assert_close(out.ranking, out.similarities[..., 0])
    torch.testing.assert_close(out.total, out.similarities[..., 0])


def test_shared_candidates_get_the_sum_over_rollouts() -> None:
    case = make_case(4, shared=(True, True), dtype=torch.float64)
    expanded = Case(
        case.query,
        case.positive.repeat(1, 3, 1),
        case.negatives.repeat(1, 3, 1, 1),
        None,
        case.options,
        case.upstream,
    )
    _, gradients = BACKENDS["operator"](case)
    _, separate = BACKENDS["operator"](expanded)
    torch.testing.assert_close(gradients[0], separate[0])
    torch.testing.assert_close(gradients[1], separate[1].sum(1, keepdim=True))
    torch.testing.assert_close(gradients[2], separate[2].sum(1, keepdim=True))


@pytest.mark.parametrize("function", [rank_reward, rank_reward_reference])
@pytest.mark.parametrize("shared", [(False, False), (True, True)])
def test_gradcheck(function: Callable, shared: tuple[bool, bool]) -> None:
    case = make_case(5, count=4, dim=3, dtype=torch.float64, shared=shared, masking="rollout", delta=-0.5)
    inputs = [tensor.nan_to_num().requires_grad_() for tensor in case.inputs]

    def differentiable(*tensors: Tensor) -> tuple[Tensor, ...]:
        out = function(*tensors, case.mask, **case.options)
        return out.similarities, out.margin, out.ranking, out.total

    assert torch.autograd.gradcheck(differentiable, inputs)
    assert torch.autograd.gradgradcheck(differentiable, inputs)


@pytest.mark.parametrize("function", [rank_reward, rank_reward_reference])
def test_rank_weights_and_advantage_are_not_differentiable(function: Callable) -> None:
    case = make_case(6)
    query = case.query.requires_grad_()
    out = function(query, case.positive, case.negatives, scale_rewards="group")
    assert [name for name, value in out._asdict().items() if not value.requires_grad] == [
        "rank",
        "weights",
        "advantage",
    ]


@pytest.mark.parametrize("function", [rank_reward, rank_reward_reference])
@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), normalize=st.booleans(), clamp=st.booleans())
def test_weights_are_the_derivative_of_the_total(
    function: Callable, seed: int, normalize: bool, clamp: bool
) -> None:
    """By autograd through the vectors: in two dimensions a unit vector is free to have any cosine."""
    generator = torch.Generator().manual_seed(seed)
    s = (
        (torch.rand(1, 2, 6, generator=generator, dtype=torch.float64) * 1.8 - 0.9)
        .to(DEVICE)
        .requires_grad_()
    )
    keys = torch.stack([s, (1 - s**2).sqrt()], dim=-1)
    query = torch.tensor([1.0, 0.0], dtype=torch.float64, device=DEVICE).expand(1, 2, 2)
    mask = (torch.rand(1, 2, 5, generator=generator) > 0.2).to(DEVICE)
    options = {"delta": -0.2, "gamma": 0.3, "normalize_gamma": normalize, "clamp_negative_weight": clamp}
    out = function(query, keys[:, :, 0], keys[:, :, 1:], mask, **options)
    (expected,) = torch.autograd.grad(out.total.sum(), s)
    torch.testing.assert_close(out.weights, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale_rewards", ["group", "none"])
def test_advantages_without_spread_are_exactly_zero(
    backend: str, dtype: torch.dtype, scale_rewards: str
) -> None:
    one = make_case(11, batch=9, groups=1, dtype=dtype, scale_rewards=scale_rewards)
    tensors = [tensor.repeat_interleave(7, dim=1) for tensor in one.inputs]
    upstream = [tensor.repeat_interleave(7, dim=1) for tensor in one.upstream]
    seven = Case(*tensors, None, one.options, upstream)
    for case in (one, seven):
        advantage = BACKENDS[backend](case)[0].advantage
        assert torch.equal(advantage, torch.zeros_like(advantage))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale_rewards", ["group", "none"])
def test_a_nan_makes_the_advantages_of_its_group_nan(backend: str, scale_rewards: str) -> None:
    case = make_case(12, scale_rewards=scale_rewards)
    case.positive[0, 1] = math.nan
    advantage = BACKENDS[backend](case)[0].advantage
    assert advantage[0].isnan().all()
    assert advantage[1].isfinite().all() and advantage[1].any()


@pytest.mark.skipif(DEVICE != "cpu", reason="threads are the CPU's")
def test_the_number_of_threads_changes_nothing() -> None:
    case = make_case(7, batch=3, groups=4, count=150, dim=96, shared=(False, True), scale_rewards="group")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        out, gradients = BACKENDS["operator"](case)
        torch.set_num_threads(3)
        again, gradients_again = BACKENDS["operator"](case)
    finally:
        torch.set_num_threads(threads)
    if not library.native_available():
        pytest.skip("elva/_C.so was not built: PyTorch's reductions promise no such thing")
    for first, second in zip([*out, *gradients], [*again, *gradients_again], strict=True):
        assert torch.equal(first, second)


def operator_arguments(case: Case) -> tuple:
    """Of the backward; the operator itself takes scale_rewards behind them."""
    return *case.inputs, case.mask, *(case.options[name] for name in DEFAULTS)


@pytest.mark.parametrize(
    "choice",
    [
        {"masking": "rollout", "shared": (True, True)},
        pytest.param({"count": 0}, marks=pytest.mark.slow),
        pytest.param({"dtype": torch.bfloat16, "layout": "transposed", "groups": 1}, marks=pytest.mark.slow),
    ],
    ids=["shared", "empty", "bfloat16"],
)
def test_opcheck(choice: dict[str, Any]) -> None:
    case = make_case(8, **choice)
    case = Case(
        *(x.nan_to_num().requires_grad_() for x in case.inputs), case.mask, case.options, case.upstream
    )
    arguments = operator_arguments(case)
    for scale_rewards in (None, "group"):
        torch.library.opcheck(torch.ops.elva.rank_reward.default, (*arguments, scale_rewards))
    similarities = rank_reward(*case.inputs, case.mask).similarities.detach()
    backward = (*case.upstream, *arguments[:4], similarities, *arguments[4:])
    torch.library.opcheck(torch.ops.elva.rank_reward_backward.default, backward)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_into_one_graph(backend: str) -> None:
    case = make_case(9, shared=(True, True), masking="shared", scale_rewards="group")
    compiled = torch.compile(rank_reward, fullgraph=True, backend=backend)
    expected, expected_gradients = BACKENDS["operator"](case)
    out, gradients = run_autograd(compiled, case)
    for found, wanted in zip([*out, *gradients], [*expected, *expected_gradients], strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"query": torch.zeros(2, 3, 7, dtype=torch.int64)}, TypeError, "query has dtype torch.int64"),
        (
            {"positive": torch.zeros(2, 3, 7, dtype=torch.float64)},
            TypeError,
            "positive has dtype torch.float64",
        ),
        ({"negatives": torch.zeros(2, 3, 5, 7).bfloat16()}, TypeError, "negatives has dtype torch.bfloat16"),
        ({"mask": torch.ones(2, 3, 5)}, TypeError, "mask has dtype torch.float32"),
        ({"positive": torch.zeros(2, 3, 7, device="meta")}, ValueError, "positive is on meta"),
        ({"query": torch.zeros(2, 7)}, ValueError, r"query has shape \[2, 7\]"),
        ({"query": torch.zeros(2, 3, 0)}, ValueError, r"query has shape \[2, 3, 0\]"),
        ({"positive": torch.zeros(2, 2, 7)}, ValueError, r"positive has shape \[2, 2, 7\]"),
        ({"negatives": torch.zeros(2, 3, 5, 8)}, ValueError, r"negatives has shape \[2, 3, 5, 8\]"),
        ({"negatives": torch.zeros(2, 5, 7)}, ValueError, r"negatives has shape \[2, 5, 7\]"),
        ({"mask": torch.ones(2, 3, 4, dtype=torch.bool)}, ValueError, r"mask has shape \[2, 3, 4\]"),
        ({"log_base": 1.0}, ValueError, "log_base is 1.0"),
        ({"delta": math.nan}, ValueError, "delta is nan"),
        ({"scale_rewards": "batch"}, ValueError, "scale_rewards is 'batch'; expected None or one of"),
    ],
)
@pytest.mark.parametrize("function", [rank_reward, rank_reward_reference])
def test_bad_arguments_are_named(
    function: Callable, changes: dict, error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {
        "query": torch.zeros(2, 3, 7),
        "positive": torch.zeros(2, 3, 7),
        "negatives": torch.zeros(2, 3, 5, 7),
    }
    with pytest.raises(error, match=message):
        function(**{**arguments, **changes})


def test_the_native_kernels_refuse_what_would_read_beyond_memory() -> None:
    case = make_case(10)
    arguments = operator_arguments(case)
    with pytest.raises((RuntimeError, ValueError)):
        torch.ops.elva.rank_reward(arguments[0], arguments[1][:, :, :3], *arguments[2:], None)
    with pytest.raises((RuntimeError, ValueError)):
        torch.ops.elva.rank_reward(
            *arguments[:3], torch.ones(2, 3, 4, dtype=torch.bool, device=DEVICE), *arguments[4:], None
        )
