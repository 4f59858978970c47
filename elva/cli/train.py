"""`elva train STAGE --config FILE [--set key=value …]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Train one stage.", no_args_is_help=True)

Config = Annotated[Path | None, typer.Option("--config", help="YAML file of settings")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="key=value, on top of the file; may be repeated")
]


def _train(stage: str, config: Path | None, overrides: list[str] | None) -> None:
    from safetensors import SafetensorError

    from elva.training.config import load_config
    from elva.training.run import run_stage

    try:
        model = run_stage(load_config(stage, config, overrides))
    except (ValueError, TypeError, OSError, FloatingPointError, SafetensorError) as error:
        typer.echo(f"elva train {stage}: {error}", err=True)
        raise typer.Exit(2) from error
    typer.echo(str(model))


@app.command("base")
def base(config: Config = None, overrides: Overrides = None) -> None:
    """A small preset learns to caption: a stand-in for a pretrained MLLM."""
    _train("base", config, overrides)


@app.command("text")
def text(config: Config = None, overrides: Overrides = None) -> None:
    """Stage 1: InfoNCE on text triplets."""
    _train("text", config, overrides)


@app.command("instruct")
def instruct(config: Config = None, overrides: Overrides = None) -> None:
    """Stage 2: InfoNCE on M-BEIR with instructions."""
    _train("instruct", config, overrides)


@app.command("rl")
def rl(config: Config = None, overrides: Overrides = None) -> None:
    """Stage 3: ranking-driven reinforcement learning."""
    _train("rl", config, overrides)
