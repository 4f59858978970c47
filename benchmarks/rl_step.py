"""A step of stage 3, plain against fast: seconds, and that the gradients are the same.

    python -m benchmarks.rl_step                                   # under five minutes on two cores
    python -m benchmarks.rl_step --sweep --out docs/rl-step.png    # the training part over P, R and G

The plain step is what everybody writes (`elva.training.plain_step`): G copies of each prompt, picture included, through
`generate`, and a pass each for old, reference and policy log-probabilities. The last line says
`step_ratio` whole step, plain over fast · `train_ratio` the policy's forward and backward alone, without the vision
tower · `ideal` G(P + R)/(P + GR), tokens that the two run · `max_rel_grad_diff` max over all trained tensors of
‖Δ‖₂/‖g‖₂ on the same sampled tokens and advantages. The line before it compares the two steps' own rewards and
advantages: one has the states of the rollout, the other those of its forward, which are equal to 2e-6 in float32, and
sums over a group that nearly cancel, as the gradient of the [RET] row, multiply that (docs/rl-step.md).
"""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

import elva
from benchmarks.rl_problem import Setting, make_problem
from benchmarks.step_pair import (
    STEPS,
    SWEEP_LIMIT,
    credits_seen,
    differences,
    gradients,
    learn,
    time_vision,
    whole_step,
)
from elva.files import atomic_file
from elva.progress import track

SWEEP = {
    "prompt_tokens": (64, 128, 256, 512),
    "completion_tokens": (8, 16, 32, 64),
    "num_generations": (2, 4, 8, 16),
}
# its smallest prompt must hold a picture too
SWEEP_PICTURE = 96
LIMIT = 1e-5
LIMITED = ("max_rel_grad_diff", "max_reward_diff", "rel_advantage_diff")


def main(
    rounds: Annotated[int, typer.Option(min=1, help="of the plain step; the fast one has twice as many")] = 1,
    negatives: Annotated[int, typer.Option(min=1, help="N: negatives of the one query")] = 14,
    out: Annotated[Path | None, typer.Option(help="the figures as JSON, or the sweep's plot as PNG")] = None,
    sweep: Annotated[bool, typer.Option(help="the training part over P, R and G instead")] = False,
) -> None:
    """Compare the two steps in float32, on a GPU where there is one (its matrix units then stay unused)."""
    if sweep:
        draw(run_sweep(rounds), out or Path("rl-step.png"))
        return
    figures = compare(Setting(negatives=negatives), rounds)
    print_phases(figures)
    print(
        f"rewards of the two steps differ by at most {figures['max_reward_diff']:.1e}, "
        f"advantages by {figures['rel_advantage_diff']:.1e} of their norm"
    )
    if out is not None:
        with atomic_file(out) as temporary:
            temporary.write_text(json.dumps({**machine(), **figures}, indent=1) + "\n", encoding="utf-8")
    print(
        " ".join(
            f"{name}={figures[name]:.3g}"
            for name in ("step_ratio", "train_ratio", "ideal", "max_rel_grad_diff")
        )
    )
    if not all(figures[name] <= LIMIT for name in LIMITED):
        raise typer.Exit(1)


def compare(setting: Setting, rounds: int) -> dict[str, Any]:
    """Whole steps of both kinds, and the gradients of both on the last plain step's tokens and advantages."""
    with tempfile.TemporaryDirectory() as folder:
        problem = make_problem(setting, Path(folder))
        time_vision(problem)
        warm_up = setting.varied(negatives=1, num_generations=2)
        for kind in STEPS:
            whole_step(make_problem(warm_up, Path(folder)), kind)
        phases: dict[str, list[dict[str, float]]] = {kind: [] for kind in STEPS}
        turns = [kind for _ in range(rounds) for kind in ("fast", "fast", "plain")]
        for kind in track(turns, "Steps", total=len(turns)):
            with credits_seen(problem) as seen:
                spent, sides = whole_step(problem, kind)
            phases[kind].append(spent)
        plain = gradients(problem)
        with credits_seen(problem, given=seen[0]) as own:
            learn(problem, sides, "fast")
    seconds = {kind: [sum(row.values()) for row in rows] for kind, rows in phases.items()}
    training = {kind: [row["policy"] for row in rows] for kind, rows in phases.items()}
    return {
        "setting": vars(setting),
        "device": problem.device.type,
        "mean_completion_tokens": sides[1].mean_length,
        "step_ratio": ratio(seconds),
        "train_ratio": ratio(training),
        "ideal": setting.ideal,
        **differences(own[0], seen[0]),
        "max_rel_grad_diff": largest_difference(gradients(problem), plain),
        "step_seconds": seconds,
        "train_seconds": training,
        "phases": {kind: rows[-1] for kind, rows in phases.items()},
    }


def ratio(seconds: dict[str, list[float]]) -> float:
    """Median of plain over median of fast."""
    return statistics.median(seconds["plain"]) / statistics.median(seconds["fast"])


def largest_difference(fast: dict[str, torch.Tensor], plain: dict[str, torch.Tensor]) -> float:
    """Max over tensors of ‖Δ‖₂/‖g‖₂; ValueError for a gradient that is missing or zero, which would prove nothing."""
    if fast.keys() != plain.keys() or not all(grad.norm() > 0 for grad in plain.values()):
        raise ValueError("gradients: a trained tensor has none, or a zero one")
    return max(float((fast[name] - grad).norm() / grad.norm()) for name, grad in plain.items())


def run_sweep(rounds: int) -> list[tuple[str, Setting, float]]:
    """(what varies, setting, train_ratio), each prompt with a picture, one query and one candidate."""
    base = Setting(negatives=0, image_size=SWEEP_PICTURE)
    cases = [(name, base.varied(**{name: value})) for name, values in SWEEP.items() for value in values]
    found = []
    for name, setting in track(cases, "Settings", total=len(cases)):
        figures = compare(setting, rounds)
        if not figures["max_rel_grad_diff"] <= SWEEP_LIMIT:
            raise ValueError(f"{setting}: gradients differ by {figures['max_rel_grad_diff']:.1e}")
        found.append((name, setting, figures["train_ratio"]))
    return found


def draw(found: list[tuple[str, Setting, float]], path: Path) -> None:
    """The ratio and its ideal over each of P, R and G."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = {"prompt_tokens": "P, prompt tokens", "completion_tokens": "R, completion tokens"}
    figure, panels = pyplot.subplots(1, len(SWEEP), figsize=(10, 3.2), layout="constrained")
    for axes, name in zip(panels, SWEEP, strict=True):
        rows = [
            (getattr(setting, name), setting.ideal, reached)
            for other, setting, reached in found
            if other == name
        ]
        at, ideal, reached = zip(*rows, strict=True)
        axes.plot(at, ideal, "--", color="0.5", label="ideal G(P + R)/(P + GR)")
        axes.plot(at, reached, "o-", label="measured")
        axes.set_xscale("log", base=2)
        axes.set(xlabel=titles.get(name, "G, rollouts"), ylim=(0, None))
        axes.set_xticks(at, [str(value) for value in at])
    panels[0].set_ylabel("plain / fast, training part")
    panels[0].legend(fontsize=8)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    pyplot.close(figure)
    print(f"wrote {path}")


def print_phases(figures: dict[str, Any]) -> None:
    names = list(dict.fromkeys(name for kind in STEPS for name in figures["phases"][kind]))
    table = Table("step", *names, "whole", title="Seconds of the last step, by phase")
    for kind in STEPS:
        phases = figures["phases"][kind]
        cells = [f"{phases[name]:.2f}" if name in phases else "–" for name in names]
        spread = ", ".join(f"{value:.1f}" for value in figures["step_seconds"][kind])
        table.add_row(kind, *cells, spread)
    Console(width=110).print(table)


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "date": date.today().isoformat(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {
            "elva": elva.__version__,  # which a bare checkout has too
            **{name: version(name) for name in ("torch", "transformers", "peft")},
        },
    }


if __name__ == "__main__":
    typer.run(main)
