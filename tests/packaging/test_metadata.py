"""pyproject.toml names what the code imports, and the pinned versions lie within its ranges."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Used through another library: Trainer needs accelerate, report_to tensorboard,
# SentenceTransformerTrainer datasets.
INDIRECT = {"accelerate", "datasets", "tensorboard"}
# Optional attention back-ends: looked up by name, and not part of the tested environment.
UNTESTED = {"flash-attn", "vllm", "xformers"}


def requirements(*extras: str) -> list[Requirement]:
    """The ranges of the core package and of ``extras`` (without an argument: of all of them)."""
    optional = PROJECT["optional-dependencies"]
    lines = list(PROJECT["dependencies"])
    for extra in extras or optional:
        lines += optional[extra]
    found = []
    for requirement in map(Requirement, lines):
        if canonicalize_name(requirement.name) == "elva":
            found += requirements(*requirement.extras)
        else:
            found.append(requirement)
    return found


def names(*extras: str) -> set[str]:
    """The canonical names of ``requirements(*extras)``."""
    return {canonicalize_name(requirement.name) for requirement in requirements(*extras)}


def pins(file: str = "constraints.txt") -> dict[str, str]:
    """name -> version of requirements/``file``; fails on a line that is no exact version."""
    found: dict[str, str] = {}
    for line in (ROOT / "requirements" / file).read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"([a-z0-9-]+)==([0-9][0-9a-z.]*)(; .+)?", line)
        assert match, f"requirements/{file}: {line!r} is not of the form name==version"
        assert match[1] not in found, f"requirements/{file} pins {match[1]} twice"
        found[match[1]] = match[2]
    return found


def third_party() -> dict[str, str]:
    """Distribution -> one file that imports it, over the whole package."""
    distributions = importlib.metadata.packages_distributions()
    found: dict[str, str] = {}
    for path in sorted((ROOT / "elva").rglob("*.py")) + sorted((ROOT / "kernels").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            roots = []
            if isinstance(node, ast.Import):
                roots = [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                roots = [node.module.split(".")[0]]
            for root in set(roots) - set(sys.stdlib_module_names) - {"elva"}:
                found[canonicalize_name(distributions.get(root, [root])[0])] = str(path.relative_to(ROOT))
    return found


def test_every_import_is_declared() -> None:
    declared = names(*(extra for extra in PROJECT["optional-dependencies"] if extra != "dev"))
    missing = {name: file for name, file in third_party().items() if name not in declared}
    assert missing == {}, "add these to an extra in pyproject.toml"


def test_every_declared_dependency_is_used() -> None:
    declared = names("all") - INDIRECT
    assert declared - set(third_party()) == set()


def test_the_core_package_needs_torch_alone() -> None:
    assert [Requirement(line).name for line in PROJECT["dependencies"]] == ["torch"]


def test_pinned_versions_lie_within_the_ranges() -> None:
    pinned = pins()
    for requirement in requirements():
        name = canonicalize_name(requirement.name)
        if name in UNTESTED:
            continue
        assert name in pinned, f"requirements/constraints.txt does not pin {name}"
        assert requirement.specifier.contains(pinned[name]), f"{name}=={pinned[name]}, but {requirement}"
    for line in PYPROJECT["build-system"]["requires"]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pinned[requirement.name])


def lower_bound(requirement: Requirement) -> str:
    (bound,) = [part.version for part in requirement.specifier if part.operator == ">="]
    return bound


def test_lower_bounds_are_versions_that_were_tried() -> None:
    """Those of floor.txt; of rivals and tools, which are not in it, the tested ones."""
    floor, tested = pins("floor.txt"), pins()
    build = map(Requirement, PYPROJECT["build-system"]["requires"])
    for requirement in [*requirements(), *build]:
        name = canonicalize_name(requirement.name)
        if name in UNTESTED | {"torch", "triton"}:
            continue
        tried = floor.get(name, tested[name])
        bound = lower_bound(requirement)
        assert f"{tried}.".startswith(f"{bound}."), f"{requirement}, but {name}=={tried} is what was tried"
    # So large that the tested ones stand there too; the oldest were tried by hand.
    torch, triton = (Requirement(*lines) for lines in (PROJECT["dependencies"], EXTRAS["gpu"]))
    oldest = f"the oldest, torch {lower_bound(torch)} and triton {lower_bound(triton)}, were tried by hand"
    assert oldest in (ROOT / "requirements" / "floor.txt").read_text()


def test_the_command_is_callable() -> None:
    module, _, function = PROJECT["scripts"]["elva"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_every_package_is_listed() -> None:
    folders = [ROOT / "elva", *(path for path in (ROOT / "elva").iterdir() if path.is_dir())]
    found = {path.parent for folder in folders for path in folder.rglob("*.py")}
    expected = sorted(".".join(path.relative_to(ROOT).parts) for path in found)
    assert sorted(PYPROJECT["tool"]["setuptools"]["packages"]) == expected
    # A folder without __init__.py would be a namespace package, which some tools leave out.
    assert [str(path) for path in found if not (path / "__init__.py").is_file()] == []


def test_one_version_everywhere() -> None:
    elva = importlib.import_module("elva")
    citation = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert citation is not None
    assert elva.__version__ == PROJECT["version"] == citation[1]


@pytest.mark.parametrize("name", ["kernels", "kernels/cpu"])
def test_no_top_level_package_shadows_the_hub_library_kernels(name: str) -> None:
    """transformers imports a package named kernels where it finds one; this folder must not be one."""
    assert (ROOT / name).is_dir()
    assert not (ROOT / name / "__init__.py").exists()
