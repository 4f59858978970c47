"""`elva demo`: from no data to a measured model, and the report to look at."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from elva.cli.errors import Debug, one_line


def demo_command(
    data: Annotated[
        Path | None, typer.Option(help="an M-BEIR directory; default: scenes drawn for the demo")
    ] = None,
    out: Annotated[Path, typer.Option(help="where models, results and report go")] = Path("runs/demo"),
    settings: Annotated[str, typer.Option(help="quick, proof, or a YAML file of that layout")] = "quick",
    seeds: Annotated[int, typer.Option(min=1, help="how many seeds, from 0 (or --seed) on")] = 1,
    seed: Annotated[int, typer.Option(help="the first seed")] = 0,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, on top of the settings")
    ] = None,
    debug: Debug = False,
) -> None:
    """Data, base, text, instruct, then three arms from the same stage-2 model; one table and a report."""
    from rich.console import Console

    from elva.locks import lock_directory

    # rich takes 80 columns where there is no terminal: too few for the table
    console = Console(width=None if sys.stdout.isatty() else 120)
    with one_line("elva demo", debug), lock_directory(out):
        _demo(console, data, out, settings, range(seed, seed + seeds), overrides)


def _demo(console, data, out, settings, seeds, overrides) -> None:
    import time

    from rich.table import Table

    from elva.demo import summary
    from elva.demo.pipeline import load_settings, run_base, run_seed
    from elva.demo.report import write_demo_report

    start = time.perf_counter()

    def announce(line: str) -> None:
        console.print(
            f"[dim]{time.perf_counter() - start:5.0f} s[/dim]  {line}", highlight=False, soft_wrap=True
        )

    values = load_settings(settings, overrides)
    root = data or _scenes(out, values["scenes"], announce)
    base = run_base(values, root, out / "base", announce)
    runs = []
    for seed in seeds:
        announce(f"seed {seed}")
        runs.append(run_seed(values, base, root, out / f"seed{seed}", seed, announce))
    header, rows = summary.table(runs)
    table = Table(title=f"ELVA on {root}")
    for number, column in enumerate(header):
        table.add_column(column, justify="right" if number else "left", no_wrap=number == 0)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for line in summary.difference_lines(summary.differences(runs, summary.arm_name(runs))):
        console.print(line, highlight=False, soft_wrap=True)
    report = write_demo_report(out, root, runs, values)
    console.print(f"report: {report}", highlight=False, soft_wrap=True)


def _scenes(out: Path, values, announce) -> Path:
    from elva.data.scenes import generate

    root = out / "data"
    if not root.is_dir():
        generate(root, values["size"], values.get("seed", 0))
        announce(f"drew scenes into {root}")
    return root
