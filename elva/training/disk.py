"""A full disk in words: torch and safetensors report it with neither the place nor, in torch's case, the reason."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

# torch.save's zip writer, where a write was cut short
_TORCH_WRITERS = ("inline_container", "PytorchStreamWriter")
# the second up to its version 0.5
_SAFETENSORS_SAYS = ("I/O error", "IoError")


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Turn a failed write of weights or optimiser states below ``directory`` into an OSError that names it."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        said = str(error).splitlines()[0]
        signs = _SAFETENSORS_SAYS if isinstance(error, SafetensorError) else _TORCH_WRITERS
        if not any(sign in str(error) for sign in signs):
            raise
        free = shutil.disk_usage(directory).free / 2**20
        raise OSError(
            f"{directory}: weights or optimiser states cannot be written, with {free:.0f} MiB free there: {said}"
        ) from error
