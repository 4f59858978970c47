"""Each distinct picture through a frozen vision tower once: rollouts, policy, reference and later epochs reuse it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from elva.models.cache import TensorCache
from elva.models.processing import Picture
from elva.models.vision_store import VisionStore, digest, tower_digest
from elva.stopwatch import Stopwatch

CACHE_BYTES = 1024 * 2**20
SAMPLES = 16
"""So many values of each weight, evenly spread, are compared in every call without gradient: milliseconds."""
PATCHES = 8192
"""The tower runs on at most so many patches at once (one picture at least): its memory does not grow with the batch."""


class FrozenVision:
    """Pictures → image features ``[tokens, H · (1 + deepstack levels)]``, without gradient, in the pictures' order.

    Pictures are known by their content. Features are kept on the tower's device (``CACHE_BYTES``, least recently used
    dropped first) for as long as the tower's weights are the same tensors in the same state: without gradient, as
    `encode` runs, a write through ``.data`` is noticed too, where it changes one of `SAMPLES` values of a weight. With
    ``store`` features are also looked up and kept on disk. Qwen3-VL's deepstack features stand beside the last layer's.
    They are computed in the precision of the tower's weights, whatever autocast says: other steps and runs read them
    again.
    """

    def __init__(self, backbone: nn.Module, stopwatch: Stopwatch) -> None:
        self.backbone = backbone
        self.stopwatch = stopwatch
        self.cache = TensorCache(CACHE_BYTES)
        self.store: VisionStore | None = None
        self._names: dict[tuple[Any, ...], str] = {}
        self._versions: tuple[Any, ...] = ()
        self._values = b""
        self._digest: str | None = None

    @property
    def usable(self) -> bool:
        """No weight of the tower takes a gradient here."""
        return not (torch.is_grad_enabled() and any(p.requires_grad for p in self._tower.parameters()))

    def __call__(self, pictures: Sequence[Picture]) -> Tensor:
        """Features of at least one picture, on the tower's device and in its dtype."""
        self._forget_if_trained()
        with torch.no_grad():
            return self._features(pictures)

    def _features(self, pictures: Sequence[Picture]) -> Tensor:
        names = [self._name(picture) for picture in pictures]
        known: dict[str, Tensor] = {}
        missing: dict[str, Picture] = {}
        for name, picture in zip(names, pictures, strict=True):
            found = self._find(name)
            if found is None:
                missing[name] = picture
            else:
                known[name] = found
        encoded = (features for part in _parts(missing.values()) for features in self._encode(part))
        for name, features in zip(missing, encoded, strict=True):
            # a slice would keep the features of the whole call alive
            known[name] = features.clone()
            self.cache.put(name, (known[name],))
            if self.store is not None:
                self.store.put(name, self._fingerprint, features)
        return torch.cat([known[name] for name in names])

    def _find(self, name: str) -> Tensor | None:
        kept = self.cache.get(name)
        if kept is not None:
            return kept[0]
        stored = None if self.store is None else self.store.get(name, self._fingerprint)
        if stored is None:
            return None
        features = stored.to(next(self._tower.parameters()).device)
        self.cache.put(name, (features,))
        return features

    def _name(self, picture: Picture) -> str:
        """Its content's digest; of a file's, found once."""
        if picture.key is None:
            return digest(picture.pixels, picture.grid)
        if picture.key not in self._names:
            self._names[picture.key] = digest(picture.pixels, picture.grid)
        return self._names[picture.key]

    @property
    def _fingerprint(self) -> str:
        if self._digest is None:
            self._digest = tower_digest(self._tower)
        return self._digest

    def _encode(self, pictures: Sequence[Picture]) -> Sequence[Tensor]:
        weight = next(self._tower.parameters())
        grid = torch.stack([picture.grid for picture in pictures])
        sizes = (grid.prod(-1) // self._tower.spatial_merge_size**2).tolist()
        with (
            self.stopwatch.measure("vision", weight.device),
            torch.autocast(weight.device.type, enabled=False),
        ):
            pixels = torch.cat([picture.pixels for picture in pictures]).to(weight.device, weight.dtype)
            out = self._tower(pixels, grid_thw=grid.to(weight.device), return_dict=True)
            levels = getattr(out, "deepstack_features", None) or []
            return torch.cat([out.pooler_output, *levels], dim=-1).split(sizes)

    def _forget_if_trained(self) -> None:
        # in-place updates (an optimiser's step, a loaded checkpoint) raise a tensor's version, those of .data do not
        weights = list(self._tower.parameters())
        versions = tuple((p.data_ptr(), p._version, p.dtype) for p in weights)
        # reading values waits for the device, which a training step must not
        values = self._values if torch.is_grad_enabled() else _samples(weights)
        if versions != self._versions or (self._values and values != self._values):
            self.cache.clear()
            self._digest = None
            self._values = b""
        self._versions = versions
        if not torch.is_grad_enabled():
            self._values = values

    @property
    def _tower(self) -> Any:
        return self.backbone.visual


def _samples(weights: Iterable[Tensor]) -> bytes:
    """Bytes of a few values of every weight; of a sharded one, of the part that is here."""
    parts = []
    for weight in weights:
        local: Any = weight.to_local() if hasattr(weight, "to_local") else weight
        flat = local.detach().reshape(-1)
        parts.append(flat[:: max(1, flat.numel() // SAMPLES)].double())
    return torch.cat(parts).cpu().numpy().tobytes() if parts else b""


def _parts(pictures: Iterable[Picture]) -> Iterator[list[Picture]]:
    part: list[Picture] = []
    patches = 0
    for picture in pictures:
        size = len(picture.pixels)
        if part and patches + size > PATCHES:
            yield part
            part, patches = [], 0
        part.append(picture)
        patches += size
    if part:
        yield part
