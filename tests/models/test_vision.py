"""Features of a frozen tower stand for the pixels exactly, are computed once a file, and never outlive the weights."""

from __future__ import annotations

import copy

import pytest
import torch

from elva.models import vision
from elva.models.batches import PICTURE_KEYS
from elva.training.config import LoraSettings
from elva.training.lora import attach_adapter

from .conftest import draw


@pytest.fixture
def files(tmp_path):
    paths = []
    for number, (colour, size) in enumerate((("red", (96, 96)), ("blue", (160, 64)))):
        paths.append(tmp_path / f"{number}.png")
        draw(colour, size).save(paths[-1])
    return paths


@pytest.fixture
def calls(own_encoder, monkeypatch):
    """Numbers of pictures in each call of the tower."""
    made = []
    tower = own_encoder.base_model.model.visual
    tower.register_forward_hook(
        lambda module, args, kwargs, out: made.append(len(kwargs["grid_thw"])), with_kwargs=True
    )
    return made


def embed(encoder, inputs, completions=None):
    batch = encoder.prepare(inputs)
    full, _ = encoder.append(batch, completions or [[5, 6]] * len(inputs), ret=True)
    return batch, encoder.read_embedding(encoder.hidden_states(full), full)


def test_features_stand_for_pixels(own_encoder, mixed_inputs, files):
    inputs = [*mixed_inputs, *files, files[0]]
    batch, with_pixels = embed(own_encoder, inputs)
    assert "pixel_values" in batch
    with torch.no_grad():
        batch, with_features = embed(own_encoder, inputs)
        repeated = own_encoder.repeat(own_encoder.append(batch, [[5, 6]] * len(inputs), ret=True)[0], 2)
        twice = own_encoder.read_embedding(own_encoder.hidden_states(repeated), repeated)
    assert "image_features" in batch and "pixel_values" not in batch
    assert torch.allclose(with_features, with_pixels, atol=1e-6)
    assert torch.allclose(twice[::2], with_pixels, atol=1e-6)


def test_language_gradients_are_the_same_with_features(own_encoder, files):
    attach_adapter(own_encoder, LoraSettings(r=4, alpha=8, dropout=0.0))
    for name, parameter in own_encoder.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    own_encoder.model.train()
    weights = [p for p in own_encoder.model.parameters() if p.requires_grad]
    batch, embeddings = embed(own_encoder, files)
    assert "image_features" in batch
    ours = torch.autograd.grad(embeddings[:, 0].sum(), weights)
    pixels = own_encoder.processor(files)
    full, _ = own_encoder.append(pixels, [[5, 6]] * 2, ret=True)
    theirs = torch.autograd.grad(
        own_encoder.read_embedding(own_encoder.hidden_states(full), full)[:, 0].sum(), weights
    )
    for one, two in zip(ours, theirs, strict=True):
        assert torch.allclose(one, two, atol=1e-6 + 1e-5 * float(two.abs().max()))
    assert sum(float(gradient.abs().sum()) for gradient in theirs) > 0


def test_a_file_is_encoded_once(own_encoder, files, calls):
    with torch.no_grad():
        own_encoder.prepare([files[0], "text", files[0]])
        own_encoder.prepare([files[0], files[1]])
        own_encoder.prepare(files)
    assert calls == [1, 1]


def test_pictures_are_known_by_their_content(own_encoder, files, calls, tmp_path):
    copy = tmp_path / "copy.png"
    copy.write_bytes(files[0].read_bytes())
    with torch.no_grad():
        own_encoder.prepare([files[0], copy, draw("red"), "text"])
        own_encoder.prepare([draw("red")])
    assert calls == [1]


def test_the_tower_runs_on_a_bounded_number_of_patches(own_encoder, calls, monkeypatch):
    pictures = [draw(colour) for colour in ("red", "blue", "green", "black", "white")]
    with torch.no_grad():
        whole = own_encoder.prepare(pictures)["image_features"]
        own_encoder._vision.cache.clear()
        monkeypatch.setattr(vision, "PATCHES", 150)
        parts = own_encoder.prepare(pictures)["image_features"]
    assert calls == [5, 2, 2, 1]
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)


def test_a_training_step_reads_no_weights(own_encoder, files, calls, monkeypatch):
    """Their values would have to come from the device, which the step would wait for."""
    own_encoder.base_model.requires_grad_(False)
    monkeypatch.setattr("elva.models.vision._samples", lambda weights: pytest.fail("the step waits"))
    for _ in range(2):
        own_encoder.prepare([{"text": None, "image": str(files[0])}])
    assert len(calls) == 1


@pytest.mark.parametrize("through", ["parameter", "data"])
def test_changed_weights_are_noticed(own_encoder, files, calls, through):
    weight = next(own_encoder.base_model.model.visual.parameters())
    with torch.no_grad():
        before = own_encoder.prepare(files)["image_features"]
        (weight if through == "parameter" else weight.data).mul_(1.5)
        after = own_encoder.prepare(files)["image_features"]
    assert calls == [2, 2] and not torch.allclose(before, after)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_changed_image_processor_is_noticed(own_encoder, files, calls, replaced):
    with torch.no_grad():
        before = own_encoder.prepare(files)["image_features"]
        if replaced:
            own_encoder.image_processor = copy.deepcopy(own_encoder.image_processor)
        own_encoder.image_processor.image_mean = [0.0, 0.0, 0.0]
        after = own_encoder.prepare(files)["image_features"]
    assert calls == [2, 2] and not torch.allclose(before, after)


def test_a_trained_tower_gets_pixels_and_gradient(own_encoder, files):
    batch, embeddings = embed(own_encoder, files)
    assert [key for key in PICTURE_KEYS if key in batch] == ["pixel_values"]
    embeddings[:, 0].sum().backward()
    assert any(
        p.grad is not None and p.grad.abs().sum() > 0
        for p in own_encoder.base_model.model.visual.parameters()
    )
