"""One operator at one shape, for a profiler of kernels.

    python -m benchmarks.profile_kernel rank_reward                            # on a CPU: time and rates
    ncu --profile-from-start off --set full python -m benchmarks.profile_kernel rank_reward --backward
    nsys profile --capture-range cudaProfilerApi python -m benchmarks.profile_kernel infonce --dtype bfloat16

Inputs and default shapes are those of `pytest --benchmark`. On a GPU one call, after those that warm up and are timed,
stands between cudaProfilerStart and cudaProfilerStop inside an NVTX range of the operator's name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer

from benchmarks.measure import Work, median_seconds
from benchmarks.problems import PROBLEMS, Problem, Shape

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main(
    operator: Annotated[str, typer.Argument(help=", ".join(PROBLEMS))],
    backward: Annotated[
        bool, typer.Option("--backward", help="forward and backward, not forward alone")
    ] = False,
    shape: Annotated[
        str | None, typer.Option(help="numbers with commas; default: the benchmark's first size")
    ] = None,
    dtype: Annotated[str, typer.Option(help=", ".join(DTYPES))] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one")] = None,
) -> None:
    """Run one operator, and say how fast it was."""
    problem = _chosen("OP", operator, PROBLEMS)
    element = _chosen("--dtype", dtype, DTYPES)
    if backward and not problem.differentiable:
        raise typer.BadParameter(f"--backward: {operator} has none")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    numbers = parse_shape(problem, shape)
    step = make_step(problem, numbers, backward, device, element)
    seconds = median_seconds(step, device)
    passes = "forward and backward" if backward else "forward"
    typer.echo(f"{operator}, {problem.dims} = {','.join(map(str, numbers))}, {dtype}, {passes}, {device}:")
    typer.echo(rates(problem.work(numbers, backward, element.itemsize), seconds))
    if device == "cuda":
        profile_once(operator, step)


def parse_shape(problem: Problem, text: str | None) -> Shape:
    """The numbers of ``--shape``, or the benchmark's first size."""
    if text is None:
        return next(iter(problem.sizes.values()))
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != len(problem.dims.split(",")) or min(numbers) < 1:
        known = "; ".join(",".join(map(str, size)) for size in problem.sizes.values())
        raise typer.BadParameter(
            f"--shape {text}: expected {problem.dims}, positive numbers, such as {known}"
        )
    return numbers


def make_step(
    problem: Problem, shape: Shape, backward: bool, device: str, dtype: torch.dtype
) -> Callable[[], Any]:
    """The call to be measured; without ``backward`` no gradient is prepared either."""
    inputs = problem.inputs(shape, device, dtype)
    leaves = [value for value in inputs if isinstance(value, torch.Tensor) and value.requires_grad]

    def step() -> Any:
        with torch.set_grad_enabled(backward):
            result = problem.call(*inputs)
        return torch.autograd.grad(result.sum(), leaves) if backward else result

    return step


def rates(work: Work, seconds: float) -> str:
    """Time, and the unavoidable work of it a second."""
    flops = f", {work.flops / seconds / 1e9:.1f} GFLOP/s" if work.flops else ""
    return f"{1e3 * seconds:.3f} ms (median), {work.bytes / seconds / 1e9:.2f} GB/s{flops}"


def profile_once(operator: str, step: Callable[[], Any]) -> None:
    """One call for ncu or nsys."""
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    with torch.cuda.nvtx.range(operator):
        step()
        torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def _chosen(option: str, name: str, known: dict[str, Any]) -> Any:
    if name not in known:
        raise typer.BadParameter(f"{option}: got {name!r}, expected one of {', '.join(known)}")
    return known[name]


if __name__ == "__main__":
    typer.run(main)
