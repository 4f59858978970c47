"""Each distinct picture through a frozen vision tower once: rollouts, policy, reference and later epochs reuse it."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from elva.models.cache import TensorCache
from elva.models.processing import Picture

CACHE_BYTES = 1024 * 2**20
PATCHES = 8192
"""The tower runs on at most so many patches at once (one picture at least): its memory does not grow with the batch."""


class FrozenVision:
    """Pictures → image features ``[tokens, H · (1 + deepstack levels)]``, without gradient, in the pictures' order.

    Features of files are kept on the tower's device (``CACHE_BYTES``, least recently used dropped first) for as long
    as the tower's weights are the same tensors in the same state; pictures that are no files are encoded anew each
    time. Qwen3-VL's deepstack features stand beside the last layer's.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone = backbone
        self.cache = TensorCache(CACHE_BYTES)
        self.seconds = 0.0
        self._state: tuple[Any, ...] = ()

    @property
    def usable(self) -> bool:
        """No weight of the tower takes a gradient here or is split by FSDP, and this transformers takes features in
        place of pixels."""
        trained = torch.is_grad_enabled() and any(p.requires_grad for p in self._tower.parameters())
        split = any(hasattr(p, "full_tensor") for p in self._tower.parameters())
        return (
            not trained
            and not split
            and "mm_encoder_outputs" in inspect.signature(self.backbone.forward).parameters
        )

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Picture]) -> Tensor:
        """Features of at least one picture, on the tower's device and in its dtype."""
        self._forget_if_trained()
        known: dict[Any, Tensor] = {}
        missing: dict[Any, Picture] = {}
        for picture in pictures:
            found = None if picture.key is None else self.cache.get(picture.key)
            if found is None:
                missing[_name(picture)] = picture
            else:
                known[_name(picture)] = found[0]
        if missing:
            encoded = (features for part in _parts(missing.values()) for features in self._encode(part))
            for (name, picture), features in zip(missing.items(), encoded, strict=True):
                known[name] = features
                if picture.key is not None:
                    # a slice would keep the features of the whole call alive
                    self.cache.put(picture.key, (features.clone(),))
        return torch.cat([known[_name(picture)] for picture in pictures])

    def _encode(self, pictures: Sequence[Picture]) -> Sequence[Tensor]:
        start = time.perf_counter()
        weight = next(self._tower.parameters())
        pixels = torch.cat([picture.pixels for picture in pictures]).to(weight.device, weight.dtype)
        grid = torch.stack([picture.grid for picture in pictures]).to(weight.device)
        out = self._tower(pixels, grid_thw=grid, return_dict=True)
        levels = getattr(out, "deepstack_features", None) or []
        sizes = (grid.prod(-1) // self._tower.spatial_merge_size**2).tolist()
        features = torch.cat([out.pooler_output, *levels], dim=-1).split(sizes)
        self.seconds += time.perf_counter() - start
        return features

    def _forget_if_trained(self) -> None:
        # in-place updates (an optimiser's step, a loaded checkpoint) raise a tensor's version
        state = tuple((p.data_ptr(), p._version, p.dtype) for p in self._tower.parameters())
        if state != self._state:
            self.cache.clear()
            self._state = state

    @property
    def _tower(self) -> Any:
        return self.backbone.visual


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
    yield part


def _name(picture: Picture) -> Any:
    return id(picture.pixels) if picture.key is None else picture.key
