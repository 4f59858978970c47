"""FSDP2, which splits every weight over the processes: which stages it can run, and how their result becomes whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from elva.training.config import ConfigError, InstructConfig, StageConfig, TextConfig
from elva.training.lora import attach_adapter

if TYPE_CHECKING:
    from elva.models.encoder import MultimodalEncoder


def refuse_unless_contrastive(config: StageConfig) -> None:
    """ConfigError for a stage that FSDP cannot run: it puts weights together in the wrapped model's forward alone, and
    summaries are decoded outside of it. The base stage trains all weights, which `whole_encoder` does not collect.
    """
    if isinstance(config, TextConfig) or (
        isinstance(config, InstructConfig) and config.summary_probability == 0
    ):
        return
    raise ConfigError(
        "FSDP runs the stages text and instruct (with summary_probability 0) only: summaries are decoded outside of "
        "the wrapped model. Launch with configs/accelerate/zero2.yaml, or with accelerate's plain multi-GPU"
    )


def trained_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """The trainable parameters on the CPU, whole. A collective where FSDP2 has split them: every process calls it."""
    return {
        name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().cpu()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def whole_encoder(config: TextConfig | InstructConfig, trained: dict[str, Tensor]) -> MultimodalEncoder:
    """The stage's starting model with its adapter as trained, on the CPU."""
    from elva.models.encoder import MultimodalEncoder

    encoder = MultimodalEncoder.from_pretrained(config.model, device="cpu")
    attach_adapter(encoder, config.lora)
    names = {name for name, parameter in encoder.model.named_parameters() if parameter.requires_grad}
    if names != set(trained):
        raise RuntimeError(
            f"trained weights that the adapter does not have: {sorted(names ^ set(trained))[:3]}"
        )
    encoder.model.load_state_dict(trained, strict=False)
    return encoder
