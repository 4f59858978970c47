"""What an output directory holds already: a finished model, and the settings that it or its checkpoints came from."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from elva.files import atomic_file
from elva.models.files import weight_files
from elva.training.checkpoints import CHECKPOINTS, unreadable
from elva.training.config import ConfigError, StageConfig
from elva.training.origin import changed, origin

RECORD = "config.json"
PROCESSES = "processes"
"""In the record beside the settings: how many processes (or GPUs of one process) share a step."""
ORIGIN = "origin"
"""Beside them: what the data and the start model were (`elva.training.origin`)."""
WEIGHTS = "model.safetensors"
UNTRAINED = frozenset(
    {
        PROCESSES,
        ORIGIN,
        "output",
        "vision_cache",
        "trainer.dataloader_num_workers",
        "trainer.dataloader_persistent_workers",
        "trainer.dataloader_prefetch_factor",
        "trainer.ddp_timeout",
        "trainer.disable_tqdm",
        "trainer.log_level",
        "trainer.log_level_replica",
        "trainer.log_on_each_node",
        "trainer.logging_first_step",
        "trainer.logging_steps",
        "trainer.logging_strategy",
        "trainer.report_to",
        "trainer.run_name",
        "trainer.save_steps",
        "trainer.save_strategy",
        "trainer.save_total_limit",
    }
)
"""What a run may go on with otherwise: no weight hangs on it."""
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json")


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
        if why := unreadable(file):
            return f"has a damaged {file.name} ({why})"
    return None if files else f"lacks {WEIGHTS}"


def require_whole(model: Path) -> None:
    """ConfigError unless the model directory can be loaded: what a stage returns is never half of one."""
    if lack := is_whole(model):
        raise ConfigError(f"{model} {lack}; remove the directory, and the same command writes it again")


def require_places(output: Path) -> None:
    """ConfigError where something else has the name of what a run writes at its end or on its way."""
    if output.exists() and not output.is_dir():
        raise ConfigError(f"output: {output} is a file, expected a directory or a new name")
    for names, right, kind in (
        (("model", CHECKPOINTS), Path.is_dir, "a directory"),
        ((RECORD, "history.json", "negatives.json"), Path.is_file, "a file"),
    ):
        for name in names:
            if os.path.lexists(output / name) and not right(output / name):
                raise ConfigError(f"{output / name}: is not {kind}, expected {kind} or nothing; remove it")


def same_settings(config: StageConfig, output: Path) -> None:
    """A run goes on only with the settings it began with. Raises ConfigError."""
    before = _record(output)
    if before is None:
        return
    now, then = _flat(json.loads(json.dumps(asdict(config)))), _flat(before)
    moved = {key for key in ("data", "model") if _is_the_same_place(config, before, key)}
    other = sorted(key for key in {*now, *then} - moved if now.get(key) != then.get(key))
    if other:
        raise ConfigError(
            f"{output} holds a run with other settings ({', '.join(other)}); choose another output or remove it"
        )


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings by their whole names, without those that change nothing of what is trained."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= (
            {f"{key}.{name}": own for name, own in value.items()} if isinstance(value, dict) else {key: value}
        )
    return {
        key: value for key, value in flat.items() if key not in UNTRAINED and not key.startswith(f"{ORIGIN}.")
    }


def _is_the_same_place(config: StageConfig, before: dict[str, Any], key: str) -> bool:
    """Another spelling of the path, or a directory that was moved: `same_origin` compares what lies there."""
    now, then = getattr(config, key), before.get(key)
    if not (isinstance(then, str) and os.path.lexists(now)):
        return False
    known = before.get(ORIGIN)
    return Path(now).resolve() == Path(then).resolve() or bool(isinstance(known, dict) and known.get(key))


def same_origin(config: StageConfig, output: Path) -> None:
    """What was trained is of the data and the start model that are there now. Raises ConfigError."""
    before = (_record(output) or {}).get(ORIGIN, {})
    if not isinstance(before, dict) or not all(isinstance(own, dict) for own in before.values()):
        raise ConfigError(
            f"{output / RECORD}: {ORIGIN} is no object of objects; choose another output or remove it"
        )
    for name in changed(config, before):
        raise ConfigError(
            f"{name}: the content of {getattr(config, name)} has changed since the run in {output} began; choose "
            "another output or remove it"
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
    """Keep the settings of a run that begins, and what it stands on."""
    record: dict[str, Any] = {**asdict(config), PROCESSES: processes, ORIGIN: origin(config)}
    with atomic_file(output / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=2), encoding="utf-8")


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
