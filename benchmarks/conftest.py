from __future__ import annotations

import json
from collections.abc import Callable, Generator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.measure import Ceilings, Work, peak_extra_memory

SKIPPED = pytest.StashKey[list[dict[str, str]]]()
PROBLEM = ("operator", "size", "device")
CPU = ("arch", "count", "brand_raw", "hz_actual_friendly", "l2_cache_size", "l3_cache_size")
RIVALS = ("sentence-transformers", "faiss-cpu", "cut-cross-entropy", "liger-kernel", "inf-cl")


@pytest.fixture(scope="session")
def ceilings() -> Callable[[str], Ceilings]:
    """Copy bandwidth and matrix rate of a device, measured once in this very run."""
    known: dict[str, Ceilings] = {}

    def measured(device: str) -> Ceilings:
        if device not in known:
            known[device] = Ceilings.measure(device)
        return known[device]

    return measured


@pytest.fixture
def timed(
    request: pytest.FixtureRequest, benchmark: Any, ceilings: Callable[[str], Ceilings]
) -> Callable[..., None]:
    """Time one contender on a problem whose equality check has passed, and note what it used."""

    def run(
        operator: str,
        size: str,
        contender: str,
        device: str,
        work: Work,
        function: Callable[[], Any],
        *,
        rounds: int,
    ) -> None:
        def step() -> None:
            function()
            if device == "cuda":
                torch.cuda.synchronize()

        extra = peak_extra_memory(step, device)
        benchmark.group = f"{operator}, {size}, {device}"
        benchmark.pedantic(step, rounds=rounds, warmup_rounds=1 if rounds > 1 else 0)
        seconds = benchmark.stats.stats.median
        benchmark.extra_info.update(
            operator=operator,
            size=size,
            contender=contender,
            device=device,
            threads=torch.get_num_threads(),
            peak_extra_bytes=extra,
            **work.rates(seconds, ceilings(device)),
        )
        if request.config.option.benchmark_lines is not None:
            append_line(request.config.option.benchmark_lines, benchmark)

    return run


def append_line(path: Path, benchmark: Any) -> None:
    """A finished case as a line of JSON: pytest-benchmark's own file appears at the end, or never."""
    stats = benchmark.stats.stats
    times = {f"{name}_ms": 1e3 * getattr(stats, name) for name in ("median", "min", "max")}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**benchmark.extra_info, **times, "rounds": stats.rounds}) + "\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep why a contender was skipped, for the report's table."""
    report = yield
    case = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    if report.skipped and {"size", "contender", "device"} <= case.keys():
        assert isinstance(report.longrepr, tuple)
        item.config.stash.setdefault(SKIPPED, []).append(
            {
                "operator": item.path.stem.removeprefix("test_"),
                **{name: case[name] for name in ("size", "contender", "device")},
                "reason": report.longrepr[2].removeprefix("Skipped: "),
            }
        )
    return report


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: list[dict[str, Any]], output_json: dict[str, Any]
) -> None:
    """Skipped contenders of the problems that were timed; the single rounds' times stay out, quartiles suffice."""
    for row in output_json["benchmarks"]:
        row["stats"].pop("data", None)
    timed = {tuple(b["extra_info"].get(name) for name in PROBLEM) for b in output_json["benchmarks"]}
    skipped = config.stash.get(SKIPPED, [])
    output_json["skipped"] = [case for case in skipped if tuple(case[name] for name in PROBLEM) in timed]


@pytest.fixture
def large(request: pytest.FixtureRequest) -> None:
    """Asks for --benchmark-large."""
    if not request.config.option.benchmark_large:
        pytest.skip("a large case: --benchmark-large runs it")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """What a figure depends on, and no more: the machine's name and paths stay out of saved runs."""
    machine_info.pop("node", None)
    cpu = machine_info.get("cpu", {})
    machine_info["cpu"] = {name: cpu[name] for name in CPU if name in cpu}
    machine_info["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    machine_info["versions"] = {name: _version(name) for name in ("elva", "torch", "triton", *RIVALS)}
    if torch.cuda.is_available():
        machine_info["gpu"] = torch.cuda.get_device_name()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
