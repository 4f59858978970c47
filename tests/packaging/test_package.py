"""The source distribution holds every source, and the wheel built from it works away from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
Build = Callable[..., tuple[Path, str]]
Copy = Callable[[Path], Path]


@pytest.fixture(scope="module")
def sdist(build: Build, copy_sources: Copy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    return build("sdist", copy_sources(folder / "sources"), folder / "dist")[0]


@pytest.fixture(scope="module")
def wheel(build: Build, sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel made from the unpacked source distribution, as `pip install elva-….tar.gz` makes it."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return build("wheel", source, folder / "dist")[0]


def relative(paths: list[Path]) -> set[str]:
    """Paths from the root with forward slashes, as archives name them."""
    return {path.relative_to(ROOT).as_posix() for path in paths if path.is_file()}


def package_files() -> set[str]:
    """Every source and data file of the package, the Triton kernels under their link."""
    folders = [ROOT / package.replace(".", "/") for package in PACKAGES]
    files = [path for folder in folders for path in folder.iterdir()]
    return relative([path for path in files if path.suffix not in {".so", ".pyc"}])


def test_sdist_holds_all_sources(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = {member.name.partition("/")[2]: member for member in archive.getmembers()}
    native = relative([path for path in (ROOT / "kernels" / "cpu").iterdir() if path.suffix != ".so"])
    triton = relative(list((ROOT / "kernels" / "triton").glob("*.py")))
    assert any(name.endswith(".cpp") for name in native)
    assert triton
    expected = native | triton | package_files() | {"CMakeLists.txt", "setup.py", "pyproject.toml", "LICENSE"}
    assert expected - set(members) == set()
    # A link would dangle in the wheel's build or be refused on unpacking; the content must be there.
    assert [name for name, member in members.items() if member.issym() or member.islnk()] == []
    assert [name for name in members if name.endswith((".so", ".pyc"))] == []


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith(".so")}
    assert {name for name in names if not name.split("/")[0].endswith(".dist-info")} == package_files()
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_wheel_holds_the_native_kernels_where_there_is_a_compiler(wheel: Path) -> None:
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("no C++ compiler")
    with zipfile.ZipFile(wheel) as archive:
        assert [name for name in archive.namelist() if name.endswith(".so")] == ["elva/_C.so"]


COMPUTE = """
import warnings
warnings.simplefilter("error")
import torch, elva
from elva.losses import elva_reward
generator = torch.Generator().manual_seed(0)
query, positive = torch.randn(2, 3, 8, generator=generator)
negatives = torch.randn(3, 5, 8, generator=generator)
assert elva_reward(query, positive, negatives).shape == (3,)
print(elva.__file__)
"""


@pytest.mark.slow
def test_unpacked_wheel_computes_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", COMPUTE]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)
