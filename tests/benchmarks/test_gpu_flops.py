"""Counted operations against torch's own counter, and against sums worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.flops import Costs, Side, step_operations
from benchmarks.gpu.presets import PRESETS, _qwen2_vl_2b_config
from benchmarks.rl_problem import make_items
from elva.models import tiny


def test_costs_are_those_that_torch_counts():
    preset = PRESETS["tiny"]
    encoder = preset.encoder("cpu")
    encoder.model.float().set_attn_implementation("eager")  # whose products torch's counter knows
    items = make_items(encoder, preset.setting)[:1]
    costs = Costs.of(encoder.base_model)
    batch = encoder.prepare(items, image_features=False)
    patches = batch["pixel_values"].shape[0]
    length = batch["input_ids"].shape[1]
    merger, patching = encoder.base_model.model.visual.merger, encoder.base_model.model.visual.patch_embed
    outside = 2 * patches * sum(p.numel() for p in patching.parameters() if p.dim() > 1)
    outside += 2 * patches // 4 * sum(p.numel() for p in merger.parameters() if p.dim() > 1)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder.hidden_states(batch)
    # eager attention multiplies all pairs, of which half are masked
    expected = costs.token * length + costs.pair * length**2
    expected += costs.patch * patches + costs.patch_pair * patches**2 + outside
    # rotary frequencies are products too, of size 1
    assert counter.get_total_flops() == pytest.approx(expected, rel=5e-3)


def test_a_step_by_hand():
    costs = Costs(token=1.0, pair=0.0, logits=0.0, patch=0.0, patch_pair=0.0)
    side = Side([10], [[2, 3]], [])
    # fast: 10 + 5 tokens sampled, reference, policy forward and backward; plain: 20 + 5, and old as well
    assert step_operations(costs, [side], "fast") == 4 * 15
    assert step_operations(costs, [side, side], "plain") == 2 * 5 * 25
    costs = Costs(token=0.0, pair=1.0, logits=0.0, patch=0.0, patch_pair=0.0)
    own = 2 * 10 + 2 + 3 * 10 + 4.5
    assert step_operations(costs, [side], "fast") == 5 * (50 + own)
    costs = Costs(token=0.0, pair=0.0, logits=1.0, patch=1.0, patch_pair=1.0)
    pictures = Side([10], [[2, 3]], [4])
    assert step_operations(costs, [pictures], "fast") == 4 * 5 + (4 + 16)
    assert step_operations(costs, [pictures], "plain") == 5 * 5 + 2 * 4 * (4 + 16)


def test_the_preset_is_qwen2_vl_2b():
    from transformers import Qwen2VLForConditionalGeneration

    config = _qwen2_vl_2b_config(tiny.train_tokenizer(["a red ball"] * 2))
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(config)
    # as the checkpoint on the hub counts them
    assert sum(p.numel() for p in model.parameters()) == 2_208_985_600
    assert sum(p.numel() for p in model.model.visual.parameters()) == 665_271_296
