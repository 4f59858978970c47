"""Commands killed at random times: the same call again, however often, ends with the files of one that was left alone.

Case n of a run kills by the same signals after the same shares of the time; `--fuzz-seconds` says how many there are.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elva.data.mrbench import build
from elva.data.mrbench.rules import RulesJudge
from elva.data.scenes import generate
from elva.models import tiny
from elva.training.config import TextConfig
from elva.training.config import build as configure
from elva.training.examples import TrainingData, corpus
from elva.training.run import run_stage

SECONDS = 20
OF_THE_CLOCK = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
# Each run is a fork of a process that has imported all of it already, and has run nothing.
_context: Any = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "elva.training.run",
        "elva.training.contrastive",
        "elva.models.encoder",
        "elva.training.lora",
        "elva.data.mrbench",
    ]
)


def seconds(request: pytest.FixtureRequest) -> float:
    return request.config.getoption("--fuzz-seconds", default=None) or SECONDS


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "scenes"
    generate(root, 30, seed=0)
    return root


def kept_files(root: Path) -> dict[str, bytes]:
    """All but what stands under a hidden name: temporary files of killed runs, and locks."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)
    }


def whole(call: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
    """Run to the end; seconds that it took."""
    begin = time.monotonic()
    process = _context.Process(target=call, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - begin


def killed(call: Callable[..., Any], arguments: tuple[Any, ...], after: float, by: int) -> bool:
    """Start, and send the signal; whether it met the run alive."""
    process = _context.Process(target=call, args=arguments)
    process.start()
    process.join(after)
    met = process.exitcode is None
    if met:
        process.kill() if by == signal.SIGKILL else process.terminate()
    process.join()
    assert met or process.exitcode == 0
    return met


def attack(
    name: str, call: Callable[..., Any], given: Callable[[Path], tuple[Any, ...]], folder: Path, limit: float,
    files: Callable[[Path], Any],
) -> None:  # fmt: skip
    whole(call, given(folder / "warm"))  # starts the process that is forked
    duration = whole(call, given(folder / "left_alone"))
    expected = files(folder / "left_alone")
    end, number, met = time.monotonic() + limit, 0, 0
    while time.monotonic() < end or number < 2:
        draw, place = random.Random(f"{name}:{number}"), folder / str(number)
        for _ in range(draw.choice([1, 1, 2, 3])):
            by = draw.choice([signal.SIGKILL, signal.SIGTERM])
            met += killed(call, given(place), draw.random() * duration, by)
            if call is build and (place / "out").exists():
                break  # it is done; another build there is refused
        else:
            whole(call, given(place))
        assert files(place) == expected, f"case {number}"
        shutil.rmtree(place)
        number += 1
    assert met


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_a_training_run(request: pytest.FixtureRequest, scenes: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    tiny.create(corpus(TrainingData(scenes)), seed=0).save_pretrained(model)
    trainer = {
        "max_steps": 7,
        "save_steps": 2,
        "logging_steps": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "disable_tqdm": True,
        "use_cpu": True,
    }

    def given(place: Path) -> tuple[TextConfig]:
        values = {
            "model": str(model),
            "data": str(scenes),
            "output": str(place),
            "lora": {"r": 2, "alpha": 4},
        }
        return (configure(TextConfig, {**values, "trainer": trainer}),)

    def files(place: Path) -> Any:
        history = json.loads((place / "history.json").read_text(encoding="utf-8"))
        for name in OF_THE_CLOCK:
            history[-1].pop(name, None)
        return kept_files(place / "model"), history

    attack("train", run_stage, given, tmp_path, seconds(request) / 2, files)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_a_build(request: pytest.FixtureRequest, scenes: Path, tmp_path: Path) -> None:
    def given(place: Path) -> tuple[Any, ...]:
        return scenes, RulesJudge(), place / "out", 8

    attack("build", build, given, tmp_path, seconds(request) / 2, kept_files)
