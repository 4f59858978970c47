"""Mixed precision inside of the model (docs/architecture.md): what runs under autocast, and in which dtype."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from elva.models import attention
from elva.ops.shared_prefix_attention import BACKENDS
from elva.training.config import LoraSettings
from elva.training.lora import attach_adapter

HALF = torch.bfloat16


@pytest.fixture
def adapted(own_encoder):
    attach_adapter(own_encoder, LoraSettings(r=4, alpha=8, dropout=0.0))
    return own_encoder


@pytest.fixture
def lora_products(adapted):
    """Dtypes of what LoRA's first matrices put out."""
    seen = set()
    for name, module in adapted.model.named_modules():
        if name.endswith("lora_A.default"):
            module.register_forward_hook(lambda module, arguments, out: seen.add(out.dtype))
    return seen


def every_forward(encoder, inputs, completions):
    """The forwards that the encoder runs itself, by name."""
    batch = encoder.prepare(inputs)
    full, _ = encoder.append(batch, completions, ret=True)
    summaries = [[*row, encoder.ret_id] for row in completions]
    yield "hidden_states", lambda: encoder.hidden_states(full)
    yield "packed_states", lambda: encoder.packed_states(encoder.pack(batch, summaries, 1))
    yield "generate_summaries", lambda: encoder.generate_summaries(batch, max_new_tokens=2)
    yield "encode, direct", lambda: encoder.encode(inputs, mode="direct")
    yield "encode, generative", lambda: encoder.encode(inputs, mode="generative")


@torch.no_grad()
@pytest.mark.parametrize("dtype", [None, HALF])
def test_loras_float32_matrices_multiply_in_autocasts_dtype(
    adapted, lora_products, mixed_inputs, completions, dtype
):
    adapted.autocast_dtype = dtype
    for name, forward in every_forward(adapted, mixed_inputs, completions):
        lora_products.clear()
        forward()
        assert lora_products == {dtype or torch.float32}, name
        assert not torch.is_autocast_enabled("cpu"), "the caller's precision must be as it was"


@torch.no_grad()
def test_logits_and_the_head_for_linear_logprob_have_autocasts_dtype(adapted, mixed_inputs):
    states = torch.randn(3, adapted.hidden_size)
    plain, weight = adapted.token_logits(states), adapted.head().weight
    assert plain.dtype == weight.dtype == torch.float32
    adapted.autocast_dtype = HALF
    head = adapted.head()
    assert adapted.token_logits(states).dtype == head.weight.dtype == head.row_values.dtype == HALF
    torch.testing.assert_close(adapted.token_logits(states).float(), plain, atol=2e-2, rtol=2e-2)
    # states of another dtype than the weights, as accelerate hands them out
    assert adapted.token_logits(states.to(HALF)).dtype == HALF


@torch.no_grad()
def test_features_of_the_frozen_tower_do_not_depend_on_autocast(own_encoder, tiny_encoder, mixed_inputs):
    own_encoder.autocast_dtype = HALF
    with torch.autocast("cpu", HALF):
        found = own_encoder.prepare(mixed_inputs)["image_features"]
    assert torch.equal(found, tiny_encoder.prepare(mixed_inputs)["image_features"])


class Wrapper(nn.Module):
    """As DDP: calls the model inside of it, and sees what goes out."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.outputs: list = []

    def forward(self, **inputs):
        self.outputs.append(self.module(**inputs))
        return self.outputs[-1]


def test_a_wrapper_hands_out_the_final_states_alone(adapted, mixed_inputs, completions):
    """With every layer's states, accelerate's mixed precision would copy each of them to float32."""
    batch, _ = adapted.append(adapted.prepare(mixed_inputs), completions, ret=True)
    wrapper = Wrapper(adapted.model)
    states = adapted.hidden_states(batch, model=wrapper)
    (output,) = wrapper.outputs
    assert output.logits is states, "FSDP finds the states that get a gradient among the wrapper's outputs"
    assert output.hidden_states is None
    torch.testing.assert_close(states, adapted.hidden_states(batch))
    assert all(not module._forward_hooks for module in (adapted.base_model.model, adapted.base_model.lm_head))
    # the head answers again as a head
    assert adapted.token_logits(states).shape[-1] > adapted.hidden_size


@pytest.fixture
def attended(monkeypatch):
    """Dtypes of the queries in packed attention; xformers' pieces are PyTorch's here."""
    seen, choose = set(), BACKENDS["sdpa"]

    def spy(device, dtype):
        seen.add(dtype)
        return choose(device, dtype)

    for name in ("sdpa", "xformers"):
        monkeypatch.setitem(BACKENDS, name, spy)
    return seen


@pytest.mark.parametrize("weights", [torch.float32, HALF])
@pytest.mark.parametrize("name", ["sdpa", "eager", "xformers"])
def test_packed_and_plain_forwards_of_every_attention_back_end(
    adapted, mixed_inputs, completions, name, weights, attended, fake_xformers
):
    adapted.base_model.to(weights)
    for parameter_name, parameter in adapted.model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            if "lora_B" in parameter_name:
                nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    adapted.model.set_attn_implementation(attention._registered_xformers() if name == "xformers" else name)
    summaries = [[*row, adapted.ret_id] if row[-1:] != [adapted.ret_id] else row for row in completions]
    batch = adapted.prepare(mixed_inputs)
    full, _ = adapted.append(batch, summaries, ret=True)
    packed = adapted.pack(batch, summaries, 1)
    with torch.autocast("cpu", HALF):
        states = adapted.packed_states(packed, adapted.model)
        plain = adapted.hidden_states(full, adapted.model)
    assert attended == {HALF}
    trained = [p for p in adapted.model.parameters() if p.requires_grad]
    found, expected = adapted.read_packed(states, packed), adapted.read_embedding(plain, full)
    assert found.dtype == expected.dtype == torch.float32
    assert F.cosine_similarity(found, expected).min() > 0.999
    grads = torch.autograd.grad(found.sum(0).square().sum(), trained)
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads)
    assert sum(float(grad.norm()) for grad in grads) > 0
