from __future__ import annotations

import pytest
import torch
import transformers
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from elva.models import EncoderConfig, MultimodalEncoder

ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_parameters": ROPE,
}
VISION = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 64,
    "patch_size": 8,
}


def build(tiny_encoder: MultimodalEncoder, family: str) -> MultimodalEncoder:
    tokenizer = tiny_encoder.tokenizer
    names = ("image_pad", "video_pad", "vision_start", "vision_end")
    ids = [tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in names]
    keys = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    extra = {
        "Qwen2_5_VL": {"window_size": 32, "fullatt_block_indexes": [2]},
        "Qwen3VL": {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 144},
    }[family]
    text = {**TEXT, "vocab_size": len(tokenizer) + 7}
    if family == "Qwen3VL":
        text = {**text, "head_dim": 16, "rope_parameters": {**ROPE, "mrope_interleaved": True}}
    config = getattr(transformers, f"{family}Config")(
        text_config=text, vision_config={**VISION, **extra}, **dict(zip(keys, ids, strict=True))
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForConditionalGeneration")(config).eval()
    pictures = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 64 * 64, "longest_edge": 96 * 96}, patch_size=8, merge_size=2
    )
    return MultimodalEncoder(model, tokenizer, pictures, EncoderConfig(max_summary_tokens=5, prompt="short"))


@pytest.mark.parametrize("family", ["Qwen2_5_VL", "Qwen3VL"])
def test_the_family_encodes_generates_and_reloads(tiny_encoder, mixed_inputs, completions, tmp_path, family):
    encoder = build(tiny_encoder, family)
    batch, _ = encoder.append(encoder.prepare(mixed_inputs), completions, ret=True)
    live = batch["attention_mask"].bool()
    with torch.no_grad():
        expected = encoder.model(**batch, use_cache=False).logits
        encoder.model.model.rope_deltas = None
        ours = encoder.token_logits(encoder.hidden_states(batch))
        wrapped = encoder.token_logits(encoder.hidden_states(batch, model=encoder.model))
    torch.testing.assert_close(ours[live], expected[live], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(wrapped[live], expected[live], atol=1e-5, rtol=1e-5)

    whole = encoder.encode(mixed_inputs)
    torch.testing.assert_close(encoder.encode(mixed_inputs, batch_size=1), whole, atol=5e-6, rtol=0)
    greedy = encoder.generate_summaries(encoder.prepare(mixed_inputs)).summaries
    copies = encoder.generate_summaries(
        encoder.prepare(mixed_inputs), num_generations=2, do_sample=True, top_k=1
    ).summaries
    assert copies == [summary for summary in greedy for _ in range(2)]
    special = encoder._special_ids()
    assert set(range(len(encoder.tokenizer), len(encoder.tokenizer) + 7)) <= set(special.banned)

    encoder.save_pretrained(tmp_path / "model")
    loaded = MultimodalEncoder.from_pretrained(tmp_path / "model", device="cpu")
    assert type(loaded.model) is type(encoder.model)
    assert torch.equal(loaded.encode(mixed_inputs), whole)
