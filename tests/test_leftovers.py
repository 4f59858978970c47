"""Killed while writing: what stays, and what the next run makes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from elva.files import atomic_directory, atomic_file
from elva.leftovers import claim, exit_on_signals

ROOT = Path(__file__).resolve().parents[1]
WRITE = """
import signal, sys, time
from elva.files import atomic_directory, atomic_file
# whatever these tests were started under: nohup has all that it starts ignore a hang-up
signal.signal(signal.SIGHUP, getattr(signal, sys.argv[3]))
make = atomic_directory if sys.argv[1] == "directory" else atomic_file
with make(sys.argv[2]) as temporary:
    print("ready", flush=True)
    time.sleep(60)
"""


def start(kind: str, target: Path, hang_up: str = "SIG_DFL") -> subprocess.Popen[str]:
    """A process that is in the middle of writing ``target``."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE, kind, str(target), hang_up], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("kind", ["directory", "file"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_c32_sigterm_removes_what_is_temporary(tmp_path: Path, kind: str, number: signal.Signals) -> None:
    process = start(kind, tmp_path / "out")
    assert len(list(tmp_path.glob(".out.*.tmp"))) == 1
    process.send_signal(number)
    assert process.wait(timeout=20) == 128 + number
    assert list(tmp_path.iterdir()) == []


def test_a_run_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    process = start("file", tmp_path / "out", hang_up="SIG_IGN")
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.3)
    process.terminate()
    assert process.wait(timeout=20) == 128 + signal.SIGTERM


def test_c32_the_next_run_removes_what_a_dead_process_left_and_nothing_else(tmp_path: Path) -> None:
    dead = start("directory", tmp_path / "out")
    # As a process has it that writes without a lock on the name, on a file system that has none.
    in_use = tmp_path / ".out.abc.tmp"
    in_use.mkdir()
    handle = claim(in_use)
    assert handle is not None
    try:
        dead.kill()
        dead.wait()
        assert len(list(tmp_path.glob(".out.*.tmp"))) == 2
        (tmp_path / ".out.mine.txt").touch()
        (tmp_path / ".other.abc.tmp").mkdir()
        with atomic_directory(tmp_path / "out") as temporary:
            (temporary / "a").touch()
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"out", in_use.name, ".out.mine.txt", ".other.abc.tmp"}
    finally:
        os.close(handle)


def test_c32_names_with_wildcards_reach_only_their_own(tmp_path: Path) -> None:
    (tmp_path / ".a1.x.tmp").mkdir()
    (tmp_path / ".a[1].x.tmp").mkdir()
    with atomic_directory(tmp_path / "a[1]"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"a[1]", ".a1.x.tmp"}


COMMANDS = {
    "scenes": ["data", "scenes", "--size", "4000"],
    "from-catalog": ["data", "from-catalog", "items.jsonl", "--grains", "a,b"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_c32_commands_leave_nothing(tmp_path: Path, name: str) -> None:
    pytest.importorskip("typer")
    image = pytest.importorskip("PIL.Image")
    lines = []
    for n in range(4000):
        lines.append(f'{{"image": "{n}.png", "a": "a{n % 7}", "b": "b{n % 11}"}}\n')
        image.new("RGB", (8, 8), (n % 256, n // 256, 0)).save(tmp_path / f"{n}.png")
    (tmp_path / "items.jsonl").write_text("".join(lines))
    command = [sys.executable, "-m", "elva.cli.main", *COMMANDS[name], "--out", str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    left: set[Path] = set()  # which the second run removes before it makes its own
    for number, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 128 + signal.SIGTERM)):
        process = subprocess.Popen(command, cwd=tmp_path, env=environment)
        while not set(tmp_path.glob(".out.*.tmp")) - left and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(timeout=30) == status
        left = set(tmp_path.glob(".out.*.tmp"))
        assert len(left) == (number == signal.SIGKILL)
    assert not (tmp_path / "out").exists()


def test_handlers_of_others_and_threads_are_left_alone() -> None:
    def mine(*_: object) -> None: ...

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with exit_on_signals():
            assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
    with exit_on_signals():
        ours = signal.getsignal(signal.SIGTERM)
        with exit_on_signals():
            assert signal.getsignal(signal.SIGTERM) is ours is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is ours
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_thread_writes_too(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_file(tmp_path / "a") as temporary:
            temporary.write_text("x")

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert (tmp_path / "a").read_text() == "x"
