"""`elva doctor`: what is installed, which back-ends run, and a quick check of every operator."""

from __future__ import annotations

import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import torch

    from elva.ops.accuracy import Accuracy
    from elva.ops.table import Operator

DTYPES = {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "bfloat16", "float16")}

PACKAGES = {
    "torch": "the one requirement",
    "triton": "GPU kernels: pip install 'elva[gpu]'",
    "transformers": "model, data and training: pip install 'elva[train]'",
    "peft": "LoRA: pip install 'elva[train]'",
    "flash-attn": "the fastest attention on NVIDIA: pip install flash-attn",
    "xformers": "attention without flash-attn: pip install xformers",
    "sentence-transformers": "its loss classes: pip install 'elva[sentence-transformers]'",
    "faiss-cpu": "a rival in the benchmarks: pip install faiss-cpu",
}


class Check(NamedTuple):
    """One operator on one device in one dtype, forward and backward (where it has one)."""

    operator: str
    device: str
    dtype: str
    accuracy: Accuracy
    seconds: float


def doctor_command() -> None:
    """Show versions, back-ends and attention implementations, and check every operator against float64."""
    console = Console()
    console.print(_packages())
    console.print(f"CPU kernels (C++): {_native()}")
    console.print(f"GPU kernels (Triton): {_gpu()}")
    console.print(f"Attention that `auto` takes here: {_attention()}")
    checks = run_checks()
    table = Table("operator", "device", "dtype", "error", "allowed", "ms", "")
    for check in checks:
        passes, error, bound, of = check.accuracy.passes, *check.accuracy
        verdict = "ok" if passes else f"[red]wrong[/red]: {of}"
        milliseconds = f"{1e3 * check.seconds:.1f}"
        table.add_row(
            check.operator, check.device, check.dtype, f"{error:.1e}", f"{bound:.1e}", milliseconds, verdict
        )
    console.print(table)
    if not all(check.accuracy.passes for check in checks):
        console.print("An operator is wrong here: please report this table with the versions above.")
        raise typer.Exit(1)


def run_checks() -> list[Check]:
    """Every operator on every device in every dtype that it has there, forward and backward, against float64."""
    import torch

    from elva.ops.table import OPERATORS

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", RuntimeWarning
        )  # that the C++ kernels are absent is said above the table
        return [
            check_operator(operator, device, getattr(torch, name))
            for operator in OPERATORS.values()
            for device in devices
            for name in DTYPES[device]
        ]


def check_operator(operator: Operator, device: str, dtype: torch.dtype) -> Check:
    """The operator's example, once to warm up and once against its reference (elva/ops/accuracy.py has the rule)."""
    import torch

    from elva.ops.accuracy import least_accurate
    from elva.ops.table import converted

    example = operator.example(torch.Generator().manual_seed(0))
    arguments = converted(example, device, dtype)
    operator.passes(operator.function, arguments)  # the first call loads, compiles and registers things
    start = time.perf_counter()
    found = operator.passes(operator.function, arguments)
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    plain = operator.passes(operator.reference, arguments)
    exact = operator.passes(operator.reference, converted(arguments, device, torch.float64))
    name = str(dtype).removeprefix("torch.")
    return Check(operator.name, device, name, least_accurate(found, plain, exact), seconds)


def _packages() -> Table:
    table = Table("package", "version", "what for")
    for name, purpose in PACKAGES.items():
        try:
            table.add_row(name, version(name), purpose.split(": pip")[0])
        except PackageNotFoundError:
            table.add_row(name, "absent", purpose)
    return table


def _native() -> str:
    from elva.ops import library

    if library.native_available():
        return "in use"
    return "absent: reinstall with a C++ compiler and CMake at hand, pip install --no-build-isolation ."


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "no CUDA device"
    return "in use" if find_spec("triton") else "absent: pip install 'elva[gpu]'"


def _attention() -> str:
    if find_spec("transformers") is None:
        return "none: pip install 'elva[train]'"
    import torch

    from elva.models.attention import resolve_attention

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return resolve_attention("auto", device, torch.bfloat16)
