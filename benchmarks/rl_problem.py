"""A made-up step of stage 3 of exact sizes: one query, its positive and N negatives, each a text with a picture.

It runs where training would: on a GPU if there is one, behind `accelerator.prepare`, in the mixed precision asked for.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import TrainingArguments

from elva.models import tiny
from elva.models.encoder import MultimodalEncoder
from elva.training.config import RLConfig, build
from elva.training.credit import Relations
from elva.training.lora import attach_adapter
from elva.training.rl import RLTrainer

SIZES = {
    "text": {
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "intermediate_size": 1024,
    },
    "vision": {"depth": 4, "embed_dim": 128, "num_heads": 4},
}
CORPUS = ["a red ball under a chair", "two dogs left of a cat"]
SEED = 0
SMALLEST = 96


@dataclass(frozen=True)
class Setting:
    """Sizes of a step. ``prompt_tokens`` P counts the picture's, ``completion_tokens`` R the final [RET].

    ``image_size`` 0: no picture.
    """

    prompt_tokens: int = 256
    completion_tokens: int = 16
    num_generations: int = 8
    negatives: int = 14
    image_size: int = 312

    @property
    def ideal(self) -> float:
        """Tokens of separate sequences over tokens with the prompt shared."""
        p, r, g = self.prompt_tokens, self.completion_tokens, self.num_generations
        return g * (p + r) / (p + g * r)

    def varied(self, **changes: int) -> Setting:
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class Problem:
    """A trainer, the step's items, the query first, and the model as accelerate wraps it."""

    trainer: RLTrainer
    items: list[dict[str, Any]]
    model: nn.Module

    @property
    def encoder(self) -> MultimodalEncoder:
        return self.trainer.encoder

    @property
    def device(self) -> torch.device:
        return self.encoder.device


def make_problem(
    setting: Setting,
    folder: Path,
    *,
    encoder: MultimodalEncoder | None = None,
    device: str | None = None,
    bf16: bool = False,
    gradient_checkpointing: bool = False,
) -> Problem:
    """A trainer with a randomised adapter on ``encoder`` (default: an untrained one), and the step's items.

    ``device``: "cuda" or "cpu", by default a GPU where there is one.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if encoder is None:
        encoder = tiny.create(CORPUS, preset=SIZES, seed=SEED, image_size=setting.image_size or SMALLEST)
    encoder.model.to(device)
    items = make_items(encoder, setting)
    config = build(
        RLConfig,
        {
            "model": "",
            "data": "",
            "output": str(folder),
            "lora": {"r": 16, "alpha": 32, "dropout": 0.0},
            "rl": {
                "num_generations": setting.num_generations,
                # the untrained model hardly ever ends by itself: [RET] is appended
                "max_completion_length": setting.completion_tokens - 1,
            },
        },
    )
    attach_adapter(encoder, config.lora)
    randomise(encoder)
    if gradient_checkpointing:
        encoder.model.gradient_checkpointing_enable({"use_reentrant": False})
    arguments = TrainingArguments(
        output_dir=str(folder), report_to="none", use_cpu=device == "cpu", bf16=bf16
    )
    data: Any = None  # the items are handed to the step, not drawn
    trainer = RLTrainer(encoder, arguments, [], config, data)
    encoder.model.train()
    return Problem(trainer, items, trainer.accelerator.prepare(trainer.model))


def make_items(encoder: MultimodalEncoder, setting: Setting) -> list[dict[str, Any]]:
    """N + 2 different texts with different pictures, each a prompt of exactly P tokens."""
    generator = torch.Generator().manual_seed(SEED)
    shape = (setting.image_size, setting.image_size, 3)

    def item(digits: int) -> dict[str, Any]:
        # a digit is always one token
        text = "".join(map(str, torch.randint(0, 10, (digits,), generator=generator).tolist()))
        if not setting.image_size:
            return {"text": text}
        pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        return {"text": text, "image": Image.fromarray(pixels.numpy())}

    digits = 1 + setting.prompt_tokens - prompt_length(encoder, item(1))
    if digits < 1:
        least = setting.prompt_tokens + 1 - digits
        raise ValueError(f"prompt_tokens: {setting.prompt_tokens} given, expected at least {least}")
    return [item(digits) for _ in range(setting.negatives + 2)]


def prompt_length(encoder: MultimodalEncoder, item: dict[str, Any]) -> int:
    return encoder.prepare([item], image_features=False)["input_ids"].shape[1]


def randomise(encoder: MultimodalEncoder) -> None:
    """Adapter and [RET] row away from their starting values, so that no gradient is 0 by construction."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, parameter in encoder.model.named_parameters():
            if parameter.requires_grad:
                # on the CPU, so that every device has the same
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_((0.03 if "lora_" in name else 0.07) * drawn)


def relations(candidates: int, device: torch.device) -> Relations:
    """One query whose positive is the first candidate; all others are its negatives."""
    owned = torch.ones(1, candidates, dtype=torch.bool, device=device)
    negatives = owned.clone()
    negatives[0, 0] = False
    return Relations(torch.tensor([0], device=device), negatives, owned)
