"""The encoder: prompts, input processing, attention back-ends, generation and the tiny preset."""

from __future__ import annotations

from elva.models.batches import Batch
from elva.models.config import EncoderConfig
from elva.models.encoder import MultimodalEncoder

__all__ = ["Batch", "EncoderConfig", "MultimodalEncoder"]
