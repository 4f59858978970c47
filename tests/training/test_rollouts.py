"""Log-probabilities of sampled tokens, against those of all logits (the gradients: test_rl.py)."""

from __future__ import annotations

import pytest
import torch

from elva.models.encoder import MultimodalEncoder
from elva.training.config import LoraSettings
from elva.training.examples import TrainingData
from elva.training.lora import attach_adapter
from elva.training.rollouts import Sequences, sample, separate, token_logps


@pytest.fixture
def encoder(either_model, moved) -> MultimodalEncoder:
    encoder = MultimodalEncoder.from_pretrained(either_model)
    attach_adapter(encoder, LoraSettings(r=4))
    moved(encoder.model)
    return encoder


def sampled(encoder, root) -> Sequences:
    data = TrainingData(root, tasks=[0])
    items = [data.candidate_item(did) for did in list(data.pool)[:4]]
    generator = torch.Generator(encoder.device).manual_seed(0)
    rollouts = sample(encoder, items, 3, max_new_tokens=5, generator=generator)
    return separate(encoder, rollouts)


@torch.no_grad()
def test_only_sampled_tokens_are_scored(encoder, mini_scenes, all_logits, relative):
    rollouts = sampled(encoder, mini_scenes)
    hidden = encoder.hidden_states(rollouts.batch)
    found, expected = (f(encoder, rollouts, hidden, 0.7) for f in (token_logps, all_logits))
    assert not rollouts.token_mask.all() and rollouts.token_mask.any()
    for one, other in zip(found, expected, strict=True):
        assert (one[~rollouts.token_mask] == 0).all()
        assert relative(one, other) <= 1e-5
    hidden[:, -rollouts.width - 1 : -1][~rollouts.token_mask] = torch.nan
    assert torch.equal(token_logps(encoder, rollouts, hidden, 0.7).logprob, found.logprob)


@torch.no_grad()
def test_with_the_adapter_off_they_are_the_models_before_it(
    either_model, mini_scenes, encoder, all_logits, relative
):
    rollouts = sampled(encoder, mini_scenes)
    before = MultimodalEncoder.from_pretrained(either_model)
    expected = all_logits(before, rollouts, before.hidden_states(rollouts.batch)).logprob
    with encoder.model.disable_adapter():
        found = token_logps(encoder, rollouts, encoder.hidden_states(rollouts.batch)).logprob
    assert relative(found, expected) <= 1e-5
    on = token_logps(encoder, rollouts, encoder.hidden_states(rollouts.batch)).logprob
    assert relative(on, expected) > 1e-3


@torch.no_grad()
def test_states_may_be_of_another_precision_than_the_head(encoder, mini_scenes):
    encoder.model.to(torch.bfloat16)
    rollouts = sampled(encoder, mini_scenes)
    hidden = encoder.hidden_states(rollouts.batch)
    assert hidden.dtype == torch.bfloat16
    found, same = (token_logps(encoder, rollouts, h).logprob for h in (hidden, hidden.float()))
    assert torch.equal(found, same)
