"""What a cache's key has to know: everything that changes an embedding, and nothing that does not."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image

from elva.models import MultimodalEncoder, tiny
from elva.models.identity import describe, model_digest
from elva.models.processing import InputProcessor
from elva.models.prompts import PromptTemplate
from elva.models.vision_store import tower_digest

TEXTS = ["a red cat", "two dogs"] * 4


def create(seed: int = 0, texts=TEXTS) -> MultimodalEncoder:
    return tiny.create(texts, seed=seed)


def weight(encoder):
    with torch.no_grad():
        encoder.model.lm_head.weight[0, 0] += 1


def adapter(encoder):
    encoder.model = get_peft_model(encoder.model, LoraConfig(target_modules=["q_proj"]))


def words(encoder):
    prompt = PromptTemplate("short", "Sum it up.")
    encoder.processor = InputProcessor(encoder.tokenizer, encoder.image_processor, prompt)


def configured(**values):
    return lambda encoder: setattr(encoder, "config", replace(encoder.config, **values))


CHANGES = {
    "weight": weight,
    "adapter": adapter,
    "mode": configured(mode="direct"),
    "read": configured(read="before"),
    "prompt": configured(prompt="paper"),
    "prompt's words": words,
    "max_pixels": configured(max_pixels=48 * 48),
    "max_summary_tokens": configured(max_summary_tokens=5),
    "size": lambda encoder: setattr(
        encoder.image_processor, "size", {"shortest_edge": 2304, "longest_edge": 2304}
    ),
    "mean": lambda encoder: setattr(encoder.image_processor, "image_mean", [0.1, 0.2, 0.3]),
    "heads": lambda encoder: setattr(encoder.model.config.text_config, "num_attention_heads", 3),
    "token": lambda encoder: encoder.tokenizer.add_tokens(["<new>"]),
    "precision": lambda encoder: setattr(encoder, "autocast_dtype", torch.bfloat16),
    "dtype": lambda encoder: encoder.model.to(torch.bfloat16),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_is_another_once_anything_of_it_changes(change):
    encoder = create()
    before = model_digest(encoder)
    assert before == model_digest(create())
    CHANGES[change](encoder)
    assert model_digest(encoder) != before


def test_another_place_makes_no_other_model(tmp_path):
    create().save_pretrained(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one, two = (MultimodalEncoder.from_pretrained(tmp_path / name, device="cpu") for name in ("one", "two"))
    assert model_digest(one) == model_digest(two)


def test_a_tower_is_another_with_other_settings():
    encoder = create()
    tower = encoder.model.model.visual
    before = tower_digest(tower)
    assert before == tower_digest(create().model.model.visual)
    tower.config.num_heads = 8
    assert tower_digest(tower) != before


def test_an_input_is_its_text_and_its_pictures_state(tmp_path):
    picture = tmp_path / "a.png"
    Image.new("RGB", (8, 8), "red").save(picture)
    first = describe({"text": "a", "image": str(picture)})
    assert first == ["a", str(picture), picture.stat().st_size, picture.stat().st_mtime_ns]
    assert describe(str(picture)) == describe(picture) == [None, *first[1:]]
    Image.new("RGB", (8, 8), "blue").save(picture)
    picture.touch()
    assert describe(picture) != [None, *first[1:]]
    assert describe("a") == describe({"text": "a"}) == ["a"]
    assert describe(Image.new("RGB", (8, 8))) is None
