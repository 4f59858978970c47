"""The `elva` command."""

from __future__ import annotations

import typer

from elva.cli import data, demo, doctor, eval, mrbench, train

app = typer.Typer(
    name="elva", help="Multi-grain multimodal retrieval: train it, measure it.", no_args_is_help=True
)
app.add_typer(data.app, name="data")
app.add_typer(train.app, name="train")
app.add_typer(mrbench.app, name="mrbench")
app.command("eval")(eval.evaluate_command)
app.command("demo")(demo.demo_command)
app.command("doctor")(doctor.doctor_command)

if __name__ == "__main__":
    app()
