"""Where a step of stage 3 spends its time: operators, phases, and the share of elva's own operators.

    python -m benchmarks.profile_step --out runs/profile                        # the demo's ELVA arm, tiny preset
    python -m benchmarks.profile_step --out runs/profile --config configs/paper/rl-2b.yaml --set model=…

Writes `trace.json` (chrome://tracing or Perfetto) and `step.png`, and prints three tables. Without a configuration it
draws scenes and takes an untrained model, whose summaries are of full length. On a GPU every phase ends with a
synchronisation, so that its seconds are its own; the trainer has none, and its steps are a little shorter.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function, schedule
from transformers import TrainerCallback

from elva.data.scenes import generate
from elva.demo.pipeline import load_settings
from elva.files import atomic_directory, atomic_file
from elva.models import tiny
from elva.training.config import ConfigError, RLConfig, build, load_config, set_override
from elva.training.examples import TrainingData, corpus
from elva.training.rl import RLTrainer
from elva.training.run import make_trainer

PHASE = "phase: "
SCENES = 200
# Autograd's wrapper around an operator's forward kernel holds the kernel's own time.
WRAPPER = re.compile(r"^GeneratedBackwardFor_elva_(\w+)_default$")


@dataclass(frozen=True)
class Operator:
    """Per step: calls, and seconds without and with what it calls. On a GPU the seconds are those of its kernels."""

    calls: float
    own: float
    total: float


@dataclass(frozen=True)
class StepProfile:
    """Means over the profiled steps. ``busy``: seconds that the shares are of, the step's or on a GPU its kernels'."""

    seconds: float
    busy: float
    phases: dict[str, float]
    operators: dict[str, Operator]

    @property
    def ours(self) -> dict[str, Operator]:
        return {name: found for name, found in self.operators.items() if name.startswith("elva::")}


def main(
    out: Annotated[Path, typer.Option(help="where trace, picture, and the demo's data go")],
    steps: Annotated[int, typer.Option(min=1, help="profiled steps")] = 2,
    warmup: Annotated[int, typer.Option(min=1, help="steps before them")] = 2,
    config: Annotated[
        Path | None, typer.Option(help="settings of `elva train rl`; default: the demo's")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="key=value, on top of them")] = None,
    top: Annotated[int, typer.Option(min=1, help="operators shown")] = 15,
) -> None:
    """Profile some steps of stage 3."""
    try:
        settings = load_config("rl", config, overrides) if config else demo_config(out, overrides or [])
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    assert isinstance(settings, RLConfig)
    device, found = profile_steps(settings, steps, warmup, out / "trace.json")
    with atomic_file(out / "step.png") as temporary:
        draw(found, device, top, temporary)
    # rich takes 80 columns where there is no terminal: too few for names of operators
    console = Console(width=None if sys.stdout.isatty() else 120)
    for table in tables(found, device, top):
        console.print(table)
    console.print(f"wrote {out / 'trace.json'} and {out / 'step.png'}", soft_wrap=True)


def demo_config(out: Path, overrides: list[str]) -> RLConfig:
    """The demo's ELVA arm on a few scenes, from an untrained model; both are made once and kept in ``out``."""
    data, model = out / "data", out / "model"
    if not data.is_dir():
        generate(data, SCENES, seed=0)
    if not model.is_dir():
        with atomic_directory(model) as temporary:
            tiny.create(corpus(TrainingData(data)), seed=0).save_pretrained(temporary)
    values: dict[str, Any] = load_settings("quick")["arms"]["ELVA"]
    del values["stage"]
    values["negatives"]["instances"] = 2 * values["trainer"]["per_device_train_batch_size"]
    values |= {"model": str(model), "data": str(data), "output": str(out / "run")}
    for override in overrides:
        set_override(values, override)
    return build(RLConfig, values)


def profile_steps(config: RLConfig, steps: int, warmup: int, trace: Path) -> tuple[str, StepProfile]:
    """Run ``warmup + steps`` steps, write the Chrome trace of the last ``steps``; the device's type and the figures."""
    config.trainer |= {"max_steps": warmup + steps, "logging_strategy": "no", "save_strategy": "no"}
    trainer = make_trainer(config)
    assert isinstance(trainer, RLTrainer)
    device = trainer.encoder.device.type
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    plan = schedule(wait=warmup - 1, warmup=1, active=steps, repeat=1)
    name_phases(trainer)
    with profile(activities=activities, schedule=plan, acc_events=True) as profiler:
        trainer.add_callback(_Steps(profiler))
        trainer.train()
    with atomic_file(trace) as temporary:
        profiler.export_chrome_trace(str(temporary))
    return device, summarise(profiler.key_averages(), steps, device)


class _Steps(TrainerCallback):
    """Tells the profiler where steps end, and names the optimizer's part."""

    def __init__(self, profiler: profile) -> None:
        self.profiler = profiler
        self.optimizer = ExitStack()

    def on_pre_optimizer_step(self, *arguments: Any, **options: Any) -> None:
        self.optimizer.enter_context(_named("optimizer"))

    def on_optimizer_step(self, *arguments: Any, **options: Any) -> None:
        self.optimizer.close()

    def on_step_end(self, *arguments: Any, **options: Any) -> None:
        self.profiler.step()


def name_phases(trainer: RLTrainer) -> None:
    """Name the trainer's phases in the trace, and the backward beside them."""
    phase, backward = trainer.phase, trainer.accelerator.backward

    @contextmanager
    def named_phase(name: str) -> Iterator[None]:
        with phase(name), _named(name):
            yield

    def named_backward(*arguments: Any, **options: Any) -> None:
        with _named("backward"):
            backward(*arguments, **options)

    trainer.phase = named_phase
    trainer.accelerator.backward = named_backward


@contextmanager
def _named(name: str) -> Iterator[None]:
    with record_function(PHASE + name):
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def summarise(events: Iterable[Any], steps: int, device: str) -> StepProfile:
    """Figures a step from the profiler's averages over ``steps`` steps."""
    on_gpu = device == "cuda"
    seconds = busy = 0.0
    phases: dict[str, float] = {}
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for event in events:
        if event.device_type != DeviceType.CPU:
            busy += 0.0 if event.is_user_annotation else event.self_device_time_total / 1e6 / steps
        elif event.key.startswith("ProfilerStep"):
            seconds += event.cpu_time_total / 1e6 / steps
        elif event.key.startswith(PHASE):
            phases[event.key.removeprefix(PHASE)] = event.cpu_time_total / 1e6 / steps
        elif not event.is_user_annotation:
            own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            total = event.device_time_total if on_gpu else event.cpu_time_total
            wrapper = WRAPPER.match(event.key)
            entry = sums[f"elva::{wrapper[1]}" if wrapper else event.key]
            entry[1] += own / 1e6 / steps
            if not wrapper:
                entry[0] += event.count / steps
                entry[2] += total / 1e6 / steps
    return StepProfile(
        seconds,
        busy if on_gpu else seconds,
        phases,
        {name: Operator(*figures) for name, figures in sums.items()},
    )


def tables(found: StepProfile, device: str, top: int) -> list[Table]:
    """Top operators by their own time, elva's operators, and phases."""
    unit = "GPU ms" if device == "cuda" else "ms"
    operators = Table(
        "operator", title=f"The {top} operators with most time of their own, a step on {device}"
    )
    ours = Table(
        "elva's operators", title="Their share of the step" + (" (of kernels)" if device == "cuda" else "")
    )
    for table in (operators, ours):
        for column in ("calls", f"own {unit}", f"with callees {unit}", "share"):
            table.add_column(column, justify="right")
    for name, row in _by_own_time(found)[:top]:
        operators.add_row(name, *_cells(row, row.own / found.busy))
    for name, row in sorted(found.ours.items()):
        ours.add_row(name, *_cells(row, row.total / found.busy))
    phases = Table("phase", title="Seconds a step")
    for column in ("seconds", "share"):
        phases.add_column(column, justify="right")
    for name, seconds in {**_with_rest(found), "step": found.seconds}.items():
        phases.add_row(name, f"{seconds:.4f}", f"{100 * seconds / found.seconds:.1f} %")
    return [operators, ours, phases]


def draw(found: StepProfile, device: str, top: int, path: Path) -> None:
    """Bars of phases, top operators and elva's operators, in milliseconds a step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bars = {
        "phases": list(_with_rest(found).items()),
        "operators, own time": [(name, row.own) for name, row in _by_own_time(found)[:top]],
        "elva's operators": sorted((name, row.total) for name, row in found.ours.items()),
    }
    heights = [max(1, len(rows)) for rows in bars.values()]
    figure, panels = pyplot.subplots(
        len(bars), figsize=(8, 2 + 0.24 * sum(heights)), height_ratios=heights, layout="constrained"
    )
    for axes, (title, rows) in zip(panels, bars.items(), strict=True):
        drawn = axes.barh([name for name, _ in rows], [1e3 * seconds for _, seconds in rows])
        axes.bar_label(drawn, fmt="%.3g", padding=2, fontsize=7)
        axes.invert_yaxis()
        axes.set_title(f"{title}, ms of a step of {1e3 * found.seconds:.0f} on {device}", fontsize=9)
        axes.tick_params(labelsize=7)
        axes.margins(x=0.12)
    figure.savefig(path, format="png", dpi=110)
    pyplot.close(figure)


def _by_own_time(found: StepProfile) -> list[tuple[str, Operator]]:
    return sorted(found.operators.items(), key=lambda item: -item[1].own)


def _with_rest(found: StepProfile) -> dict[str, float]:
    return {**found.phases, "the rest": found.seconds - sum(found.phases.values())}


def _cells(row: Operator, share: float) -> tuple[str, ...]:
    return f"{row.calls:.0f}", f"{1e3 * row.own:.2f}", f"{1e3 * row.total:.2f}", f"{100 * share:.2f} %"


if __name__ == "__main__":
    typer.run(main)
