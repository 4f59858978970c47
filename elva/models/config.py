"""How a model embeds: the settings kept beside its weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from elva.models.prompts import get_prompt

CONFIG_FILE = "elva.json"
POOLING_FILE = "1_Pooling/config.json"
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
        if self.max_summary_tokens < 1:
            raise ValueError(f"max_summary_tokens: {self.max_summary_tokens} given, expected at least 1")
        if self.max_pixels is not None and self.max_pixels < 1:
            raise ValueError(f"max_pixels: {self.max_pixels} given, expected at least 1 or None")


def check_choice(argument: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{argument}: {value!r} given, expected one of {', '.join(choices)}")


def read_config(*directories: Path) -> EncoderConfig:
    """How the model in the first of ``directories`` that says so embeds; the defaults where none does.

    Read are our own ``elva.json``, and sentence-transformers' pooling: its "lasttoken" is the state behind the prompt,
    which is ``read="before"``, in direct mode. Prompts of others are not read: the instructions are the data's.

    Raises:
        ValueError: unknown keys in ``elva.json``, or another pooling, which no position of a causal model stands for.
    """
    for directory in directories:
        if (file := directory / CONFIG_FILE).is_file():
            return _own_config(file)
        if (file := directory / POOLING_FILE).is_file():
            return _pooling_config(file)
    return EncoderConfig()


def _own_config(file: Path) -> EncoderConfig:
    values = json.loads(file.read_text(encoding="utf-8"))
    unknown = sorted(set(values) - {field.name for field in fields(EncoderConfig)})
    if unknown:
        raise ValueError(f"{file}: unknown keys {', '.join(unknown)}; written by another version of elva?")
    return EncoderConfig(**values)


def _pooling_config(file: Path) -> EncoderConfig:
    values = json.loads(file.read_text(encoding="utf-8"))
    flags = [key.removeprefix("pooling_mode_") for key, value in values.items() if value is True]
    modes = values.get("pooling_mode") or [flag for flag in flags if flag != "include_prompt"]
    if modes not in ("lasttoken", ["lasttoken"]):
        raise ValueError(
            f"{file}: pooling {modes} given, expected lasttoken (an embedding is read at one position)"
        )
    return EncoderConfig(mode="direct", read="before")
