"""Embeddings on disk: a killed evaluation goes on where it stopped, and processes share the work."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from elva.files import atomic_file
from elva.models.identity import describe
from elva.models.vision_store import digest
from elva.progress import track

SHARD = 1024
"""Inputs a file. What one process loses when it is killed."""
NAME = "embeddings"


class StoredEncoder:
    """An encoder whose embeddings are kept in ``directory``, one file for every ``SHARD`` inputs of a call.

    A file's name is a digest of the model (``model_digest``), the mode and the inputs (texts; paths, sizes and times of
    pictures), so another model or other data read nothing of it; a damaged file counts as absent and is made anew.
    Under ``torch.distributed`` each process encodes its share of the files, then all read all of them: the embeddings
    are those of one process. Inputs that hold pictures in memory are encoded and not kept.
    """

    def __init__(self, encoder: Any, directory: str | Path, model_digest: str) -> None:
        self.encoder = encoder
        self.directory = Path(directory)
        self.model_digest = model_digest
        if self.directory.exists() and not self.directory.is_dir():
            raise ValueError(f"directory: {directory} is a file, expected a directory or a new name")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def encode(
        self,
        inputs: Sequence[Any],
        instruction: Any = None,
        mode: str | None = None,
        read: str | None = None,
        batch_size: int = 32,
        show_progress: bool = False,
        return_summaries: bool = False,
    ) -> Any:
        """As ``MultimodalEncoder.encode``."""
        given = {"instruction": instruction, "mode": mode, "read": read, "batch_size": batch_size}
        options = {name: value for name, value in given.items() if value is not None}
        described = [describe(item) for item in inputs]
        if not described or None in described:
            return self.encoder.encode(
                inputs, show_progress=show_progress, return_summaries=return_summaries, **options
            )
        starts = range(0, len(inputs), SHARD)
        instructions = [_part(instruction, start) for start in starts]
        paths = [
            self._path(described[start : start + SHARD], own, mode, read)
            for start, own in zip(starts, instructions, strict=True)
        ]
        rank, world = _place()
        # Dealt from a process that the names choose: were it always the first, it would encode every small pool.
        dealer = int(paths[0].stem, 16)
        mine = [place for place in range(len(paths)) if (dealer + place) % world == rank]
        own = [place for place in mine if _load(paths[place]) is None]
        for place in track(own, "Encoding shards", total=len(own), show=show_progress):
            part = inputs[starts[place] : starts[place] + SHARD]
            if instruction is not None:
                options["instruction"] = instructions[place]
            _save(paths[place], *self.encoder.encode(part, return_summaries=True, **options))
        if world > 1:
            dist.barrier()
        embeddings, summaries = [], []
        for path in paths:
            found = _load(path)
            if found is None:
                raise OSError(
                    f"{path}: another process did not write it; do all processes see this directory?"
                )
            embeddings.append(found[0])
            summaries += found[1]
        whole = torch.cat(embeddings)
        return (whole, summaries) if return_summaries else whole

    def _path(self, described: Sequence[Any], instruction: Any, mode: str | None, read: str | None) -> Path:
        text = json.dumps([self.model_digest, described, instruction, mode, read], ensure_ascii=False)
        name = hashlib.blake2b(text.encode(), digest_size=20).hexdigest()
        return self.directory / f"{name}.safetensors"


def _part(instruction: Any, start: int) -> Any:
    """A shard's own instructions, where there is one for each input."""
    shared = instruction is None or isinstance(instruction, str)
    return instruction if shared else list(instruction[start : start + SHARD])


def _place() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _save(path: Path, embeddings: Tensor, summaries: list[str]) -> None:
    embeddings = embeddings.cpu().float().contiguous()
    text = json.dumps(summaries, ensure_ascii=False)
    with atomic_file(path) as temporary:
        save_file(
            {NAME: embeddings}, temporary, metadata={"digest": _digest(embeddings, text), "summaries": text}
        )


def _load(path: Path) -> tuple[Tensor, list[str]] | None:
    """Mapped into memory until it is used; None for an absent or damaged file."""
    try:
        with safe_open(path, framework="pt") as file:
            embeddings: Tensor = file.get_tensor(NAME)
            metadata = file.metadata() or {}
    except (OSError, SafetensorError):
        return None
    text = metadata.get("summaries", "")
    return (embeddings, json.loads(text)) if metadata.get("digest") == _digest(embeddings, text) else None


def _digest(embeddings: Tensor, text: str) -> str:
    return hashlib.blake2b(f"{digest(embeddings)} {text}".encode(), digest_size=20).hexdigest()
