"""A LoRA adapter on the language model, with the [RET] row trainable."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peft import LoraConfig, get_peft_model

from elva.models.token_rows import keep_rows_apart
from elva.training.config import LoraSettings

if TYPE_CHECKING:
    from elva.models.encoder import MultimodalEncoder

TARGETS = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"


def attach_adapter(encoder: MultimodalEncoder, settings: LoraSettings) -> None:
    """Wrap ``encoder.model``: only the language model's LoRA weights and the [RET] row get gradients."""
    lora = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=TARGETS,
        trainable_token_indices=[encoder.ret_id],
    )
    encoder.model = get_peft_model(encoder.model, lora)
    keep_rows_apart(encoder.model)
