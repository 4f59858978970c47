"""`elva doctor`: what is installed, which back-ends run, and a quick check of every operator."""

from __future__ import annotations

import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import torch

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
    """One operator on one device."""

    operator: str
    device: str
    error: float
    """Largest difference to float64, relative to the largest value."""
    seconds: float

    @property
    def passes(self) -> bool:
        return self.error < 1e-4


def doctor_command() -> None:
    """Show versions, back-ends and attention implementations, and check every operator against float64."""
    console = Console()
    console.print(_packages())
    console.print(f"CPU kernels (C++): {_native()}")
    console.print(f"GPU kernels (Triton): {_gpu()}")
    console.print(f"Attention that `auto` takes here: {_attention()}")
    checks = run_checks()
    table = Table("operator", "device", "largest error", "ms", "")
    for check in checks:
        verdict = "ok" if check.passes else "[red]wrong[/red]"
        table.add_row(
            check.operator, check.device, f"{check.error:.1e}", f"{1e3 * check.seconds:.1f}", verdict
        )
    console.print(table)
    if not all(check.passes for check in checks):
        console.print("An operator is wrong here: please report this table with the versions above.")
        raise typer.Exit(1)


def run_checks() -> list[Check]:
    """Every operator on every device, against its reference in float64."""
    import torch

    from elva import ops

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    query, keys, labels = draw(16, 32), draw(64, 32), torch.arange(16)
    problems: dict[str, tuple[Any, Any, tuple[Any, ...]]] = {
        "infonce": (ops.infonce, ops.infonce_reference, (query, keys)),
        "linear_logprob": (ops.linear_logprob, ops.linear_logprob_reference, (query, keys, labels)),
        "rank_reward": (
            ops.rank_reward,
            ops.rank_reward_reference,
            (draw(2, 4, 32), draw(2, 4, 32), draw(2, 1, 20, 32)),
        ),
        "similarity_topk": (ops.similarity_topk, ops.similarity_topk_reference, (query, keys, 5)),
        "tiered_rank": (ops.tiered_rank, ops.tiered_rank_reference, (draw(8, 30), draw(8, 30))),
    }
    found = []
    for name, (function, reference, arguments) in problems.items():
        expected = _first(reference(*(_converted(a, "cpu", torch.float64) for a in arguments)))
        for device in devices:
            inputs = [_converted(a, device, torch.float32) for a in arguments]
            function(*inputs)  # the first call loads and registers things
            start = time.perf_counter()
            value = _first(function(*inputs)).double().cpu()
            seconds = time.perf_counter() - start
            error = (value - expected).abs().max() / expected.abs().max().clamp(min=1)
            found.append(Check(name, device, float(error), seconds))
    return found


def _first(result: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    return result[0] if isinstance(result, tuple) else result


def _converted(argument: object, device: str, dtype: torch.dtype) -> object:
    import torch

    if not isinstance(argument, torch.Tensor):
        return argument
    return argument.to(device, dtype if argument.is_floating_point() else argument.dtype)


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
