"""Features of pictures on disk, for later epochs, runs and processes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from elva.files import atomic_file

NAME = "features"


class VisionStore:
    """One safetensors file a picture, named by a digest of its processed pixels and of the tower's weights.

    Writers may run at the same time: a file appears whole, and all writers of one name write the same. A damaged file
    counts as absent and is replaced.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        if self.directory.exists() and not self.directory.is_dir():
            raise ValueError(f"vision_cache: {directory} is a file, expected a directory or a new name")

    def get(self, picture: str, tower: str) -> Tensor | None:
        """Features on the CPU, bit for bit as they were put, or None."""
        try:
            with safe_open(self._path(picture, tower), framework="pt") as file:
                features: Tensor = file.get_tensor(NAME)
                intact = (file.metadata() or {}).get("digest") == digest(features)
        except (OSError, SafetensorError):
            return None
        return features if intact else None

    def put(self, picture: str, tower: str, features: Tensor) -> None:
        features = features.cpu().contiguous()
        with atomic_file(self._path(picture, tower)) as temporary:
            save_file({NAME: features}, temporary, metadata={"digest": digest(features)})

    def _path(self, picture: str, tower: str) -> Path:
        name = hashlib.blake2b(f"{picture}:{tower}".encode(), digest_size=20).hexdigest()
        return self.directory / name[:2] / f"{name[2:]}.safetensors"


def digest(*tensors: Tensor) -> str:
    """Of shapes, dtypes and bytes."""
    found = hashlib.blake2b(digest_size=20)
    for tensor in tensors:
        found.update(f"{tuple(tensor.shape)} {tensor.dtype};".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def tower_digest(tower: nn.Module) -> str:
    """Of a tower's weights, their precision included, and of its settings: heads, windows, levels."""
    config = getattr(tower, "config", None)
    settings = "" if config is None else json.dumps(config.to_dict(), sort_keys=True, default=str)
    state = tower.state_dict()
    return f"{digest(*state.values())} {hashlib.blake2b((settings + ' '.join(state)).encode()).hexdigest()}"
