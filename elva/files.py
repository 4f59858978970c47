"""Outputs appear whole or not at all: write to a temporary name beside the target, then move."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from elva.leftovers import claim, exit_on_signals, remove_abandoned
from elva.locks import lock_name


def leads_out(name: str | Path) -> bool:
    """Whether a relative name that somebody else wrote may lie outside of the directory that it is joined to."""
    return Path(name).is_absolute() or ".." in Path(name).parts


@contextmanager
def atomic_file(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path; on success it replaces ``target``, on error (and SIGTERM) it is removed."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with exit_on_signals(), _temporary(target, _new_file) as temporary:
        try:
            yield temporary
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Make ``target`` a hard link to ``source``, or a copy where the file system has no such links.

    A target that is there already is left alone.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        return
    try:
        # the file itself: a link to a relative symbolic link would lead nowhere from here
        os.link(source.resolve(), target)
    except OSError:
        with atomic_file(target) as temporary:
            shutil.copyfile(source, temporary)


@contextmanager
def atomic_directory(target: str | Path) -> Iterator[Path]:
    """Yield a temporary directory; on success it becomes ``target``, on error (and SIGTERM) it is removed.

    What a killed process left for the same ``target`` is removed first. Raises FileExistsError when ``target`` already
    holds something: nothing is overwritten; LockedError while another process writes it.
    """
    with lock_name(target), _directory_aside(Path(target)) as temporary:
        yield temporary


@contextmanager
def _directory_aside(target: Path) -> Iterator[Path]:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} already exists and is not empty; choose another output or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(target.parent.glob(f".{glob.escape(target.name)}.*.tmp"))
    with exit_on_signals(), _temporary(target, tempfile.mkdtemp) as temporary:
        try:
            yield temporary
            if target.exists():
                target.rmdir()
            os.chmod(temporary, 0o755)
            os.replace(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _temporary(target: Path, make: Callable[[str, str, Path], str]) -> Iterator[Path]:
    """A new file or directory beside ``target``, claimed (``elva.leftovers``) as long as the context lasts."""
    handle = None
    while handle is None:
        temporary = Path(make(".tmp", f".{target.name}.", target.parent))
        handle = claim(temporary)
    try:
        yield temporary
    finally:
        os.close(handle)


def _new_file(suffix: str, prefix: str, folder: Path) -> str:
    handle, name = tempfile.mkstemp(suffix, prefix, folder)
    os.close(handle)
    return name
