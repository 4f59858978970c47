"""transformers' image processor of a checkpoint, and an error where it does not fit the vision tower."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from PIL import Image

from elva.models import foreign_code
from elva.models.files import file_of, read_object

SETTINGS = "preprocessor_config.json"


def load_image_processor(
    name: str, tower: Any, backend: str | None = None, trust_remote_code: bool = False
) -> Any:
    """transformers' image processor of a directory or hub name; ``backend`` as in `EncoderConfig.image_backend`.

    ``tower``: the vision tower's settings. ``trust_remote_code``: run code that the checkpoint brings for it.

    Raises:
        ValueError: settings that cannot be used, or that cut pictures into other patches than the tower takes.
        OSError: there are none.
    """
    # From its own module: where torchvision is absent, transformers before 5.18 has a stub by that name in its root.
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    options = {} if backend is None else {"backend": backend}
    if found := file_of(name, SETTINGS):
        read_object(found)
    with foreign_code.refused(name, SETTINGS):
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=trust_remote_code, **options)
    _require_patches(processor, tower, name)
    _require_pixels(processor, name)
    return processor


def image_backend(image_processor: Any) -> str:
    """Which of `IMAGE_BACKENDS` it is; what transformers saves of an image processor does not tell."""
    return "pil" if type(image_processor).__name__.endswith("Pil") else "torchvision"


def settings_digest(image_processor: Any) -> bytes:
    """Of its kind and all its settings as they are now."""
    settings = repr([type(image_processor).__name__, sorted(vars(image_processor).items())])
    return hashlib.blake2b(settings.encode(), digest_size=16).digest()


def _require_patches(processor: Any, tower: Any, name: str) -> None:
    expected = {
        "patch_size": tower.patch_size,
        "temporal_patch_size": tower.temporal_patch_size,
        "merge_size": tower.spatial_merge_size,
    }
    for key, value in expected.items():
        if getattr(processor, key, None) != value:
            raise ValueError(
                f"{name}/{SETTINGS}: {key} is {getattr(processor, key, None)!r}, expected {value} as in the vision "
                "tower's settings"
            )
    shortest, longest = (dict(processor.size).get(key) for key in ("shortest_edge", "longest_edge"))
    if not (type(shortest) is int and type(longest) is int and 0 < shortest <= longest):
        raise ValueError(
            f"{name}/{SETTINGS}: size has shortest_edge {shortest!r} and longest_edge {longest!r}, expected the "
            "fewest and the most pixels of a picture"
        )


def _require_pixels(processor: Any, name: str) -> None:
    """A black and a white picture come out as numbers that differ."""
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("black", "white")]
    with foreign_code.refused(name, SETTINGS):
        pixels = torch.as_tensor(processor(images=pictures, return_tensors="pt")["pixel_values"]).float()
    black, white = pixels.chunk(2)
    if not pixels.isfinite().all() or torch.equal(black, white):
        raise ValueError(
            f"{name}/{SETTINGS}: black and white come out as {black.mean():g} and {white.mean():g}, expected two "
            "numbers; look at image_mean, image_std and rescale_factor"
        )
