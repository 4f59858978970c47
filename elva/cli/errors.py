"""How a command ends on an error: one line, and the traceback for who asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

Debug = Annotated[bool, typer.Option("--debug", help="On an error, show the traceback too.")]


@contextmanager
def one_line(command: str, debug: bool) -> Iterator[None]:
    """Exit with 2 and the error's message, or with 1 where the error is of a kind that no input should cause.

    With ``debug`` every error goes on, with its traceback.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        if debug:
            raise
        if isinstance(
            error, ValueError | TypeError | OSError | ImportError | FloatingPointError | SafetensorError
        ):
            typer.echo(f"{command}: {error}", err=True)
            raise typer.Exit(2) from error
        reason = " ".join(str(error).split())
        typer.echo(f"{command}: {type(error).__name__}: {reason}; --debug shows where", err=True)
        raise typer.Exit(1) from error
