"""One process at a time writes an output: a lock that the system frees when its holder dies, however it dies."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# File systems without locks (some network and FUSE mounts): what is written there is not protected, as before.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
_held: set[Path] = set()
_guard = threading.Lock()


class LockedError(OSError):
    """Another process writes this output; the message names both."""


@contextmanager
def lock_directory(directory: str | Path) -> Iterator[None]:
    """Hold ``directory`` by a file ``.lock`` in it. Raises LockedError.

    It is made where it is absent, and removed again where it has stayed empty.
    """
    resolved = Path(directory).resolve()
    absent = not resolved.exists()
    try:
        with _lock(resolved / ".lock", Path(directory)):
            yield
    finally:
        if absent:
            with suppress(OSError):
                resolved.rmdir()


@contextmanager
def lock_name(target: str | Path) -> Iterator[None]:
    """Hold a name that will appear by a move, by a file ``.{name}.lock`` beside it. Raises LockedError."""
    resolved = Path(target).resolve()
    with _lock(resolved.with_name(f".{resolved.name}.lock"), Path(target)):
        yield


@contextmanager
def _lock(path: Path, shown: Path) -> Iterator[None]:
    # fcntl's locks are those of a process: they are not inherited by its workers, and do not hold against itself.
    with _guard:
        if path in _held:
            raise LockedError(f"{shown} is being written by this process already; choose another output")
        _held.add(path)
    try:
        handle = _acquire(path, shown)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(handle)
    finally:
        _held.discard(path)


def _acquire(path: Path, shown: Path) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            continue  # its last holder has just removed the empty directory
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(handle, 200).decode("utf-8", "replace").strip()
            if error.errno in _NO_LOCKS:
                return handle
            os.close(handle)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise LockedError(
                f"{shown} is being written by {holder or 'another process'}; wait for its end, "
                "or choose another output"
            ) from error
        if _is_current(handle, path):
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            return handle
        os.close(handle)


def _is_current(handle: int, path: Path) -> bool:
    """Whether the name still stands for the locked file: its last holder may have removed it in between."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
