"""`report`: keeps the lines of check, bench and step in benchmarks/results, and writes docs/gpu.md from all of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu import tables
from benchmarks.gpu.lines import ROOT, DamagedLines
from benchmarks.gpu.results import Results, Run, collect, read_folder, read_runs
from elva.files import atomic_file

PAGE = "gpu.md"
HEADER = """# On a GPU

Written by `python -m benchmarks.gpu report`. Results of three commands, run from a bare checkout with `PYTHONPATH=.`:

    python -m benchmarks.gpu check --out DIR    # every operator against float64
    python -m benchmarks.gpu bench --out DIR    # every operator against its rivals
    python -m benchmarks.gpu step --out DIR     # the RL step, fast against plain

and of `python -m benchmarks.gpu report DIR`, which writes this page. An error is measured against float64 and may be
twice that of plain PyTorch in the same dtype plus a small constant (`elva/ops/accuracy.py`). A contender is timed only
where its own error is allowed in the same run; its inputs are bfloat16, the second-level cache is cold, and a time
holds the host's launches. The floor is that of the bytes moved once or of the products, at the rates measured in the
same run. "vs elva" is the contender's time over ours: above 1 we win. A step's MFU is its model's operations
(`benchmarks/gpu/flops.py`) at the measured bfloat16 rate over its seconds; the two steps' gradients may lie
√2 · 8 · 2⁻⁸ · √layers apart in bfloat16 ([why](architecture.md#mixed-precision)).
"""
NOTHING = """
**Not measured.** No GPU has run these commands yet; without one they run at small sizes, as a rehearsal
(`make gpu-rehearsal`).
"""


def main(arguments: Sequence[str]) -> int:
    """Write the page, its pictures and, of GPUs, the lines; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu report", description="Turn results into docs/gpu.md."
    )
    parser.add_argument(
        "folders",
        nargs="*",
        type=Path,
        metavar="DIR",
        help="new results, beside what --results holds already",
    )
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where gpu.md goes")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="what is kept")
    options = parser.parse_args(arguments)
    try:
        new = [run for folder in options.folders for run in read_folder(folder)]
        kept = [run for path in sorted(options.results.glob("gpu-*.jsonl")) for run in read_runs(path)]
    except DamagedLines as error:
        print(f"benchmarks.gpu report: {error}", file=sys.stderr)
        return 1
    found = collect([*kept, *new])
    write_page([found[name] for name in sorted(found)], options.docs)
    for name in {run.name for run in new if run.on_gpu}:
        with atomic_file(options.results / f"{name}.jsonl") as temporary:
            temporary.write_text(found[name].text(), encoding="utf-8")
    print(f"report: {len(found)} results -> {options.docs / PAGE}")
    return 0


def write_page(found: Sequence[Results], docs: Path) -> None:
    """docs/gpu.md and a roofline for every result with times; GPUs first, then rehearsals without one."""
    text = [HEADER]
    if not any(results.first.on_gpu for results in found):
        text += [NOTHING.strip(), ""]
    for number, results in enumerate(found, start=1):
        first = results.first
        what = "" if first.on_gpu else " (a rehearsal on a CPU at small sizes; it says nothing about a GPU)"
        text += [f"## {first.machine['machine']}, {first.date[:10]}{what}", ""]
        if "check" in results.runs:
            text += tables.check(results.runs["check"])
        if "bench" in results.runs:
            run, name = results.runs["bench"], f"gpu-roofline{f'-{number}' if number > 1 else ''}.png"
            text += tables.bench(run, name if roofline(run, docs / name) else None)
        if "step" in results.runs:
            text += tables.step(results.runs["step"])
    with atomic_file(docs / PAGE) as temporary:
        temporary.write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")


def roofline(run: Run, path: Path) -> bool:
    """Operations a byte against operations a second, ours only, under the measured ceilings; False without any.

    Without matplotlib there is no picture, which is said.
    """
    rates = {line["contender"]: line["rate"] for line in run.lines if "rate" in line}
    ours = [
        line
        for line in run.lines
        if line.get("contender") == tables.OURS and line.get("flops") and line.get("median_ms")
    ]
    if not ours or not {"copy", "bfloat16"} <= rates.keys():
        return False
    try:
        import matplotlib
    except ModuleNotFoundError:
        print("report: matplotlib is not installed, so there is no roofline picture")
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    intensity = [10.0**power for power in range(-1, 6)]
    roof = [min(rates["copy"] * x, rates["bfloat16"]) / 1e12 for x in intensity]
    axes.plot(intensity, roof, color="0.4", label="measured: copy, bfloat16 products")
    for line in ours:
        reached = line["flops"] / line["median_ms"] / 1e9
        label = f"{line['operator']}, {line['size']}"
        axes.scatter([line["flops"] / line["bytes"]], [reached], label=label, zorder=3)
    axes.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="TFLOP/s")
    axes.legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    pyplot.close(figure)
    return True
