"""The models and sizes of `step`: real architectures with random weights, since none can be downloaded there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.rl_problem import CORPUS, SEED, Setting
from elva.models import tiny
from elva.models.config import EncoderConfig
from elva.models.encoder import MultimodalEncoder


@dataclass(frozen=True)
class Preset:
    """``encoder(device)`` has bfloat16 weights there."""

    setting: Setting
    encoder: Callable[[str], MultimodalEncoder]


def qwen2_vl_2b(device: str) -> MultimodalEncoder:
    """Qwen2-VL-2B as its configuration on the hub has it, all weights random, made on the device.

    The tokenizer is the tiny preset's: of the head's 151,936 rows those of its 2,048 tokens can be sampled, and all
    are multiplied.
    """
    from transformers import Qwen2VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = tiny.train_tokenizer(CORPUS)
    torch.manual_seed(SEED)
    with torch.device(device):
        model = Qwen2VLForConditionalGeneration._from_config(
            _qwen2_vl_2b_config(tokenizer), dtype=torch.bfloat16
        )
    size = {"shortest_edge": 448 * 448, "longest_edge": 448 * 448}
    processor = Qwen2VLImageProcessorPil(size=size, patch_size=14, temporal_patch_size=2, merge_size=2)
    return MultimodalEncoder(
        model.eval(), tokenizer, processor, EncoderConfig(prompt="paper", max_pixels=None)
    )


def _qwen2_vl_2b_config(tokenizer: Any) -> Any:
    from transformers import Qwen2VLConfig

    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in _TOKENS.items()}
    text = {
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "intermediate_size": 8960,
        "vocab_size": 151_936,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        "bos_token_id": ids["end"],
        "eos_token_id": ids["turn_end"],
        "pad_token_id": ids["end"],
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": 32,
        "embed_dim": 1280,
        "num_heads": 16,
        "hidden_size": 1536,
        "mlp_ratio": 4,
        "patch_size": 14,
    }
    return Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["image"],
        video_token_id=ids["video"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        tie_word_embeddings=True,
    )


_TOKENS = {
    "end": "<|endoftext|>",
    "turn_end": "<|im_end|>",
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
}


_SMALL = {
    "text": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 128,
    },
    "vision": {"depth": 2, "embed_dim": 64, "num_heads": 2},
}


def _small(device: str) -> MultimodalEncoder:
    encoder = tiny.create(CORPUS, preset=_SMALL, seed=SEED, image_size=96)
    encoder.model.to(device, torch.bfloat16)
    return encoder


PRESETS = {
    "qwen2-vl-2b": Preset(
        Setting(prompt_tokens=320, completion_tokens=64, num_generations=8, negatives=14, image_size=448),
        qwen2_vl_2b,
    ),
    # for a rehearsal on a CPU
    "tiny": Preset(
        Setting(prompt_tokens=40, completion_tokens=4, num_generations=2, negatives=2, image_size=96), _small
    ),
}
