"""What a run stands on, as short names: its data and the model that it starts from, whose paths say nothing of them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from elva.data import captions
from elva.data.mbeir import INSTRUCTIONS, UNION_TRAIN_QUERIES, global_pool_file
from elva.models.adapters import base_of
from elva.training.config import BaseConfig, StageConfig

Identity = dict[str, str]

_PICTURE = re.compile(rb'"(?:query_)?img_path"\s*:\s*("(?:[^"\\]|\\.)+")')
_OF_A_MODEL = re.compile(
    r".*\.(safetensors|bin|jinja|model)(\.index\.json)?|(.*_)?config\.json|elva\.json|modules\.json|"
    r"(tokenizer|vocab|added_tokens|special_tokens_map)\.json|merges\.txt"
)
"""What loading may read. A note or a figure beside them is none of it."""
_CHUNK = 2**20


def changed(config: StageConfig, before: dict[str, Identity]) -> list[str]:
    """Which of ``data`` and ``model`` are not what they were, of an earlier answer of ``origin``.

    What is no longer there has not changed: a finished stage needs neither.
    """
    data, model = before.get("data", {}), before.get("model", {})
    names = []
    if data and not _is(data_identity(config), data):
        names.append("data")
    if model and not _is(model_identity(config, model.get("files")), model):
        names.append("model")
    return names


def origin(config: StageConfig) -> dict[str, Identity]:
    """The identities of a stage's data and of its start model."""
    return {"data": data_identity(config), "model": model_identity(config)}


def data_identity(config: StageConfig) -> Identity:
    """Of the files that training reads, byte by byte, and of the sizes of the pictures that they name; empty where
    there are none. The data of a catalogue, a benchmark or an evaluation beside them do not count.
    """
    source = Path(config.data)
    files = [source] if source.is_file() else sorted(_training_files(source))
    if not files:
        return {}
    found = hashlib.blake2b(digest_size=20)
    pictures: set[bytes] = set()
    for file in files:
        found.update(f"{file.relative_to(source)}\n".encode(errors="surrogateescape"))
        with file.open("rb") as lines:
            for line in lines:
                found.update(line)
                pictures.update(_PICTURE.findall(line))
    # each once: M-BEIR's queries are up-sampled, and a file system may take a millisecond for one
    for picture in sorted(pictures):
        found.update(_size(source, picture))
    return {"content": found.hexdigest()}


def model_identity(config: StageConfig, known: str | None = None) -> Identity:
    """Of a directory's weights and settings, and those of the base of an adapter in it; of a hub's model the commit
    that lies here. Empty for a preset, and where there is none.

    ``files`` are sizes and times. Where they are ``known`` the content, gigabytes perhaps, is not read.
    """
    if isinstance(config, BaseConfig):
        return {}
    files = _model_files(config.model)
    if not files:
        commit = _commit(config.model)
        return {"content": commit} if commit else {}
    stats = [(str(file), file.stat()) for file in files]
    listed = _short([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats])
    if listed == known:
        return {"files": listed}
    found = hashlib.blake2b(digest_size=20)
    for file in files:
        found.update(f"{file.name} {file.stat().st_size}\n".encode(errors="surrogateescape"))
        with file.open("rb") as opened:
            while chunk := opened.read(_CHUNK):
                found.update(chunk)
    return {"files": listed, "content": found.hexdigest()}


def _is(now: Identity, before: Identity) -> bool:
    return not now or any(now[key] == before.get(key) for key in now)


def _training_files(root: Path) -> Iterator[Path]:
    union = root / UNION_TRAIN_QUERIES
    queries = [union] if union.is_file() else (root / "query" / "train").glob("mbeir_*.jsonl")
    others = [root / global_pool_file("train"), root / captions.FILE, root / INSTRUCTIONS]
    yield from (file for file in (*queries, *others) if file.is_file())


def _size(root: Path, quoted: bytes) -> bytes:
    with suppress(ValueError, OSError):
        return b"%d" % (root / json.loads(quoted)).stat().st_size
    return b"absent"


def _model_files(name: str) -> list[Path]:
    if not Path(name).is_dir():
        return []
    places = [Path(name)]
    with suppress(OSError, ValueError):  # loading says what is wrong with it
        base = base_of(name)
        places += [Path(base)] if base is not None and base != name else []
    # the folders are sentence-transformers' modules
    files = [
        file for place in places for pattern in ("*", "*/config.json") for file in sorted(place.glob(pattern))
    ]
    return [file for file in files if _OF_A_MODEL.fullmatch(file.name) and file.is_file()]


def _commit(name: str) -> str | None:
    from transformers.utils import cached_file

    with suppress(OSError, ValueError):
        found = cached_file(name, "config.json", local_files_only=True)
        return None if found is None else Path(found).parent.name
    return None


def _short(value: object) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=20).hexdigest()
