"""Fine-tune MiniLM's published weights with several losses and measure what each does to grains and to retrieval.

    python -m benchmarks.text_grains --out runs/text-grains

Learning rate and temperature of every loss are chosen by the mean of R@1 and accuracy, from the same grid, on *val* and
a quarter of *train* that is held out for it; then five seeds of the chosen setting are trained on all of *train* and
measured on *test*. A killed run goes on with the same command. Data: `coco_grains` and `snli` in the folder that
ELVA_SHARED_DATA names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.text_grains.data import (
    batches,
    entailment,
    grain_distance,
    read_triplets,
    retrieval,
    split_rows,
)
from benchmarks.text_grains.report import write_report
from elva.files import atomic_file
from elva.progress import track

LEARNING_RATES = (1e-4, 2e-4, 5e-4)
TEMPERATURES = (0.05, 0.1)
SEEDS = (1, 2, 3, 4, 5)
BATCH = 24


@dataclass(frozen=True)
class Run:
    """One training, or with ``steps`` 0 the model as it is."""

    arm: str
    learning_rate: float
    temperature: float
    seed: int
    split: str
    steps: int

    @property
    def name(self) -> str:
        arm = "".join(c if c.isalnum() else "-" for c in self.arm)
        return f"{self.split}_{arm}_{self.learning_rate:g}_{self.temperature:g}_{self.seed}_{self.steps}.json"


def main(
    out: Annotated[Path, typer.Option(help="a file for each run goes here")],
    report: Annotated[Path, typer.Option(help="Markdown page; the plot goes beside it")] = Path(
        "docs/results/text-grains.md"
    ),
    figures: Annotated[Path, typer.Option(help="JSON with the figures of every run")] = Path(
        "benchmarks/results/text-grains.json"
    ),
    steps: Annotated[int, typer.Option(min=1, help="of each training")] = 50,
    jobs: Annotated[int, typer.Option(min=1, help="processes of one thread each")] = 2,
) -> None:
    """Choose on development data, measure on test, write the report."""
    from benchmarks.text_grains.arms import ARMS

    grid = list(product(LEARNING_RATES, TEMPERATURES))
    tried = [Run(arm, lr, tau, 0, "dev", steps) for arm in ARMS for lr, tau in grid]
    start = Run("zero-shot", 0.0, 0.0, 0, "test", 0)
    found = run_all([start, *tried], out, jobs, "Choosing")
    chosen = {arm: best([run for run in tried if run.arm == arm], found) for arm in ARMS}
    final = [
        Run(arm, r.learning_rate, r.temperature, seed, "test", steps)
        for arm, r in chosen.items()
        for seed in SEEDS
    ]
    found |= run_all(final, out, jobs, "Measuring on test")
    write_report(
        report,
        figures,
        zero_shot=found[start],
        results={arm: [found[run] for run in final if run.arm == arm] for arm in ARMS},
        settings={
            arm: {
                "learning_rate": run.learning_rate,
                "temperature": run.temperature,
                "dev": {
                    f"{r.learning_rate:g}, {r.temperature:g}": score(found[r]) for r in tried if r.arm == arm
                },
            }
            for arm, run in chosen.items()
        },
        steps=steps,
        batch=BATCH,
    )


def score(result: dict[str, Any]) -> float:
    """What is compared to choose."""
    return float(result["r1"] + result["accuracy"]) / 2


def best(runs: Sequence[Run], found: dict[Run, dict[str, Any]]) -> Run:
    return max(runs, key=lambda run: score(found[run]))


def run_all(runs: Sequence[Run], out: Path, jobs: int, what: str) -> dict[Run, dict[str, Any]]:
    """Results of all runs; those whose file is there are read."""
    missing = [run for run in runs if not (out / run.name).is_file()]
    with ProcessPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting = [pool.submit(execute, run, out) for run in missing]
        for done in track(as_completed(waiting), what, total=len(waiting)):
            done.result()
    return {run: json.loads((out / run.name).read_text(encoding="utf-8")) for run in runs}


def execute(run: Run, out: Path) -> None:
    """Train, measure, write the run's file."""
    from benchmarks.text_grains.arms import load_model, train

    folder = shared_data()
    model = load_model()
    if run.steps:
        trained_on = split_rows(folder, "train" if run.split == "test" else "train without dev")
        drawn = batches(trained_on, run.steps, BATCH, run.seed)
        train(model, run.arm, drawn, run.learning_rate, run.temperature, run.seed)

    known: dict[str, torch.Tensor] = {}

    def encode(texts: Sequence[str]) -> torch.Tensor:
        """Each distinct text once."""
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            vectors = model.encode(
                new, convert_to_tensor=True, normalize_embeddings=True, batch_size=64, show_progress_bar=False
            )
            known.update(zip(new, vectors.float(), strict=True))
        return torch.stack([known[text] for text in texts])

    asked = split_rows(folder, run.split)
    result = retrieval(encode, asked)
    if run.split == "test":
        result["grain_distance"] = grain_distance(encode, asked)
        result["entailment"] = entailment(encode, read_triplets(folder))
    with atomic_file(out / run.name) as temporary:
        temporary.write_text(json.dumps(result), encoding="utf-8")


def shared_data() -> Path:
    """As in the tests: ELVA_SHARED_DATA, or the folder beside the repository."""
    return Path(os.environ.get("ELVA_SHARED_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


if __name__ == "__main__":
    typer.run(main)
