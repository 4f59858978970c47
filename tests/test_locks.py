"""Locks on outputs: one process at a time, free again when its holder dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from elva.files import atomic_directory
from elva.locks import LockedError, lock_directory, lock_name

HOLD = """
import sys, time
from elva.locks import lock_directory
with lock_directory(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "out"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_process_holds_nothing(holder: subprocess.Popen, end: int, tmp_path: Path) -> None:
    expected = (
        rf"out is being written by process {holder.pid} on .+; wait for its end, or choose another output"
    )
    with pytest.raises(LockedError, match=expected):
        with lock_directory(tmp_path / "out"):
            pass
    holder.send_signal(end)
    holder.wait()
    with lock_directory(tmp_path / "out"):
        pass
    assert list((tmp_path / "out").iterdir()) == []


def test_other_names_of_a_directory_are_the_same_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    monkeypatch.chdir(tmp_path)
    with lock_directory("out"):
        for name in ("link", tmp_path / "out", "out/../out"):
            with pytest.raises(LockedError, match="by this process already"):
                with lock_directory(name):
                    pass
        with lock_directory("other"):
            pass


def test_a_name_is_held_before_it_exists(tmp_path: Path) -> None:
    with lock_name(tmp_path / "new"):
        with pytest.raises(LockedError, match="new is being written"):
            with atomic_directory(tmp_path / "new"):
                pass
    assert list(tmp_path.iterdir()) == []
    with atomic_directory(tmp_path / "new") as folder:
        (folder / "file").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_one_at_a_time_under_contention(tmp_path: Path) -> None:
    """Removing the file and making it anew never lets two processes in."""
    code = """
import sys, time
from pathlib import Path
from elva.locks import LockedError, lock_directory
root, done = Path(sys.argv[1]), 0
while done < 60:
    try:
        with lock_directory(root):
            with open(root / "inside", "x"):
                pass
            (root / "inside").unlink()
            done += 1
    except LockedError:
        time.sleep(0.0005)
"""
    processes = [subprocess.Popen([sys.executable, "-c", code, tmp_path / "out"]) for _ in range(3)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    assert list((tmp_path / "out").glob("*")) == []  # where it is still there


def test_threads_exclude_each_other_and_an_error_frees(tmp_path: Path) -> None:
    refused = []

    def attempt() -> None:
        try:
            with lock_directory(tmp_path):
                pass
        except LockedError as error:
            refused.append(error)

    with pytest.raises(ZeroDivisionError):
        with lock_directory(tmp_path):
            thread = threading.Thread(target=attempt)
            thread.start()
            thread.join()
            raise ZeroDivisionError
    attempt()
    assert len(refused) == 1
    assert os.listdir(tmp_path) == []
