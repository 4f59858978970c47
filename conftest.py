"""`pytest --benchmark` runs benchmarks/ with pytest-benchmark; without it they are not collected."""

from __future__ import annotations

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("benchmark")
    group.addoption(
        "--benchmark", action="store_true", help="Run the benchmarks of benchmarks/ in place of the tests."
    )
    group.addoption(
        "--benchmark-large",
        action="store_true",
        help="With --benchmark: the largest cases too (minutes each).",
    )
    group.addoption(
        "--benchmark-lines",
        type=Path,
        metavar="PATH",
        help="With --benchmark: append a line of JSON to this file as each case ends; a time-out loses none.",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.option.benchmark and config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        config.args = [str(BENCHMARKS)]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    inside = collection_path == BENCHMARKS or BENCHMARKS in collection_path.parents
    return True if inside and not config.option.benchmark else None
