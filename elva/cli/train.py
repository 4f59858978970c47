"""`elva train STAGE --config FILE [--model MODEL] [--set key=value …] [--dry-run]`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from elva.cli.errors import Debug, one_line

app = typer.Typer(help="Train one stage.", no_args_is_help=True)

Config = Annotated[Path | None, typer.Option("--config", help="YAML file of settings")]
Model = Annotated[
    str | None, typer.Option("--model", help="where to start: a directory or a hub name (as --set model=…)")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="key=value, on top of the file; may be repeated")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="two steps on made-up data with tiny weights; nothing is kept")
]


def _train(
    stage: str, config: Path | None, model: str | None, overrides: list[str] | None, dry: bool, debug: bool
) -> None:
    from elva.training.config import load_config

    settings = [*(overrides or []), *([f"model={json.dumps(model)}"] if model else [])]
    with one_line(f"elva train {stage}", debug):
        loaded = load_config(stage, config, settings)
        if dry:
            from elva.training.dry_run import dry_run

            if losses := ", ".join(f"{loss:.4f}" for loss in dry_run(loaded)):
                typer.echo(f"dry run of {stage}: two steps on made-up data with tiny weights, loss {losses}")
            return
        from elva.training.run import run_stage

        typer.echo(str(run_stage(loaded)))


@app.command("base")
def base(
    config: Config = None,
    model: Model = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """A small preset learns to caption: a stand-in for a pretrained MLLM."""
    _train("base", config, model, overrides, dry_run, debug)


@app.command("text")
def text(
    config: Config = None,
    model: Model = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Stage 1: InfoNCE on text triplets."""
    _train("text", config, model, overrides, dry_run, debug)


@app.command("instruct")
def instruct(
    config: Config = None,
    model: Model = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Stage 2: InfoNCE on M-BEIR with instructions."""
    _train("instruct", config, model, overrides, dry_run, debug)


@app.command("rl")
def rl(
    config: Config = None,
    model: Model = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Stage 3: ranking-driven reinforcement learning, on any retriever of the Qwen-VL families."""
    _train("rl", config, model, overrides, dry_run, debug)
