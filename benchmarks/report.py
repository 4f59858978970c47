"""Turn saved benchmark runs into docs/benchmarks.md and a roofline plot.

    pytest --benchmark --benchmark-json=run.json
    python -m benchmarks.report run.json [more.json …] --out docs/benchmarks.md

A run names its device, versions and date; the table gives ratios within one run only, never between machines.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import typer

OURS = "elva"


def main(
    runs: list[Path],
    out: Annotated[Path, typer.Option(help="the Markdown file; the plots go beside it")] = Path(
        "docs/benchmarks.md"
    ),
) -> None:
    """Write the report of one or more runs of pytest-benchmark."""
    pages = []
    for path in runs:
        run = load(path)
        for device, rows in by_device(run).items():
            image = out.with_name(f"{out.stem}-{path.stem}{'-cuda' * (device == 'cuda')}.png")
            roofline(rows, image)
            pages.append(page(run, device, rows, image.name))
    out.write_text("# Benchmarks\n\n" + INTRODUCTION + "\n" + "\n".join(pages), encoding="utf-8")
    typer.echo(f"wrote {out}")


INTRODUCTION = """Written by `python -m benchmarks.report` from saved runs of `pytest --benchmark`. Every contender
first passes an equality check against float64 in the same run. Times are medians, with the quartiles' distance; memory
is the highest above what was held before; the share is that of the floor (bytes moved once at this run's copy rate, or
operations at its matrix rate, whichever takes longer) in the time taken. "vs elva" is the contender's time over ours:
above 1 we win. A contender that could not run says why.
"""


def load(path: Path) -> dict[str, Any]:
    """A run of pytest-benchmark, or a clear error."""
    try:
        run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not any(b.get("extra_info", {}).get("operator") for b in run["benchmarks"]):
            raise KeyError("operator")
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise typer.BadParameter(
            f"{path}: no run of `pytest --benchmark --benchmark-json=…` ({type(error).__name__}: {error})"
        ) from error
    return run


def by_device(run: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The timings of a run by device: each has its own ceilings."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in run["benchmarks"]:
        found[row["extra_info"].get("device", "cpu")].append(row)
    return found


def page(run: dict[str, Any], device: str, benchmarks: list[dict[str, Any]], image: str) -> str:
    """One device of a run as Markdown."""
    machine = run["machine_info"]
    cpu = machine.get("cpu", {}).get("brand_raw", machine.get("machine", "unknown"))
    first = benchmarks[0]["extra_info"]
    capability = machine.get("cpu_capability")
    processor = f"{cpu} ({capability})" if capability else cpu
    name = machine["gpu"] if device == "cuda" else f"{processor}, {first['threads']} threads"
    rates = {
        row["extra_info"].get("dtype", "float32"): row["extra_info"]["ceiling_matrix"] for row in benchmarks
    }
    products = ", ".join(f"{dtype} products {rate:.0f} GFLOP/s" for dtype, rate in sorted(rates.items()))
    versions = ", ".join(f"{name} {value}" for name, value in machine.get("versions", {}).items())
    lines = [
        f"## {name}",
        "",
        f"{run['datetime'][:10]}, commit {run['commit_info']['id'][:9]}; {versions}. "
        f"Copy {first['ceiling_copy']:.1f} GB/s, {products}.",
        "",
        f"![Roofline]({image})",
        "",
    ]
    for (operator, size), rows in grouped(benchmarks).items():
        ours = next((r for r in rows if r["extra_info"]["contender"] == OURS), None)
        lines += [f"### {operator}: {size}", ""]
        lines += [
            "| contender | time (ms) | ± | vs elva | extra memory (MB) | GB/s | GFLOP/s | share of ceiling |"
        ]
        lines += ["| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
        lines += [_row(row, ours) for row in sorted(rows, key=lambda r: r["stats"]["median"])]
        lines += [
            f"| {case['contender']} | {case['reason']} | – | – | – | – | – | – |"
            for case in run.get("skipped", [])
            if (case["operator"], case["size"], case["device"]) == (operator, size, device)
        ]
        lines.append("")
    return "\n".join(lines)


def grouped(benchmarks: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """By operator and size, in the order of the run."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in benchmarks:
        info = row["extra_info"]
        found[info["operator"], info["size"]].append(row)
    return found


def _row(row: dict[str, Any], ours: dict[str, Any] | None) -> str:
    info, stats = row["extra_info"], row["stats"]
    ratio = f"{stats['median'] / ours['stats']['median']:.2f}" if ours else "–"
    extra = info["peak_extra_bytes"]
    cells = [
        info["contender"],
        f"{1e3 * stats['median']:.2f}",
        f"{1e3 * stats['iqr']:.2f}" if stats["rounds"] > 1 else "one round",
        ratio,
        "not known" if extra is None else f"{extra / 1e6:.0f}",
        f"{info['gigabytes_per_second']:.1f}",
        f"{info['gigaflops']:.0f}" if info["gigaflops"] else "–",
        f"{100 * info['share_of_ceiling']:.0f} %",
    ]
    return "| " + " | ".join(cells) + " |"


def roofline(benchmarks: list[dict[str, Any]], path: Path) -> None:
    """Operations a byte against operations a second, under the ceilings of this run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    first = benchmarks[0]["extra_info"]
    copy, matrix = first["ceiling_copy"], max(row["extra_info"]["ceiling_matrix"] for row in benchmarks)
    intensity = [10.0**i for i in range(-2, 5)]
    axes.plot(intensity, [min(copy * x, matrix) for x in intensity], color="0.4", label="measured ceilings")
    for (operator, size), rows in grouped(benchmarks).items():
        ours = [row["extra_info"] for row in rows if row["extra_info"]["contender"] == OURS]
        if ours and ours[0]["gigaflops"]:
            info = ours[0]
            x = info["gigaflops"] / info["gigabytes_per_second"]
            axes.scatter([x], [info["gigaflops"]], label=f"{operator}, {size}", zorder=3)
    axes.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="GFLOP/s")
    axes.legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    typer.run(main)
