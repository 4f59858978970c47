"""How a model embeds: the settings kept beside its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from elva.models.files import file_of, read_object
from elva.models.pooling import pooling_of
from elva.models.prompts import get_prompt

CONFIG_FILE = "elva.json"
MODES = ("generative", "direct")
READS = ("at", "before")
IMAGE_BACKENDS = ("pil", "torchvision")


@dataclass(frozen=True)
class EncoderConfig:
    """How a model embeds; saved beside its weights in ``elva.json``.

    ``mode``: "generative" (write a summary, then ``[RET]``: paper, section 3) or "direct" (``[RET]`` at
    once). ``read``: the hidden state "at" ``[RET]`` or the one just "before" it. ``max_summary_tokens`` ≥ 1.
    ``prompt``: a name in ``elva.models.prompts``. ``max_pixels``: pictures are scaled down to this area
    (300·28·28 as LamRA does); None leaves the image processor's own limit. ``image_backend``: "pil" or
    "torchvision", whose resizing differs by up to 7e-5; None: transformers' choice, torchvision where it is installed.
    """

    mode: str = "generative"
    read: str = "at"
    max_summary_tokens: int = 64
    prompt: str = "paper"
    max_pixels: int | None = 300 * 28 * 28
    image_backend: str | None = None

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, MODES)
        check_choice("read", self.read, READS)
        get_prompt(self.prompt)
        if self.image_backend is not None:
            check_choice("image_backend", self.image_backend, IMAGE_BACKENDS)
        if not _is_count(self.max_summary_tokens):
            raise ValueError(
                f"max_summary_tokens: {self.max_summary_tokens!r} given, expected a whole number of at least 1"
            )
        if self.max_pixels is not None and not _is_count(self.max_pixels):
            raise ValueError(
                f"max_pixels: {self.max_pixels!r} given, expected a whole number of at least 1 or None"
            )


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1


def check_choice(argument: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{argument}: {value!r} given, expected one of {', '.join(choices)}")


def read_config(*names: str) -> EncoderConfig:
    """How the model in the first of ``names`` (directories or hub names) that says so embeds; else the defaults.

    Read are our own ``elva.json``, and sentence-transformers' pooling: its "lasttoken" is the state behind the prompt,
    which is ``read="before"``, in direct mode. Prompts of others are not read: the instructions are the data's.

    Raises:
        ValueError: unknown keys or wrong values in ``elva.json``, another pooling, which no position of a causal model
            stands for, or a module behind it that changes the embedding.
    """
    for name in names:
        pooled = pooling_of(name)
        if file := file_of(name, CONFIG_FILE):
            return _own_config(file)
        if pooled is not None:
            pooled.require_last_token()
            return EncoderConfig(mode="direct", read="before")
    return EncoderConfig()


def _own_config(file: Path) -> EncoderConfig:
    values = read_object(file)
    unknown = sorted(set(values) - {field.name for field in fields(EncoderConfig)})
    if unknown:
        raise ValueError(f"{file}: unknown keys {', '.join(unknown)}; written by another version of elva?")
    try:
        return EncoderConfig(**values)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
