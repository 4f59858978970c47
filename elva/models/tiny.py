"""Small Qwen2-VL models with a tokenizer trained on the spot, for machines without pretrained weights.

They stand in for the pretrained MLLM of the paper in tests and demonstrations; real work starts from a
checkpoint such as ``Qwen/Qwen2-VL-2B-Instruct``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from elva.models.encoder import EncoderConfig, MultimodalEncoder
from elva.models.prompts import PROMPTS, RET_TOKEN

VOCABULARY = 2048
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    RET_TOKEN,
)
PATCH_SIZE = 12
# About 1/sqrt(width): with the usual .02, meant for widths of thousands, training ignores pictures for very long.
INITIALIZER_RANGE = 0.07
MERGE_SIZE = 2
PRESETS: dict[str, dict[str, dict[str, int]]] = {
    "tiny": {
        "text": {
            "hidden_size": 192,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "intermediate_size": 576,
        },
        "vision": {"depth": 4, "embed_dim": 128, "num_heads": 4},
    },
    "small": {
        "text": {
            "hidden_size": 320,
            "num_hidden_layers": 6,
            "num_attention_heads": 10,
            "num_key_value_heads": 2,
            "intermediate_size": 896,
        },
        "vision": {"depth": 6, "embed_dim": 192, "num_heads": 6},
    },
}


def create(
    texts: Iterable[str],
    preset: str | dict[str, dict[str, int]] = "tiny",
    seed: int = 0,
    image_size: int = 96,
) -> MultimodalEncoder:
    """An untrained encoder on the CPU in fp32: "tiny" has about 3M parameters, "small" about 11M.

    ``preset`` may also be sizes as in ``PRESETS`` (heads of size 32).
    ``texts`` train the byte-level BPE tokenizer (at most 2,048 tokens). Pictures are scaled to about
    ``image_size``² pixels (a multiple of 24): a 96 × 96 picture is 64 patches and 16 tokens. One seed gives
    one set of weights.
    """
    if isinstance(preset, str) and preset not in PRESETS:
        raise ValueError(f"preset: {preset!r} given, expected one of {', '.join(PRESETS)}")
    if image_size < 16 or image_size % (PATCH_SIZE * MERGE_SIZE):
        raise ValueError(
            f"image_size: {image_size} given, expected a positive multiple of {PATCH_SIZE * MERGE_SIZE}"
        )
    tokenizer = train_tokenizer(texts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _model(tokenizer, PRESETS[preset] if isinstance(preset, str) else preset)
    config = EncoderConfig(max_summary_tokens=16, prompt="short", max_pixels=None)
    return MultimodalEncoder(model.eval(), tokenizer, _image_processor(image_size), config)


def train_tokenizer(texts: Iterable[str]) -> Any:
    """A ``Qwen2Tokenizer`` with byte-level BPE merges learnt from ``texts`` (pairs seen at least twice)."""
    from transformers import Qwen2Tokenizer
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    corpus = list(texts)
    if not corpus or not all(isinstance(text, str) for text in corpus):
        raise ValueError(f"texts: {len(corpus)} items given, expected at least one and every one a str")
    # The prompts come with every input, so their words deserve merges whatever the texts are.
    asked = [f"user\n{prompt.suffix}\nassistant\n" for prompt in PROMPTS.values()]
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.NFC()
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS),
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator(corpus + asked * max(2, len(corpus) // 10), trainer)
    state = json.loads(trained.to_str())["model"]
    merges: Any = [tuple(pair) for pair in state["merges"]]
    tokenizer = Qwen2Tokenizer(
        vocab=state["vocab"],
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
    )
    tokenizer.add_tokens(
        [AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS], special_tokens=True
    )
    return tokenizer


def _model(tokenizer: Any, preset: dict[str, dict[str, int]]) -> Any:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    # Head size 32: sixteen rotary frequencies, shared out over time, height and width.
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    text = {
        **preset["text"],
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 4096,
        "rope_parameters": rope,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "tie_word_embeddings": True,
        "initializer_range": INITIALIZER_RANGE,
    }
    vision = {
        **preset["vision"],
        "hidden_size": preset["text"]["hidden_size"],
        "patch_size": PATCH_SIZE,
        "spatial_merge_size": MERGE_SIZE,
        "temporal_patch_size": 1,
        "initializer_range": INITIALIZER_RANGE,
    }
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    return Qwen2VLForConditionalGeneration(config)


def _image_processor(image_size: int) -> Any:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    area = image_size * image_size
    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": area, "longest_edge": area},
        patch_size=PATCH_SIZE,
        temporal_patch_size=1,
        merge_size=MERGE_SIZE,
    )
