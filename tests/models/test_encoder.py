from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F

from elva.models import EncoderConfig, MultimodalEncoder


def test_padding_changes_nothing(tiny_encoder, mixed_inputs, completions):
    together, _ = tiny_encoder.append(tiny_encoder.prepare(mixed_inputs), completions, ret=True)
    with torch.no_grad():
        rows = tiny_encoder.read_embedding(tiny_encoder.hidden_states(together), together)
        for row, (value, completion) in enumerate(zip(mixed_inputs, completions, strict=True)):
            alone, _ = tiny_encoder.append(tiny_encoder.prepare([value]), [completion], ret=True)
            single = tiny_encoder.read_embedding(tiny_encoder.hidden_states(alone), alone)
            torch.testing.assert_close(rows[row], single[0], atol=2e-6, rtol=0)


def test_hidden_states_are_those_of_the_models_own_logits(tiny_encoder, mixed_inputs):
    batch = tiny_encoder.prepare(mixed_inputs)
    live = batch["attention_mask"].bool()
    with torch.no_grad():
        expected = tiny_encoder.model(**batch, use_cache=False).logits
        bare = tiny_encoder.hidden_states(batch)
        wrapped = tiny_encoder.hidden_states(batch, model=tiny_encoder.model)
    tiny_encoder.model.model.rope_deltas = None
    torch.testing.assert_close(tiny_encoder.token_logits(bare)[live], expected[live], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(wrapped[live], bare[live], atol=1e-5, rtol=1e-5)


def test_no_position_state_is_left_behind(own_encoder, mixed_inputs):
    own_encoder.encode(mixed_inputs, mode="generative")
    assert own_encoder.model.model.rope_deltas is None


@pytest.mark.parametrize("mode", ["generative", "direct"])
def test_encode_keeps_order_and_does_not_depend_on_batch_size(tiny_encoder, mixed_inputs, mode):
    whole, summaries = tiny_encoder.encode(mixed_inputs, "Find it.", mode=mode, return_summaries=True)
    assert whole.shape == (5, 192) and whole.dtype == torch.float32 and whole.device.type == "cpu"
    torch.testing.assert_close(whole.norm(dim=-1), torch.ones(5))
    pairs, same = tiny_encoder.encode(
        mixed_inputs, "Find it.", mode=mode, batch_size=2, return_summaries=True
    )
    torch.testing.assert_close(pairs, whole, atol=5e-6, rtol=0)
    assert same == summaries and any(summaries) == (mode == "generative")
    backwards = tiny_encoder.encode(mixed_inputs[::-1], "Find it.", mode=mode)
    torch.testing.assert_close(backwards.flip(0), whole, atol=5e-6, rtol=0)


def test_modes_and_reads_differ(tiny_encoder, mixed_inputs):
    results = {
        (mode, read): tiny_encoder.encode(mixed_inputs, mode=mode, read=read)
        for mode in ("generative", "direct")
        for read in ("at", "before")
    }
    keys = list(results)
    for i, first in enumerate(keys):
        for second in keys[i + 1 :]:
            assert (results[first] - results[second]).abs().max() > 1e-3, (first, second)


def test_a_generative_embedding_is_the_state_at_ret_after_the_summary(tiny_encoder):
    batch = tiny_encoder.prepare(["a red cat"])
    written = tiny_encoder.generate_summaries(batch).summaries
    full, _ = tiny_encoder.append(batch, written, ret=True)
    with torch.no_grad():
        hidden = tiny_encoder.hidden_states(full)
    expected = F.normalize(hidden[0, -1], dim=-1)
    torch.testing.assert_close(tiny_encoder.encode(["a red cat"])[0], expected, atol=2e-6, rtol=0)
    before = tiny_encoder.encode(["a red cat"], read="before")[0]
    torch.testing.assert_close(before, F.normalize(hidden[0, -2], dim=-1), atol=2e-6, rtol=0)


def test_query_and_document_defaults(tiny_encoder, mixed_inputs):
    assert torch.equal(tiny_encoder.encode_query(mixed_inputs), tiny_encoder.encode(mixed_inputs))
    direct = tiny_encoder.encode(mixed_inputs, mode="direct")
    assert torch.equal(tiny_encoder.encode_document(mixed_inputs), direct)
    asked = tiny_encoder.encode_document(mixed_inputs, mode="generative")
    assert torch.equal(asked, tiny_encoder.encode(mixed_inputs, mode="generative"))


def test_nothing_to_encode(tiny_encoder):
    assert tiny_encoder.encode([]).shape == (0, 192)


def test_gradient_reaches_the_language_model_and_the_vision_tower(own_encoder, mixed_inputs, completions):
    batch, _ = own_encoder.append(own_encoder.prepare(mixed_inputs), completions, ret=True)
    embeddings = own_encoder.read_embedding(own_encoder.hidden_states(batch), batch)
    (embeddings @ embeddings.T).sum().backward()
    model = own_encoder.model.model
    for weight in (model.language_model.layers[0].mlp.up_proj.weight, model.visual.blocks[0].attn.qkv.weight):
        assert weight.grad.abs().sum() > 0
    assert own_encoder.model.get_input_embeddings().weight.grad[own_encoder.ret_id].abs().sum() > 0


def test_reading_a_batch_without_ret_is_refused(tiny_encoder):
    batch = tiny_encoder.prepare(["a cat"])
    with pytest.raises(ValueError, match=r"does not end in \[RET\]"):
        tiny_encoder.read_embedding(tiny_encoder.hidden_states(batch), batch)


def test_save_and_load(tiny_encoder, mixed_inputs, tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    tiny_encoder.save_pretrained(target)
    loaded = MultimodalEncoder.from_pretrained(target, device="cpu")
    assert loaded.config == tiny_encoder.config and loaded.ret_id == tiny_encoder.ret_id
    assert torch.equal(loaded.encode(mixed_inputs), tiny_encoder.encode(mixed_inputs))
    assert not loaded.model.training
    with pytest.raises(FileExistsError, match="not empty"):
        tiny_encoder.save_pretrained(target)


def test_loading_reads_every_setting(tiny_encoder, tmp_path):
    tiny_encoder.save_pretrained(tmp_path / "model")
    settings = {
        "mode": "direct",
        "read": "before",
        "max_summary_tokens": 3,
        "prompt": "paper",
        "max_pixels": 48 * 48,
        "image_backend": "pil",
    }
    (tmp_path / "model" / "elva.json").write_text(json.dumps(settings))
    loaded = MultimodalEncoder.from_pretrained(tmp_path / "model", device="cpu")
    assert loaded.config == EncoderConfig(**settings)
    from PIL import Image

    batch = loaded.prepare([Image.new("RGB", (96, 96))])
    assert batch["image_grid_thw"].tolist() == [[1, 4, 4]]
    assert len(loaded.generate_summaries(batch).summaries[0]) == 4


def test_a_checkpoint_without_ret_gets_one(own_encoder, tmp_path):
    """As a checkpoint from the hub: no elva.json, no [RET] in the tokenizer."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    old = own_encoder.model.get_input_embeddings().weight.detach()[: own_encoder.ret_id].clone()
    assert own_encoder.ret_id == len(own_encoder.tokenizer) - 1
    own_encoder.model.resize_token_embeddings(own_encoder.ret_id)
    state = json.loads(own_encoder.tokenizer._tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] != "[RET]"]
    plain = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
    )
    assert "[RET]" not in plain.get_vocab()
    encoder = MultimodalEncoder(own_encoder.model, plain, own_encoder.image_processor)
    assert encoder.config == EncoderConfig(image_backend="pil") and encoder.ret_id == old.shape[0]
    weight = encoder.model.get_input_embeddings().weight
    torch.testing.assert_close(weight[:-1], old)
    torch.testing.assert_close(weight[-1], old.mean(0))
    assert encoder.model.get_output_embeddings().weight is weight
    assert "[RET]" in encoder.tokenizer.decode(encoder.prepare(["a cat"])["input_ids"][0])


def test_another_architecture_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="is a 'bert' model, expected one of qwen2_vl, qwen2_5_vl, qwen3_vl"):
        MultimodalEncoder.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "fast"}, "mode: 'fast' given, expected one of generative, direct"),
        ({"read": "after"}, "read: 'after' given, expected one of at, before"),
        ({"max_summary_tokens": 0}, "max_summary_tokens: 0 given"),
        ({"prompt": "none"}, "prompt: no template named 'none'"),
        ({"max_pixels": 0}, "max_pixels: 0 given"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(ValueError, match=message):
        EncoderConfig(**change)


def test_bad_encode_options(tiny_encoder):
    with pytest.raises(ValueError, match="mode: 'fast'"):
        tiny_encoder.encode(["a"], mode="fast")
    with pytest.raises(ValueError, match="batch_size: 0"):
        tiny_encoder.encode(["a"], batch_size=0)


@pytest.mark.parametrize("name", ["runs/some/model", "./model", "/no/model"])
def test_a_missing_directory_is_not_sought_on_the_hub(name):
    with pytest.raises(FileNotFoundError, match=rf"no model directory at {name}"):
        MultimodalEncoder.from_pretrained(name)
