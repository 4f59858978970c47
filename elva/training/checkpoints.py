"""The checkpoints of a run: which is the newest whole one, and what a damaged one lacks."""

from __future__ import annotations

import json
import re
import shutil
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from elva.training.config import ConfigError

CHECKPOINTS = "checkpoints"
STATE = "trainer_state.json"
_ADVICE = "remove the directory, and the same command goes on from an older checkpoint, or begins anew"
_NAME = re.compile(r"checkpoint-(\d+)")
_STATE_TYPES: dict[str, type | tuple[type, ...]] = {
    "global_step": int,
    "max_steps": int,
    "epoch": (int, float, type(None)),
    "log_history": list,
    "stateful_callbacks": (dict, type(None)),
}


def has_checkpoints(output: Path) -> bool:
    """Whether there are any, whole or not."""
    return any((output / CHECKPOINTS).glob("checkpoint-*"))


def whole_checkpoint(output: Path, processes: int, remove: bool) -> str | None:
    """The newest checkpoint that was written to its end by all processes.

    With ``remove`` newer ones, half-written when a run was killed, are deleted: Trainer would write into them.
    Raises ConfigError for one that was written to its end, and has lost a part since then: Trainer would go on without.
    """
    found = [
        (int(match[1]), path)
        for path in (output / CHECKPOINTS).glob("checkpoint-*")
        if path.is_dir() and (match := _NAME.fullmatch(path.name))
    ]
    for step, path in sorted(found, reverse=True):
        state = _state(path, processes)
        if state is not None:
            if fault := _fault_of_state(state, step) or _fault_of_parts(path, processes):
                raise ConfigError(f"{path} {fault}; {_ADVICE}")
            return str(path)
        if remove:
            warnings.warn(
                f"{path} was not written to its end and is removed; its steps are trained again",
                stacklevel=2,
            )
            shutil.rmtree(path)
    return None


@contextmanager
def reading(checkpoint: str | Path | None, part: str) -> Iterator[None]:
    """Turn whatever torch says of a part of a checkpoint that it cannot read into a ConfigError that names it."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{checkpoint}: {part} cannot be read ({reason}); {_ADVICE}") from error


def _state(checkpoint: Path, processes: int) -> Any:
    """What the checkpoint's last file holds; None where the checkpoint was not written to its end."""
    try:
        # the first process writes this file last
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    # the others write theirs at their own pace
    others = [checkpoint / _random_state(rank, processes) for rank in range(1, processes)]
    if any(checkpoint.glob("rng_state*.pth")) and not all(map(zipfile.is_zipfile, others)):
        return None
    return state if state is not None else {}


def _fault_of_state(state: Any, step: int) -> str | None:
    if not isinstance(state, dict):
        return f"has a damaged {STATE} (a {type(state).__name__}, expected an object)"
    for name, kind in _STATE_TYPES.items():
        value = state.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            return f"has a damaged {STATE} ({name} is {str(value)[:80]!r})"
    if state["global_step"] != step:
        return f"has a damaged {STATE} (global_step is {state['global_step']}, expected {step})"
    return None


def _fault_of_parts(checkpoint: Path, processes: int) -> str | None:
    """What was lost of the states of optimiser, scheduler and generators, or of the weights."""
    pickles = [_random_state(rank, processes) for rank in range(processes)]
    # DeepSpeed's and FSDP's optimisers have directories or files of their own
    if not any(checkpoint.glob("global_step*")):
        pickles.append("scheduler.pt")
        if not (any(checkpoint.glob("optimizer_*")) or (checkpoint / "optimizer.bin").is_file()):
            pickles.append("optimizer.pt")
    for name in pickles:
        if not (checkpoint / name).is_file():
            return f"lacks {name}"
        if not zipfile.is_zipfile(checkpoint / name):
            return f"has a damaged {name}"
    for file in sorted(checkpoint.glob("*.safetensors")):
        if why := unreadable(file):
            return f"has a damaged {file.name} ({why})"
    return None


def unreadable(weights: Path) -> str | None:
    """Why safetensors cannot read a file, by its header and its length; None where it can."""
    try:
        with safe_open(weights, framework="pt"):
            return None
    except (OSError, SafetensorError) as error:
        return str(error)


def _random_state(rank: int, processes: int) -> str:
    return "rng_state.pth" if processes == 1 else f"rng_state_{rank}.pth"
