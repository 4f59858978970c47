"""C33: a full disk is one line that names the place."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from elva.training.disk import writing


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """The system cuts longer files short, as a full disk does."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_c33_a_full_disk_is_named(tmp_path: Path) -> None:
    weights = {"a": torch.zeros(500_000)}
    for write in (torch.save, save_file):
        with no_file_above(100_000), pytest.raises(OSError) as caught:
            with writing(tmp_path):
                write(weights, tmp_path / "file")
        message = str(caught.value)
        assert message.startswith(f"{tmp_path}: weights or optimiser states cannot be written, with ")
        assert " MiB free there: " in message and "\n" not in message


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^a bug$"):
        with writing(tmp_path):
            raise RuntimeError("a bug")
