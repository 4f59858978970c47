"""`seconds/*` of an RL step are the device's, nobody waits before they are logged, and unlogged they cost nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from elva import stopwatch
from tests.training.test_rl import make_trainer

FORWARD, TOWER, BACKWARD = 100.0, 7.0, 1000.0


class Mark:
    """A moment in the queue of a device that the host runs ahead of."""

    waits = 0
    queued = 0.0

    def __init__(self) -> None:
        self.at = Mark.queued

    def synchronize(self) -> None:
        Mark.waits += 1

    def elapsed_time(self, end: Mark) -> float:
        return 1e3 * (end.at - self.at)


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Mark]]:
    Mark.waits, Mark.queued = 0, 0.0
    monkeypatch.setattr(stopwatch, "now", lambda device: Mark())
    yield Mark


def queued_by(trainer: Any) -> None:
    """Forwards of the language model and of the tower, and the last backward, queue work."""

    def queue(seconds: float) -> Any:
        def add(*_: Any) -> None:
            Mark.queued += seconds

        return add

    backbone = trainer.encoder.base_model.model
    backbone.language_model.register_forward_hook(queue(FORWARD))
    backbone.visual.register_forward_hook(queue(TOWER))
    backward = trainer.accelerator.backward

    def backward_too(loss: torch.Tensor, **options: Any) -> None:
        backward(loss, **options)
        Mark.queued += BACKWARD

    trainer.accelerator.backward = backward_too


def test_they_are_the_devices_and_cover_the_step(queue, mini_scenes, untrained_model, tmp_path) -> None:
    trainer, examples = make_trainer(
        mini_scenes, untrained_model, tmp_path, candidates="direct", num_generations=2
    )
    queued_by(trainer)
    trainer.create_optimizer()
    for _ in range(2):
        trainer.training_step(trainer.model, {"examples": examples})
    assert queue.waits == 0
    logs = {"loss": 0.0}
    trainer.log(logs)
    assert queue.waits > 0
    seconds = {name: value for name, value in logs.items() if name.startswith("seconds/")}
    assert sum(seconds.values()) == pytest.approx(queue.queued / 2)
    # the second step found the pictures' features in memory
    assert seconds["seconds/vision"] == pytest.approx(TOWER / 2)
    assert seconds["seconds/reward"] == 0
    # sides of one piece each: reference and policy once a sampled side, policy's backward once a piece
    assert seconds["seconds/reference"] == pytest.approx(FORWARD)
    assert seconds["seconds/policy"] == pytest.approx(FORWARD + BACKWARD)
    assert seconds["seconds/generate"] >= 2 * FORWARD and seconds["seconds/generate"] % FORWARD == 0


def test_without_logging_no_moment_is_taken(monkeypatch, mini_scenes, untrained_model, tmp_path) -> None:
    monkeypatch.setattr(stopwatch, "now", lambda device: pytest.fail("a moment was taken"))
    trainer, examples = make_trainer(
        mini_scenes, untrained_model, tmp_path, trainer={"logging_strategy": "no"}, candidates="direct"
    )
    trainer.create_optimizer()
    trainer.training_step(trainer.model, {"examples": examples})
    assert trainer.take_seconds() == {}
