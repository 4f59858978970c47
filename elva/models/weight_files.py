"""What the files of a model's weights say before they are loaded: names, dtypes and shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from elva.models.files import weight_files

SHOWN = 3
EMBEDDINGS, HEAD = "language_model.embed_tokens.weight", "lm_head.weight"


class Entry(NamedTuple):
    """A weight as its file has it; ``dtype`` is torch's, or safetensors' name for it (F32, BF16, F8_E4M3 …)."""

    name: str
    dtype: Any
    shape: tuple[int, ...]


def check_files(name: str, label: str, packed: bool = False) -> None:
    """Refuse files of weights that transformers would take something else for, or stop at without a word that helps.

    ``packed``: the weights are quantized and may be integers. ``label`` names the checkpoint in errors.

    Raises:
        ValueError: a damaged file, a weight that is there twice, whose dtype is none of floating point, or a head of
            another shape than the embeddings.
    """
    entries = [entry for file in weight_files(name) for entry in _entries(file, label)]
    if not packed:
        require_floating(label, entries)
    by_name = require_once(label, ((_canonical(entry.name), entry) for entry in entries))
    embeddings, head = by_name.get(EMBEDDINGS), by_name.get(HEAD)
    if embeddings and head and embeddings.shape != head.shape:
        raise ValueError(
            f"{label}: {head.name} is {list(head.shape)} and {embeddings.name} {list(embeddings.shape)}, expected "
            "one shape for both"
        )


def require_floating(label: str, entries: Iterable[Entry]) -> None:
    """ValueError for a weight whose dtype is none of floating point: it was cast, or is no weight."""
    wrong = [f"{entry.name} {entry.dtype}" for entry in entries if not _is_floating(entry.dtype)]
    if wrong:
        raise ValueError(f"{label}: {len(wrong)} weights are no floating-point numbers ({listed(wrong)})")


def require_once(label: str, named: Iterable[tuple[str, Entry]]) -> dict[str, Entry]:
    """Weights by the names of their layers. ValueError where two are of one layer: one of them would win in silence."""
    found: dict[str, Entry] = {}
    twice = []
    for key, entry in named:
        other = found.setdefault(key, entry)
        if other is not entry:
            twice.append(f"{other.name} and {entry.name}")
    if twice:
        raise ValueError(
            f"{label}: {len(twice)} weights are there twice ({listed(twice)}), expected one for each layer"
        )
    return found


def listed(words: Iterable[str]) -> str:
    """The first of them, separated by commas."""
    words = list(words)
    return ", ".join(words[:SHOWN]) + (", …" if len(words) > SHOWN else "")


def damaged(file: Path | str, error: Exception) -> ValueError:
    """The error for a file of weights that safetensors cannot read."""
    return ValueError(f"{file}: the file of weights is damaged or cut off: {error}")


def pickled(label: str) -> ValueError:
    """The error for a pickle that is no dictionary of tensors; nothing else in it is unpickled."""
    return ValueError(
        f"{label}: its .bin file holds more than tensors, or is damaged, and is not read; save the weights as "
        ".safetensors"
    )


def _entries(file: Path, label: str) -> Iterator[Entry]:
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118
                    part = opened.get_slice(key)
                    yield Entry(key, part.get_dtype(), tuple(part.get_shape()))
        except SafetensorError as error:
            raise damaged(file, error) from error
        return
    try:
        tensors = torch.load(file, map_location="meta", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # what a damaged pickle raises is of many kinds
        raise pickled(label) from error
    if not isinstance(tensors, dict) or not all(
        isinstance(tensor, torch.Tensor) for tensor in tensors.values()
    ):
        raise pickled(label)
    yield from (Entry(str(key), tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items())


def _is_floating(dtype: Any) -> bool:
    return dtype.is_floating_point if isinstance(dtype, torch.dtype) else str(dtype).startswith(("F", "BF"))


def _canonical(name: str) -> str:
    """One name for what transformers called a layer before and since 4.52, with the base model's prefix or without."""
    own = name.removeprefix("model.")
    return own if re.match(r"language_model\.|visual\.|lm_head\.", own) else f"language_model.{own}"
