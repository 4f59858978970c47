"""Seconds of pieces of work, on the host and on a device that runs behind it."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

from elva import stopwatch
from elva.stopwatch import Stopwatch

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Device:
    """Work is queued in no time of the host's and done later; events are marks in the queue."""

    def __init__(self) -> None:
        self.queued = 0.0
        self.waits = 0

    def work(self, seconds: float) -> None:
        self.queued += seconds

    def Event(self, enable_timing: bool) -> SimpleNamespace:
        assert enable_timing
        event = SimpleNamespace(at=None)
        event.record = lambda: setattr(event, "at", self.queued)
        event.synchronize = lambda: setattr(self, "waits", self.waits + 1)
        event.elapsed_time = lambda end: 1e3 * (end.at - event.at)
        return event


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    found = Device()
    monkeypatch.setattr(torch, "get_device_module", lambda device: found)
    return found


def test_pieces_of_one_name_are_summed_and_taken_once() -> None:
    watch = Stopwatch()
    watch.running = True
    for _ in range(2):
        with watch.measure("outer", CPU), watch.measure("inner", CPU):
            time.sleep(0.02)
    found = watch.take()
    assert {name: spent.pieces for name, spent in found.items()} == {"outer": 2, "inner": 2}
    assert 0.04 <= found["inner"].seconds < 1
    assert 0 <= found["outer"].seconds < 0.04, "what was measured inside is not counted twice"
    assert watch.take() == {}


def test_an_error_inside_leaves_the_rest_as_it_was() -> None:
    watch = Stopwatch()
    watch.running = True
    with watch.measure("outer", CPU):
        with pytest.raises(ValueError, match="inside"), watch.measure("broken", CPU):
            raise ValueError("inside")
        with watch.measure("inner", CPU):
            pass
    assert {name: spent.pieces for name, spent in watch.take().items()} == {"outer": 1, "inner": 1}


def test_a_device_is_measured_by_its_own_clock_and_waited_for_at_the_end_alone(device: Device) -> None:
    watch = Stopwatch()
    watch.running = True
    start = time.perf_counter()
    with watch.measure("outer", GPU):
        device.work(100.0)
        with watch.measure("inner", GPU):
            device.work(30.0)
    assert time.perf_counter() - start < 10
    assert device.waits == 0
    found = watch.take()
    assert device.waits > 0
    assert {name: spent.seconds for name, spent in found.items()} == pytest.approx(
        {"outer": 100.0, "inner": 30.0}
    )


def test_a_stopped_one_asks_for_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopwatch, "now", lambda device: pytest.fail("a moment was taken"))
    watch = Stopwatch()
    with watch.measure("work", GPU):
        pass
    assert watch.take() == {}
