"""`elva data`: check, make and convert data."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(help="Check, make and convert data in M-BEIR's format.", no_args_is_help=True)

Out = Annotated[Path, typer.Option("--out", help="Directory to write; must not exist or be empty.")]
Seed = Annotated[int, typer.Option(help="Same seed, same data.")]


@app.command()
def check(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A directory in M-BEIR's layout.")],
) -> None:
    """Print one line per problem (path:line: id: message); exit with 1 when there is any."""
    from elva.data.check import check as find_problems

    stdout = sys.stdout  # a progress bar on stderr redirects sys.stdout while it lives, and would wrap lines
    if hasattr(stdout, "reconfigure"):
        stdout.reconfigure(errors="backslashreplace")
    count = 0
    for problem in find_problems(directory):
        print(problem, file=stdout)
        count += 1
    print(f"{directory}: {count} problem{'' if count == 1 else 's'}", file=sys.stderr)
    if count:
        raise typer.Exit(1)


@app.command()
def scenes(
    out: Out,
    size: Annotated[int, typer.Option(min=1, help="Number of training scenes.")],
    seed: Seed = 0,
) -> None:
    """Draw scenes with captions: eight tasks and a multi-grain test split."""
    from elva.data.scenes import generate

    with _errors():
        generate(out=out, size=size, seed=seed)
    print(f"wrote {out}", file=sys.stderr)


@app.command("from-catalog")
def from_catalog(
    items: Annotated[
        Path, typer.Argument(metavar="ITEMS.jsonl", help="One JSON object with attributes per line.")
    ],
    out: Out,
    grains: Annotated[str, typer.Option(metavar="KEY,KEY", help="The attributes that queries may ask for.")],
    image_field: Annotated[str, typer.Option(help="The field with the picture's path.")] = "image",
    alt_image_field: Annotated[
        str | None, typer.Option(help="The field with a second picture of it.")
    ] = None,
    text_field: Annotated[str, typer.Option(help="The field with a text about it.")] = "text",
    split_by: Annotated[
        Literal["combinations", "items"],
        typer.Option(help="Hold out combinations of attributes, or items, for val and test."),
    ] = "combinations",
    seed: Seed = 0,
) -> None:
    """Turn a catalogue of pictures with attributes into the eight tasks and a multi-grain test split.

    What is left out (copies of pictures) or read as missing ("nan", "None", "N/A", dashes) is counted, here and in
    OUT/catalog.json.
    """
    keys = [key.strip() for key in grains.split(",") if key.strip()]
    if not keys:
        raise typer.BadParameter(f"{grains!r} names no attribute, expected KEY,KEY,…", param_hint="--grains")
    from elva.data.catalog import convert

    with _errors(), warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        convert(
            items=items,
            out=out,
            grains=keys,
            image_field=image_field,
            alt_image_field=alt_image_field,
            text_field=text_field,
            split_by=split_by,
            seed=seed,
        )
    for note in notes:
        print(f"note: {note.message}", file=sys.stderr)
    print(f"wrote {out}", file=sys.stderr)


@app.command()
def unseen(
    name: Annotated[
        str | None, typer.Argument(metavar="[SET]", help="Without it: the sets, and what each needs.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The set as its authors publish it.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Directory to write; must not hold a data set.")
    ] = None,
) -> None:
    """Turn a set that the paper evaluates on without training into M-BEIR's layout."""
    from elva.data.unseen import SETS, convert_unseen

    if name is None:
        for each in SETS.values():
            print(f"{each.name} ({', '.join(each.metrics)}): {each.download}\n")
        return
    if source is None or out is None:
        raise typer.BadParameter(f"{name} needs --source and --out", param_hint="--source, --out")
    with _errors():
        convert_unseen(name, source, out)
    print(f"wrote {out}", file=sys.stderr)


@app.command()
def nli(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Triplets: JSON lines, or SimCSE's .csv.")],
    out: Annotated[Path | None, typer.Option(help="Also write them here as JSON lines.")] = None,
) -> None:
    """Validate triplets for stage 1; print their number and the first one."""
    from elva.data.nli import read_triplets, write_triplets

    with _errors():
        triplets = read_triplets(file)
        if out is not None:
            write_triplets(out, triplets)
    print(f"{len(triplets)} triplets")
    for name, text in triplets[0]._asdict().items():
        print(f"{name}: {text}")


@contextmanager
def _errors() -> Iterator[None]:
    """Turn an error about the user's input into one line on stderr and exit status 1."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
