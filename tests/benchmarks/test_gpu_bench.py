"""`bench`: nothing wrong is timed, the strongest come first, and the floor is that of the measured rates."""

from __future__ import annotations

import math
from unittest import SkipTest

import pytest
import torch

from benchmarks.contenders import RACES
from benchmarks.gpu import bench, bench_cases
from benchmarks.gpu.bench_cases import SIZES, SMALL, floor, operator, timed
from benchmarks.gpu.cases import Case, Setting, load
from benchmarks.gpu.child import outcome
from benchmarks.gpu.timing import measured
from benchmarks.measure import Work
from benchmarks.problems import PROBLEMS

RATES = {"copy": 1e9, "bfloat16": 1e11, "float32": 1e10, "tf32": 1e11}
SETTING = Setting("cpu", 1.0, "", RATES)


@pytest.fixture(autouse=True)
def precision():
    """The commands change it for their own process."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def line(name: str, function) -> dict:
    shape = SMALL[name]["small"]
    key = {"operator": name, "contender": "some"}
    return outcome(Case(key, lambda: timed(SETTING, name, shape, "some", function)), "cpu")


@pytest.mark.parametrize("name", [name for name in RACES if name != "similarity_topk"])
def test_a_wrong_contender_is_failed_and_not_timed(name: str):
    ours = RACES[name].contenders["elva"]
    right = line(name, ours)
    assert right["status"] == "ok" and right["error"] <= right["bound"]
    assert 0 < right["low_ms"] <= right["median_ms"] <= right["high_ms"] and right["rounds"] >= 1
    assert right["share_of_ceiling"] == pytest.approx(right["floor_ms"] / right["median_ms"], rel=1e-3)
    wrong = line(name, lambda *inputs: 1.1 * ours(*inputs))
    assert wrong["status"] == "failed"
    assert wrong["reason"].startswith("error ") and wrong["error"] > wrong["bound"]
    assert "median_ms" not in wrong


def test_a_wrong_search_is_failed_and_not_timed():
    wrong = line("similarity_topk", lambda query, keys, k: (query @ keys.T).topk(k, largest=False).indices)
    assert wrong["status"] == "failed" and "median_ms" not in wrong


def test_a_contender_that_raises_is_failed_and_one_that_cannot_run_skipped():
    def raises(*inputs):
        raise RuntimeError("no such kernel")

    def absent(*inputs):
        raise SkipTest("not installed")

    assert line("tiered_rank", raises)["reason"] == "RuntimeError: no such kernel"
    assert line("tiered_rank", absent)["status"] == "skipped"


def test_a_rival_may_run_out_of_memory_and_ours_may_not():
    def large(*inputs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB.")

    assert line("tiered_rank", large)["reason"] == "out of memory: CUDA out of memory"
    shape = SMALL["tiered_rank"]["small"]
    with pytest.raises(torch.OutOfMemoryError):
        timed(SETTING, "tiered_rank", shape, "elva", large)


def test_the_strongest_rival_comes_at_every_size_before_the_rest():
    cases = list(operator(Setting("cuda", 200, ""), "linear_logprob"))
    order = [(case.key["contender"], case.key["size"]) for case in cases]
    assert order[:4] == [
        ("elva", "paper"),
        ("cut_cross_entropy", "paper"),
        ("elva", "large"),
        ("cut_cross_entropy", "large"),
    ]
    assert {case.key["dtype"] for case in cases} == {"bfloat16"}
    assert cases[0].key["shape"] == "T,H,V = 1024, 1536, 151936"


def test_every_operator_is_timed_and_compilers_come_last():
    assert set(SIZES) == set(SMALL) == set(RACES) == set(PROBLEMS) == set(bench.STAGES[1])
    (last,) = bench.STAGES[-1].values()
    cases = load(last, Setting("cuda", 200, ""))
    assert all(case.key["contender"].startswith("torch.compile") for case in cases)
    sizes = [case.key["size"] for case in cases]
    assert sizes == sorted(sizes, key=["paper", "large"].index)


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (Work(bytes=2e9, flops=1e9, dtype="bfloat16"), (2000.0, "memory")),
        (Work(bytes=1e3, flops=1e12, dtype="bfloat16"), (1e4, "products")),
        (Work(bytes=1e3, flops=1e12), (1e5, "products")),
    ],
)
def test_the_floor_is_the_slower_of_memory_and_products(work: Work, expected: tuple[float, str]):
    found = floor(work, 1e6, RATES)
    assert (found["floor_ms"], found["bound_by"]) == (pytest.approx(expected[0]), expected[1])
    assert found["share_of_ceiling"] == pytest.approx(expected[0] / 1e6)
    assert "floor_ms" not in floor(work, 1e6, {})


def test_ceilings_are_measured_on_this_device():
    lines = [outcome(case, "cpu") for case in bench_cases.ceilings(Setting("cpu", 1, ""))]
    assert [entry["contender"] for entry in lines] == ["copy", "bfloat16", "tf32", "float32"]
    assert all(entry["status"] == "ok" and 0 < entry["rate"] < math.inf for entry in lines)


def test_rounds_fill_the_time_and_there_is_one_at_least():
    calls: list[int] = []
    few = measured(lambda: calls.append(1), "cpu", 0.0)
    assert few.rounds == 1 and few.low == few.median == few.high and len(calls) == 2
    assert measured(lambda: None, "cpu", 10.0).rounds == 50


def test_the_cache_is_flushed_and_the_device_idle_before_each_round(monkeypatch: pytest.MonkeyPatch):
    """On a GPU: flush, wait, event, call, event, in this order, and the time is the events'."""
    seen: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            seen.append("event")

        def synchronize(self) -> None:
            seen.append("wait for event")

        def elapsed_time(self, other: Event) -> float:
            return 4.0

    class Buffer:
        def zero_(self) -> None:
            seen.append("flush")

    sizes: list[int] = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: seen.append("wait"))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: type("P", (), {"L2_cache_size": 50 << 20})
    )
    monkeypatch.setattr(torch, "empty", lambda size, **options: sizes.append(size) or Buffer())
    times = measured(lambda: seen.append("call"), "cuda", 0.02)
    assert times == (4.0, 4.0, 4.0, 5)
    assert seen[:6] == ["flush", "wait", "event", "call", "event", "wait for event"]
    assert sizes == [100 << 20]
