"""`elva mrbench`: build the multi-grain benchmark, and let people check it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="The benchmark of multi-grain queries: build it, check it.", no_args_is_help=True)


@app.command()
def build(
    data: Annotated[Path, typer.Option("--data", help="Directory in M-BEIR's layout.")],
    judge: Annotated[
        str, typer.Option(metavar="MODEL|URL|rules", help="A Qwen-VL checkpoint, a server's …/v1, or rules.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Directory to write; must not exist or be empty.")],
    judge_model: Annotated[
        str | None, typer.Option(help="The server's model; default: the only one it serves.")
    ] = None,
    per_task: Annotated[int, typer.Option(min=1, help="Queries of every task.")] = 250,
    tasks: Annotated[
        str | None, typer.Option(help="Only these (mscoco,cirr_task7,…); default: the paper's, else all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed and answers, same queries.")] = 0,
) -> None:
    """Pick test queries with at least two grains and mark the grains; a killed build goes on."""
    with _errors("build"):
        from elva.data.mrbench import build as build_directory
        from elva.data.mrbench import open_judge

        names = [name.strip() for name in tasks.split(",") if name.strip()] if tasks else None
        opened = open_judge(judge, judge_model)
        statistics = build_directory(data, opened, out, per_task=per_task, seed=seed, tasks=names)
        for name, row in statistics["tasks"].items():
            typer.echo(
                f"{name}: {row['picked']} picked, {row['fewer']} fewer grains, {row['set_aside']} set aside"
            )
        typer.echo(f"wrote {out}; its README.md is the datasheet")
        if missing := sum(row["set_aside"] for row in statistics["tasks"].values()):
            typer.echo(
                f"{missing} set aside without a usable answer ({out}/mrbench/set_aside.jsonl says why); to ask them "
                f"again, remove {out} and give the same command: all answers are kept in {out}.answers.jsonl"
            )


@app.command()
def review(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What `elva mrbench build` wrote.")],
    sample: Annotated[int, typer.Option(min=1, help="How many picked queries to look at.")] = 100,
    seed: Annotated[int, typer.Option(help="Draws the sample.")] = 0,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8765,
) -> None:
    """Serve a page on this machine to accept, correct or reject a sample; Ctrl-C ends it, the same command goes on."""
    with _errors("review"):
        from elva.data.mrbench.review import Review
        from elva.data.mrbench.server import serve

        checked = Review(directory, sample, seed)
        server = serve(checked, port)
        typer.echo(f"http://127.0.0.1:{server.server_port}/ shows {len(checked.items)} queries; Ctrl-C ends")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass
        finally:
            server.server_close()
        typer.echo(checked.report()["sentence"])


@contextmanager
def _errors(command: str) -> Iterator[None]:
    """Turn an error about the user's input into one line on stderr and exit status 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"elva mrbench {command}: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
