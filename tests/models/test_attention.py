from __future__ import annotations

import types

import pytest
import torch
from torch.nn import functional as F

from elva.models import MultimodalEncoder, attention
from elva.models.attention import resolve_attention, xformers_attention


def with_packages(monkeypatch, *packages):
    monkeypatch.setattr(attention, "_importable", lambda module: module in packages)


def test_auto_prefers_flash_attention_then_xformers_then_sdpa(monkeypatch):
    with_packages(monkeypatch, "flash_attn", "xformers.ops")
    assert resolve_attention("auto", "cuda", torch.bfloat16) == "flash_attention_2"
    assert resolve_attention("auto", "cuda", torch.float32) == "xformers"
    assert resolve_attention("auto", "cpu", torch.bfloat16) == "sdpa"
    with_packages(monkeypatch)
    assert resolve_attention("auto", "cuda", torch.bfloat16) == "sdpa"


@pytest.mark.parametrize(("name", "package"), [("flash_attention_2", "flash-attn"), ("xformers", "xformers")])
def test_an_absent_package_is_named(monkeypatch, name, package):
    with_packages(monkeypatch)
    with pytest.raises(ImportError, match=f"'{name}' needs the package {package}.*pip install {package}"):
        resolve_attention(name, "cuda", torch.bfloat16)


def test_impossible_combinations_are_refused(monkeypatch):
    with_packages(monkeypatch, "flash_attn", "xformers.ops")
    for device, dtype in (("cpu", torch.bfloat16), ("cuda", torch.float32)):
        with pytest.raises(ValueError, match="needs a CUDA device and float16 or bfloat16"):
            resolve_attention("flash_attention_2", device, dtype)
    with pytest.raises(ValueError, match="needs a CUDA device; given cpu"):
        resolve_attention("xformers", "cpu", torch.float32)
    with pytest.raises(ValueError, match="attn_implementation: 'fast' given, expected one of auto"):
        resolve_attention("fast", "cpu", None)


def test_from_pretrained_passes_the_error_on(tiny_encoder, tmp_path, monkeypatch):
    tiny_encoder.save_pretrained(tmp_path / "model")
    with_packages(monkeypatch)
    with pytest.raises(ImportError, match="flash-attn"):
        MultimodalEncoder.from_pretrained(tmp_path / "model", "flash_attention_2", device="cpu")
    eager = MultimodalEncoder.from_pretrained(tmp_path / "model", "eager", device="cpu")
    torch.testing.assert_close(eager.encode(["a cat"]), tiny_encoder.encode(["a cat"]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("keys", [7, 16])
def test_the_xformers_adapter_equals_sdpa(fake_xformers, keys):
    module = types.SimpleNamespace(is_causal=True)
    query, key, value = torch.randn(2, 6, keys, 8), torch.randn(2, 2, keys, 8), torch.randn(2, 2, keys, 8)
    repeated = [x.repeat_interleave(3, 1) for x in (key, value)]
    out, _ = xformers_attention(module, query, key, value, None, scaling=0.3)
    expected = F.scaled_dot_product_attention(query, *repeated, is_causal=True, scale=0.3)
    torch.testing.assert_close(out, expected.transpose(1, 2))
    mask = torch.ones(keys, keys, dtype=torch.bool).tril().repeat(2, 1, 1, 1)
    mask[1, ..., :2] = False
    mask[1, :, :2, 0] = True
    out, _ = xformers_attention(module, query, key, value, mask, scaling=0.3)
    expected = F.scaled_dot_product_attention(query, *repeated, attn_mask=mask, scale=0.3)
    torch.testing.assert_close(out, expected.transpose(1, 2))
    out, _ = xformers_attention(module, query, key, value, None, scaling=0.3, is_causal=False)
    torch.testing.assert_close(
        out, F.scaled_dot_product_attention(query, *repeated, scale=0.3).transpose(1, 2)
    )


def test_the_registered_name_runs_in_the_model(fake_xformers, own_encoder, tiny_encoder, mixed_inputs):
    own_encoder.model.set_attn_implementation(attention._registered_xformers())
    out = own_encoder.encode(mixed_inputs, mode="generative")
    torch.testing.assert_close(out, tiny_encoder.encode(mixed_inputs, mode="generative"), atol=1e-5, rtol=0)
