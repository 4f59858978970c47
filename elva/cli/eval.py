"""`elva eval MODEL --data DIR`: measure a model, print the tables, write results.json and report.html.

With `--benchmark mbeir` embeddings are kept on disk, so that a killed run goes on and several processes
(`torchrun --nproc-per-node N --no-python elva eval …`) share the work; run files and the table of all sixteen rows come
beside. `--benchmark mrbench` does the same on a directory of `elva mrbench build`, with numbers by grains in
their place, and `--benchmark unseen` on one of `elva data unseen`, with its authors' metrics.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from elva.cli.errors import Debug, one_line

if TYPE_CHECKING:
    from elva.evaluation.mrbench import MRBench
    from elva.evaluation.results import Results
    from elva.models.encoder import MultimodalEncoder

Mode = Literal["generative", "direct"]


def evaluate_command(
    model: Annotated[str, typer.Argument(help="Model directory or name on the Hugging Face Hub.")],
    data: Annotated[Path, typer.Option("--data", help="Directory in M-BEIR's layout.")],
    pool: Annotated[
        Literal["local", "global"], typer.Option(help="Search a task's own pool, or all pools.")
    ] = "local",
    mode: Annotated[
        Mode | None, typer.Option(help="How queries are embedded; default: the model's own.")
    ] = None,
    candidate_mode: Annotated[Mode, typer.Option(help="How candidates are embedded.")] = "direct",
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Which queries.")] = "test",
    tasks: Annotated[str | None, typer.Option(help="Only these: mscoco,cirr_task7,…")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Inputs encoded at a time.")] = 64,
    instructions: Annotated[str, typer.Option(help="fixed (prompt_1), random:SEED or average.")] = "fixed",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many queries a task.")] = None,
    seed: Annotated[
        int, typer.Option(help="Draws limited queries, the grain distance's and the gallery's.")
    ] = 0,
    benchmark: Annotated[
        Literal["mbeir", "mrbench", "unseen"] | None,
        typer.Option(
            help="Resumable, over processes, and in need of --out. mbeir: TREC files, the table of sixteen "
            "rows. mrbench: Table 6, hits and distances by grains. unseen: a set's own metrics."
        ),
    ] = None,
    check: Annotated[bool, typer.Option(help="Check all that will be read first.")] = True,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write results.json and report.html here.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Hit rate, recall, MRR and nDCG per task; multi-grain hits, grain distance and grains named."""
    from contextlib import ExitStack

    from elva.data.mbeir import MBEIRDirectory
    from elva.evaluation.embedding_store import StoredEncoder
    from elva.evaluation.gallery import build_gallery
    from elva.evaluation.inputs import CandidateEmbeddings, Inputs, require_sound
    from elva.evaluation.mrbench import markdown, measure, write_mrbench
    from elva.evaluation.report import render_report
    from elva.evaluation.retrieval import evaluate, select_tasks
    from elva.evaluation.unseen import require_unseen
    from elva.locks import lock_directory
    from elva.models.identity import model_digest

    names = [name.strip() for name in tasks.split(",") if name.strip()] if tasks else None
    with one_line("elva eval", debug), ExitStack() as held:
        directory = MBEIRDirectory(data)
        inputs = Inputs(directory, instructions)
        chosen = select_tasks(directory, split, names)
        if check:
            require_sound(directory, chosen, split, pool)
        if benchmark == "unseen":
            require_unseen([task.dataset for task in chosen])
        _require_directory(out)
        if benchmark is not None and out is None:
            raise ValueError(f"--out is missing: --benchmark {benchmark} keeps embeddings and tables there")
        first = join_processes()
        encoder: Any = load_encoder(model)
        if out is not None and first:
            held.enter_context(lock_directory(out))  # for all processes that share the work
        if benchmark is not None:
            assert out is not None
            encoder = StoredEncoder(encoder, out / "embeddings", model_digest(encoder))
        candidates = CandidateEmbeddings(encoder, inputs, candidate_mode, batch_size)
        shared: dict[str, Any] = {
            "split": split,
            "query_mode": mode,
            "candidate_mode": candidate_mode,
            "instructions": instructions,
            "tasks": names,
            "batch_size": batch_size,
            "seed": seed,
            "candidates": candidates,
        }
        trec = out / "trec" if benchmark == "mbeir" and out is not None and first else None
        results = evaluate(encoder, data, pool=pool, limit=limit, check=False, trec=trec, **shared)
        results.model = model
        if first:
            print_results(results)
        if out is not None:
            # every process encodes its share of the gallery's inputs
            gallery = build_gallery(encoder, data, **shared)
            measured = None
            if benchmark == "mrbench":
                measured = measure(encoder, data, results, inputs, candidates, batch_size, seed)
            if first:
                page = render_report(f"{Path(model).name} on {data.name}", {model: results}, gallery=gallery)
                write_outputs(out, results, page, measured)
                if benchmark == "mbeir":
                    write_tables(out, results)
                if benchmark == "unseen":
                    write_unseen(out, results)
                if measured is not None:
                    typer.echo(markdown(Path(model).name, results, measured))
                    for path in write_mrbench(out, Path(model).name, results, measured):
                        typer.echo(f"wrote {path}")


def load_encoder(model: str) -> MultimodalEncoder:
    """The encoder of a model directory or name; a function of its own so that tests can put a small one in."""
    from elva.models.encoder import MultimodalEncoder

    return MultimodalEncoder.from_pretrained(model)


def join_processes() -> bool:
    """Join the processes that torchrun or accelerate started, if they did; whether this is the first one."""
    import os

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("gloo")
    return dist.get_rank() == 0


def write_tables(out: Path, results: Results) -> None:
    """mbeir.md and mbeir.tex in ``out``."""
    from elva.evaluation.mbeir_table import latex, markdown
    from elva.files import atomic_file

    for name, render in (("mbeir.md", markdown), ("mbeir.tex", latex)):
        with atomic_file(out / name) as temporary:
            temporary.write_text(render({Path(results.model).name: results}), encoding="utf-8")
    typer.echo(f"wrote {out / 'mbeir.md'}, {out / 'mbeir.tex'} and {out / 'trec'}")


def write_unseen(out: Path, results: Results) -> None:
    """unseen.md in ``out``, and on stdout."""
    from elva.evaluation.unseen import markdown
    from elva.files import atomic_file

    text = markdown({Path(results.model).name: results})
    with atomic_file(out / "unseen.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    typer.echo(f"{text}wrote {out / 'unseen.md'}")


def print_results(results: Results) -> None:
    """The tables on stdout."""
    import sys

    from rich.console import Console

    from elva.evaluation.results import summary_table

    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(results.table())
    if (grains := results.grains_table()) is not None:
        console.print(grains)
    console.print(summary_table({results.model: results}))


def write_outputs(out: Path, results: Results, page: str, measured: MRBench | None) -> None:
    """results.json and report.html in ``out``, both only once both are complete."""
    import json

    from elva.files import atomic_file

    report, record = out / "report.html", out / "results.json"
    with atomic_file(report) as report_file, atomic_file(record) as record_file:
        text = results.to_json()
        if measured is not None:
            text = json.dumps(
                {**json.loads(text), "mrbench": measured.to_json()}, indent=1, ensure_ascii=False
            )
        record_file.write_text(text + "\n", encoding="utf-8")
        report_file.write_text(page, encoding="utf-8")
    typer.echo(f"wrote {record} and {report}")


def _require_directory(out: Path | None) -> None:
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file, expected a directory or a new name")
