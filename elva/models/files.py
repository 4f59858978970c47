"""Files of a model, in a directory or on the Hugging Face Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from elva.files import leads_out

WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def file_of(name: str, file: str) -> Path | None:
    """Where ``file`` of the directory or hub name ``name`` lies here; None where there is no such file."""
    if Path(name).is_dir():
        return Path(name) / file if (Path(name) / file).is_file() else None
    from transformers.utils import cached_file, has_file

    found = cached_file(name, file) if has_file(name, file) else None
    return None if found is None else Path(found)


def weight_files(name: str) -> list[Path]:
    """The files that hold the weights, in the order in which transformers looks for them; empty where there are none.

    Raises:
        ValueError: an index that names no files, or files of other directories. FileNotFoundError: it names one that
            is not there.
    """
    for file in WEIGHTS:
        if whole := file_of(name, file):
            return [whole]
        if index := file_of(name, f"{file}.index.json"):
            return [_shard(name, index, shard) for shard in _shards(index)]
    return []


def _shards(index: Path) -> list[str]:
    values = read_object(index)
    shards = values.get("weight_map")
    if (
        not isinstance(shards, dict)
        or not shards
        or not all(isinstance(shard, str) for shard in shards.values())
    ):
        raise ValueError(f"{index}: weight_map is {type(shards).__name__}, expected names of files")
    if not isinstance(values.get("metadata"), dict):  # transformers writes into it
        raise ValueError(f"{index}: metadata is {type(values.get('metadata')).__name__}, expected an object")
    return sorted(set(shards.values()))


def _shard(name: str, index: Path, shard: str) -> Path:
    require_below(index, shard)
    found = file_of(name, shard)
    if found is None:
        raise FileNotFoundError(f"{index}: there is no file {shard!r}, which it names, beside it")
    return found


def require_below(file: Path, name: str) -> None:
    """ValueError for a name in ``file`` that leads out of its directory."""
    if leads_out(name) or "\0" in name:
        raise ValueError(
            f"{file}: {name[:200]!r} leads out of the directory, expected the name of a file in it"
        )


def read_json(file: Path) -> Any:
    """What a JSON file holds. ValueError naming the file for anything else."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: no JSON: {error}") from error


def read_object(file: Path) -> dict[str, Any]:
    """As `read_json`, of an object."""
    values = read_json(file)
    if not isinstance(values, dict):
        raise ValueError(f"{file}: {type(values).__name__} given, expected a JSON object")
    return values
