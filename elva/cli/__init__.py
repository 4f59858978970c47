"""The `elva` command."""

from __future__ import annotations


def run() -> None:
    """Run the command, or say what to install where only the losses are."""
    try:
        from elva.cli.main import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "elva":
            raise
        raise SystemExit(
            f'elva: {error.name} is not installed; the command needs the extra "train": pip install "elva[train]"'
        ) from None
    app()
