"""What an output directory holds already: a finished model, checkpoints to go on from, the settings they came from."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from elva.files import atomic_file
from elva.models.files import weight_files
from elva.training.config import ConfigError, StageConfig

CHECKPOINTS = "checkpoints"
RECORD = "config.json"
PROCESSES = "processes"
"""In the record beside the settings: how many processes (or GPUs of one process) share a step."""
WEIGHTS = "model.safetensors"
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def is_whole(model: Path) -> str | None:
    """What a saved model directory lacks, in words; None where it is whole."""
    for name in ("config.json", "elva.json", *TOKENIZER_FILES, "preprocessor_config.json"):
        if not (model / name).is_file():
            return f"lacks {name}"
    try:
        files = weight_files(str(model))
    except FileNotFoundError as error:
        return f"lacks a file of weights ({error})"
    except (OSError, ValueError) as error:
        return f"has a damaged {WEIGHTS}.index.json ({error})"
    for file in files:
        try:
            # reads the header alone, and compares it with the file's length
            with safe_open(file, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            return f"has a damaged {file.name} ({error})"
    return None if files else f"lacks {WEIGHTS}"


def require_whole(model: Path) -> None:
    """ConfigError unless the model directory can be loaded: what a stage returns is never half of one."""
    if lack := is_whole(model):
        raise ConfigError(f"{model} {lack}; remove the directory, and the same command writes it again")


def same_settings(config: StageConfig, output: Path) -> None:
    """A run goes on only with the settings it began with. Raises ConfigError."""
    before = _record(output)
    if before is None:
        return
    settings = json.loads(json.dumps(asdict(config)))
    changed = sorted(
        key for key in {*settings, *before} - {PROCESSES} if settings.get(key) != before.get(key)
    )
    if changed:
        raise ConfigError(
            f"{output} holds a run with other settings ({', '.join(changed)}); choose another output or remove it"
        )


def same_processes(output: Path, processes: int) -> None:
    """A checkpoint goes on only on as many processes as wrote it: another number draws other batches, and the result
    would be that of neither. Raises ConfigError.
    """
    before = (_record(output) or {}).get(PROCESSES, processes)
    if before != processes:
        many = f"{before} process" if before == 1 else f"{before} processes"
        raise ConfigError(
            f"{output} holds checkpoints of {many}, and this run has {processes}: its steps would be of other "
            f"batches; start it on {before}, or choose another output"
        )


def write_record(config: StageConfig, output: Path, processes: int) -> None:
    """Keep the settings of a run that begins."""
    record: dict[str, Any] = {**asdict(config), PROCESSES: processes}
    with atomic_file(output / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=2), encoding="utf-8")


def has_checkpoints(output: Path) -> bool:
    """Whether there are any, whole or not."""
    return any((output / CHECKPOINTS).glob("checkpoint-*"))


def whole_checkpoint(output: Path, processes: int, remove: bool) -> str | None:
    """The newest checkpoint that was written to its end by all processes.

    With ``remove`` newer ones, half-written when a run was killed, are deleted: Trainer would write into them.
    """
    found = [
        (int(match[1]), path)
        for path in (output / CHECKPOINTS).glob("checkpoint-*")
        if path.is_dir() and (match := _CHECKPOINT.fullmatch(path.name))
    ]
    for _, path in sorted(found, reverse=True):
        if _is_written(path, processes):
            return str(path)
        if remove:
            shutil.rmtree(path)
    return None


def _is_written(checkpoint: Path, processes: int) -> bool:
    try:
        # the first process writes this file last
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if processes == 1 or not any(checkpoint.glob("rng_state*.pth")):
        return True
    # the others write theirs at their own pace
    return all(zipfile.is_zipfile(checkpoint / f"rng_state_{rank}.pth") for rank in range(processes))


def _record(output: Path) -> dict[str, Any] | None:
    record = output / RECORD
    if not record.is_file():
        return None
    try:
        before = json.loads(record.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(
            f"{record}: no settings of a run ({error}); choose another output or remove it"
        ) from error
    if not isinstance(before, dict):
        raise ConfigError(f"{record}: no settings of a run; choose another output or remove it")
    return before
