from __future__ import annotations

import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

# What pyproject.toml's extras bring, by the name that is imported. A test that finds one of them missing is skipped.
OPTIONAL = {
    "PIL": "pillow",
    "accelerate": "accelerate",
    "av": "av",
    "datasets": "datasets",
    "faiss": "faiss-cpu",
    "hypothesis": "hypothesis",
    "matplotlib": "matplotlib",
    "mteb": "mteb",
    "numpy": "numpy",
    "packaging": "packaging",
    "peft": "peft",
    "playwright": "playwright",
    "ranx": "ranx",
    "rich": "rich",
    "safetensors": "safetensors",
    "sentence_transformers": "sentence-transformers",
    "tensorboard": "tensorboard",
    "tokenizers": "tokenizers",
    "transformers": "transformers",
    "triton": "triton",
    "trl": "trl",
    "typer": "typer",
    "urllib3": "urllib3",
    "yaml": "pyyaml",
}

FUZZ_SECONDS = 20.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz-seconds",
        type=float,
        default=FUZZ_SECONDS,
        metavar="SECONDS",
        help="How long each file of tests/fuzz goes on.",
    )


@pytest.fixture
def fuzz_seconds(request: pytest.FixtureRequest) -> float:
    """How long the tests of one file of tests/fuzz may take together."""
    return float(request.config.getoption("--fuzz-seconds"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # A fuzzer that is asked to go on for an hour is not stuck.
    seconds = config.getoption("--fuzz-seconds", FUZZ_SECONDS)
    for item in items:
        if "fuzz_seconds" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(300 + 2 * seconds))


class Module(pytest.Module):
    """A file of tests; skipped, not an error, where an optional package that it imports is missing."""

    def collect(self) -> Any:
        try:
            return super().collect()
        except self.CollectError as error:
            # pytest leaves what it could not import whole, and other files would import from that.
            name = ".".join(self.path.relative_to(self.config.rootpath).with_suffix("").parts)
            sys.modules.pop(name, None)
            skip_if_missing(error.__cause__)
            raise


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
    return Module.from_parent(parent, path=module_path)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, None, None]:
    yield from _unless_missing()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    yield from _unless_missing()


def _unless_missing() -> Generator[None, None, None]:
    try:
        yield
    except ModuleNotFoundError as error:
        skip_if_missing(error)
        raise


def skip_if_missing(error: BaseException | None) -> None:
    """Skip by the name of the optional package, if its absence is what ``error`` is about."""
    if isinstance(error, ModuleNotFoundError) and error.name in OPTIONAL:
        pytest.skip(f"{OPTIONAL[error.name]} is not installed", allow_module_level=True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real data sets (OpenMoji, COCO captions, SNLI), which are not part of the project."""
    repository = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("ELVA_SHARED_DATA", repository.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; set ELVA_SHARED_DATA to the folder that holds it")
    return folder
