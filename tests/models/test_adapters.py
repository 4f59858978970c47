from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from elva.models import MultimodalEncoder


@pytest.fixture
def adapted(own_encoder) -> MultimodalEncoder:
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=r".*language_model.*\.(q_proj|v_proj|up_proj)",
        trainable_token_indices=[own_encoder.ret_id],
    )
    own_encoder.model = get_peft_model(own_encoder.model, config)
    return own_encoder


def train_a_step(encoder, inputs):
    optimizer = torch.optim.SGD([p for p in encoder.model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # LoRA's first step moves only B
        batch, _ = encoder.append(encoder.prepare(inputs), [[] for _ in inputs], ret=True)
        states = encoder.read_embedding(encoder.hidden_states(batch, model=encoder.model), batch)
        (states @ states.T).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_an_adapter_trains_switches_off_and_merges(adapted, tiny_encoder, mixed_inputs, tmp_path):
    reference = tiny_encoder.encode(mixed_inputs)
    assert torch.equal(adapted.encode(mixed_inputs), reference), "a fresh adapter changes nothing"
    train_a_step(adapted, mixed_inputs)
    trained = adapted.encode(mixed_inputs, mode="direct")
    assert (trained - tiny_encoder.encode(mixed_inputs, mode="direct")).abs().max() > 1e-3
    with adapted.model.disable_adapter():
        assert torch.equal(adapted.encode(mixed_inputs), reference)
    with pytest.raises(ValueError, match="merge_adapter"):
        adapted.save_pretrained(tmp_path / "model")
    adapted.merge_adapter()
    torch.testing.assert_close(adapted.encode(mixed_inputs, mode="direct"), trained, atol=1e-5, rtol=0)
    adapted.save_pretrained(tmp_path / "model")
    loaded = MultimodalEncoder.from_pretrained(tmp_path / "model", device="cpu")
    torch.testing.assert_close(loaded.encode(mixed_inputs, mode="direct"), trained, atol=1e-5, rtol=0)


def test_only_the_ret_row_of_the_embeddings_moves(adapted, tiny_encoder, mixed_inputs):
    train_a_step(adapted, mixed_inputs)
    adapted.merge_adapter()
    moved = adapted.model.get_input_embeddings().weight - tiny_encoder.model.get_input_embeddings().weight
    changed = moved.abs().amax(-1).nonzero().flatten().tolist()
    assert changed == [adapted.ret_id]


def test_the_head_and_the_wrapper_agree(adapted, mixed_inputs):
    train_a_step(adapted, mixed_inputs)
    batch = adapted.prepare(mixed_inputs)
    live = batch["attention_mask"].bool()
    with torch.no_grad():
        bare = adapted.hidden_states(batch)
        wrapped = adapted.hidden_states(batch, model=adapted.model)
        logits = adapted.model(**adapted.processor(mixed_inputs), use_cache=False).logits
    adapted.base_model.model.rope_deltas = None
    torch.testing.assert_close(bare[live], wrapped[live], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(adapted.token_logits(bare)[live], logits[live], atol=1e-5, rtol=1e-5)


DELTAS = {
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "both": {"target_modules": ["embed_tokens", "lm_head"]},
    "copy": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "row": {"target_modules": ["q_proj"], "trainable_token_indices": [5]},
    "head and row": {"target_modules": ["q_proj", "lm_head"], "trainable_token_indices": [5]},
    "copied head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("delta", DELTAS)
def test_a_delta_on_tied_embeddings_does_not_reach_the_head(delta, own_encoder, tmp_path):
    own_encoder.save_pretrained(tmp_path / "base")
    own_encoder.model = get_peft_model(own_encoder.model, LoraConfig(r=4, **DELTAS[delta]))
    own_encoder.model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    for parameter in own_encoder.model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    own_encoder.model.save_pretrained(tmp_path / "adapter")
    batch = own_encoder.prepare(["a red cat", "two dogs"])

    def logits(encoder: MultimodalEncoder) -> torch.Tensor:
        with torch.no_grad():
            found = encoder.model(**batch, use_cache=False).logits
        encoder.base_model.model.rope_deltas = None
        return found[batch["attention_mask"].bool()]

    trained = logits(own_encoder)
    loaded = MultimodalEncoder.from_pretrained(tmp_path / "adapter", device="cpu")
    own_encoder.merge_adapter()
    own_encoder.save_pretrained(tmp_path / "merged")
    saved = MultimodalEncoder.from_pretrained(tmp_path / "merged", device="cpu")
    for encoder in (loaded, own_encoder, saved):
        torch.testing.assert_close(logits(encoder), trained, atol=1e-4, rtol=1e-4)
        tied = encoder.model.lm_head.weight is encoder.model.get_input_embeddings().weight
        assert tied == (delta == "row") == encoder.model.config.tie_word_embeddings


def test_gradient_checkpointing_gives_the_same_gradient(adapted, mixed_inputs):
    def gradients() -> list[torch.Tensor]:
        batch, _ = adapted.append(adapted.prepare(mixed_inputs), [[] for _ in mixed_inputs], ret=True)
        adapted.model.train()
        states = adapted.read_embedding(adapted.hidden_states(batch, model=adapted.model), batch)
        (states @ states.T).mean().backward()
        found = [p.grad.clone() for p in adapted.model.parameters() if p.grad is not None]
        adapted.model.zero_grad()
        return found

    plain = gradients()
    adapted.model.gradient_checkpointing_enable({"use_reentrant": False})
    assert any(getattr(module, "gradient_checkpointing", False) for module in adapted.model.modules())
    for a, b in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    summaries = adapted.generate_summaries(adapted.prepare(mixed_inputs), max_new_tokens=3).summaries
    assert [len(s) for s in summaries] == [4] * 5 and adapted.model.training
