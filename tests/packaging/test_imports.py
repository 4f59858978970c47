"""Imports go one way, the lower layers cost only torch, and importing prints nothing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "elva"
# A layer may import itself and what has a lower number.
LAYERS = {
    "files": 0,
    "intervals": 0,
    "leftovers": 0,
    "locks": 0,
    "markdown": 0,
    "pictures": 0,
    "progress": 0,
    "stopwatch": 0,
    "kernels": 0,
    "ops": 1,
    "losses": 2,
    "integrations": 3,
    "data": 3,
    "models": 3,
    "training": 4,
    "evaluation": 4,
    "demo": 5,
    "cli": 6,
}


def layer_of(path: Path) -> str:
    """The first part below elva/: ``ops`` for elva/ops/infonce.py, ``files`` for elva/files.py."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def modules() -> list[Path]:
    """Every module of the package but the root's ``__init__``, the Triton kernels through their link."""
    folders = [PACKAGE, *(path for path in PACKAGE.iterdir() if path.is_dir())]
    found = {path for folder in folders for path in folder.rglob("*.py")}
    return sorted(found - {PACKAGE / "__init__.py"})


def dotted(path: Path) -> str:
    """``elva.ops`` for elva/ops/__init__.py, ``elva.ops.infonce`` for elva/ops/infonce.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, source: str | None = None) -> Iterator[tuple[int, str]]:
    """Line and absolute name of all that a file imports, also in functions; ``from a import b`` gives a.b."""
    package = ".".join(path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text() if source is None else source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, *filter(None, [node.module])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def upward(path: Path, source: str | None = None) -> list[str]:
    """The imports of one file that reach a higher layer, as ``path:line: name``."""
    own = layer_of(path)
    wrong = []
    for line, name in imports(path, source):
        parts = name.split(".")
        if parts[0] != "elva":
            continue
        target = parts[1] if len(parts) > 1 else ""
        # An attribute of the root package (elva.MultimodalEncoder) can hide any layer: only cli may use it.
        level = LAYERS.get(target, LAYERS["cli"] if not target.startswith("__") else 0)
        if target != own and (level > LAYERS[own] or own == "kernels"):
            wrong.append(f"{path.relative_to(ROOT)}:{line}: {name}")
    return wrong


def foreign(path: Path, allowed: set[str], source: str | None = None) -> list[str]:
    """The imports of one file that are neither the standard library, nor elva, nor ``allowed``."""
    known = set(sys.stdlib_module_names) | {"elva"} | allowed
    return [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for line, name in imports(path, source)
        if name.split(".")[0] not in known
    ]


def test_every_module_has_a_layer() -> None:
    assert {layer_of(path) for path in modules()} <= set(LAYERS), "name the new part in LAYERS"


def test_nothing_imports_upwards() -> None:
    assert [line for path in modules() for line in upward(path)] == []


def test_operators_and_losses_import_only_torch_and_triton() -> None:
    low = [path for path in modules() if layer_of(path) in {"kernels", "ops", "losses"}]
    assert {layer_of(path) for path in low} == {"kernels", "ops", "losses"}
    assert [line for path in low for line in foreign(path, {"torch", "triton"})] == []


def test_only_one_module_opens_pictures() -> None:
    """So that every picture passes its list of formats and its limits."""
    opening = {
        path.relative_to(PACKAGE).as_posix() for path in modules() if "Image.open(" in path.read_text()
    }
    assert opening == {"pictures.py"}


@pytest.mark.parametrize(
    ("file", "source", "reported"),
    [
        ("ops/x.py", "from elva.losses import infonce", True),
        ("ops/x.py", "def f():\n    import elva.data.mbeir", True),
        ("losses/x.py", "from elva.ops import rank_reward", False),
        ("losses/x.py", "from elva import MultimodalEncoder", True),
        ("losses/x.py", "from ..models import encoder", True),
        ("losses/x.py", "from .reward import elva_reward", False),
        ("kernels/x.py", "from elva.ops import rank_reward", True),
        ("kernels/x.py", "from .common import block", False),
        ("models/x.py", "from elva import training", True),
        ("data/x.py", "from elva.evaluation.metrics import hit_rate_at", True),
        ("cli/x.py", "from elva import MultimodalEncoder", False),
    ],
)
def test_the_check_itself(file: str, source: str, reported: bool) -> None:
    assert bool(upward(PACKAGE / file, source)) is reported


def test_the_check_of_foreign_imports_itself() -> None:
    source = "import torch\nimport math\nfrom elva.ops import x\ndef f():\n    from PIL import Image"
    assert foreign(PACKAGE / "ops/x.py", {"torch"}, source) == ["elva/ops/x.py:5: PIL.Image"]


IMPORT_ALL = """
import contextlib, importlib, io, sys
for name in sys.argv[1:]:
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            importlib.import_module(name)
    except ModuleNotFoundError as error:
        print(f"{name} needs {error.name}", file=sys.stderr)
        if error.name.partition(".")[0] in ("elva", "torch"):
            raise
    if out.getvalue():
        print(f"{name} printed {out.getvalue()!r}")
"""


@pytest.mark.slow
def test_importing_any_module_prints_nothing() -> None:
    pytest.importorskip("triton", reason="elva.kernels needs triton")
    names = [dotted(path) for path in modules() if path.name != "__main__.py"]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *names], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == ""
    if missing := set(re.findall(r"^elva\S* needs (\S+)$", done.stderr, re.MULTILINE)):
        pytest.skip(f"the modules that need {', '.join(sorted(missing))} (not installed) were not imported")
