"""Features stand for pixels also where transformers has no argument for them (5.17 among them)."""

from __future__ import annotations

import inspect

import pytest
import torch

from elva.models import features


@pytest.fixture
def without_the_argument(monkeypatch):
    """An older version's signature; the forward itself still takes pixels and asks the tower's method for features."""
    known = inspect.signature

    def older(function):
        found = known(function)
        kept = [p for p in found.parameters.values() if p.name != "mm_encoder_outputs"]
        return found.replace(parameters=kept)

    monkeypatch.setattr(features.inspect, "signature", older)


@pytest.fixture
def tower_calls(own_encoder):
    made = []
    own_encoder.base_model.model.visual.register_forward_hook(lambda *_: made.append(1))
    return made


@pytest.mark.usefixtures("without_the_argument")
def test_the_tower_runs_once_for_prefill_forwards_and_packed_passes(
    own_encoder, tiny_encoder, mixed_inputs, completions, tower_calls
):
    backbone = own_encoder.base_model.model
    with torch.no_grad():
        batch = own_encoder.prepare(mixed_inputs)
        assert "image_features" in batch and len(tower_calls) == 1
        written = own_encoder.generate_summaries(batch, max_new_tokens=4)
        full, _ = own_encoder.append(batch, completions, ret=True)
        states = own_encoder.hidden_states(full)
        wrapped = own_encoder.hidden_states(full, model=own_encoder.model)
        packed = own_encoder.pack(batch, written.summaries, 1)
        own_encoder.packed_states(packed)
    assert len(tower_calls) == 1
    assert "get_image_features" not in vars(backbone), "the tower's own method must be back"
    pixels, _ = tiny_encoder.append(
        tiny_encoder.prepare(mixed_inputs, image_features=False), completions, ret=True
    )
    expected = tiny_encoder.hidden_states(pixels)
    live = full["attention_mask"].bool()
    torch.testing.assert_close(states[live], expected[live], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(wrapped, states)


@pytest.mark.usefixtures("without_the_argument")
def test_the_towers_method_is_back_after_an_error(own_encoder, mixed_inputs):
    backbone = own_encoder.base_model.model
    with torch.no_grad():
        batch = own_encoder.prepare(mixed_inputs)
        # one feature too few for the placeholders
        batch["image_features"] = batch["image_features"][1:]
        with pytest.raises(Exception):  # noqa: B017 - transformers' own, of no fixed kind
            own_encoder.hidden_states(batch)
    assert "get_image_features" not in vars(backbone)
