"""What killed processes leave: SIGTERM and SIGHUP clean up, and the next run removes what a dead process left."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_ENDING = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP run the ``finally`` clauses, then end the process with status 128 + number.

    Only where they would end it at once: other handlers, and threads beside the main one, are left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def leave(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a fork's cleaning up is not ours
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        signal.signal(number, signal.SIG_IGN)  # a second one must not stop the cleaning up
        raise SystemExit(128 + number)

    taken = [number for number in _ENDING if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in taken:
            if signal.getsignal(number) in (leave, signal.SIG_IGN):
                signal.signal(number, signal.SIG_DFL)


def claim(path: Path) -> int | None:
    """A handle that marks a new temporary file or directory as in use until it is closed, or this process dies.

    None where ``remove_abandoned`` of another process came between: take another name. On a file system without
    locks nothing is marked, and nothing is removed.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError:
        return handle
    if not path.exists():
        os.close(handle)
        return None
    return handle


def remove_abandoned(paths: Iterable[Path]) -> None:
    """Remove the temporary files and directories that no living process has claimed."""
    for path in paths:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        except OSError:  # in use, or without locks: it stays
            pass
        finally:
            os.close(handle)
