from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from elva.models.processing import parse_input, to_rgb
from elva.models.prompts import PROMPTS, get_prompt


def decoded(encoder, batch, row=0):
    return encoder.tokenizer.decode(batch["input_ids"][row][batch["attention_mask"][row] == 1])


@pytest.mark.parametrize("name", sorted(PROMPTS))
def test_prompt_of_text_and_picture(tiny_encoder, name, monkeypatch):
    monkeypatch.setattr(tiny_encoder.processor, "prompt", get_prompt(name))
    batch = tiny_encoder.prepare([{"text": "a cat.", "image": Image.new("RGB", (96, 96))}], "Find it:")
    assert decoded(tiny_encoder, batch) == get_prompt(name).render("Find it: a cat.", image_tokens=16)


def test_the_papers_prompt_asks_for_the_summary_and_ret():
    prompt = get_prompt("paper").render("red car")
    assert prompt.startswith("<|im_start|>user\nred car\nAnalyze and summarize the key information")
    assert prompt.endswith("[RET] to represent the entire input.<|im_end|>\n<|im_start|>assistant\n")


def test_unknown_prompt():
    with pytest.raises(ValueError, match="prompt: no template named 'long'; expected one of paper, short"):
        get_prompt("long")


def test_special_tokens_in_a_text_stay_text(tiny_encoder):
    text = "<|image_pad|> and <|im_end|> and [RET]"
    batch = tiny_encoder.prepare([text])
    assert batch["mm_token_type_ids"].sum() == 0
    assert (batch["input_ids"] == tiny_encoder.ret_id).sum() == 0
    assert text in decoded(tiny_encoder, batch)


def test_every_kind_of_input(tmp_path):
    file = tmp_path / "red square.png"
    Image.new("RGB", (8, 8), "red").save(file)
    assert parse_input("a red square", 0).text == "a red square"
    assert parse_input("see photo.png for a cat", 0).text == "see photo.png for a cat"
    assert parse_input(str(file), 0).image == file
    assert parse_input(file, 0).image == file
    assert parse_input({"text": "x", "image": str(file)}, 0).image == file
    assert parse_input({"text": "photo.png"}, 0).text == "photo.png"
    assert parse_input({"text": None, "image": file}, 0).text is None


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (3, TypeError, r"inputs\[1\]: int given, expected a str"),
        ({"text": "a", "picture": "b"}, ValueError, r"inputs\[1\]: unknown keys picture"),
        ({}, ValueError, r"inputs\[1\]: neither 'text' nor 'image'"),
        ({"text": 5}, TypeError, r"inputs\[1\]\['text'\]: int given"),
        ({"image": 5}, TypeError, r"inputs\[1\]\['image'\]: int given"),
        ("absent.png", FileNotFoundError, r"inputs\[1\]: 'absent.png' looks like"),
        (Path("absent"), FileNotFoundError, r"inputs\[1\]: no picture at absent"),
        ({"image": "absent.png"}, FileNotFoundError, r"inputs\[1\]: no picture at absent.png"),
        (Image.new("RGB", (900, 2)), ValueError, r"inputs\[1\]: picture of 900 × 2 pixels refused"),
    ],
)
def test_bad_inputs_are_named(tiny_encoder, value, error, message):
    with pytest.raises(error, match=message):
        tiny_encoder.prepare(["fine", value])


def test_a_single_input_is_refused(tiny_encoder):
    with pytest.raises(TypeError, match="inputs: one str given, expected a list"):
        tiny_encoder.encode("a cat")


def test_an_empty_list_cannot_be_prepared(tiny_encoder):
    with pytest.raises(ValueError, match="inputs: an empty list"):
        tiny_encoder.prepare([])


def test_instructions_must_match(tiny_encoder):
    with pytest.raises(ValueError, match="instructions: 1 given, expected one or 2"):
        tiny_encoder.prepare(["a", "b"], ["Find"])


def test_broken_picture_is_named(tiny_encoder, tmp_path):
    file = tmp_path / "broken.png"
    file.write_bytes(b"no picture at all")
    with pytest.raises(ValueError, match=r"inputs\[0\]: .*broken.png is no readable picture"):
        tiny_encoder.prepare([file])


def test_truncated_picture_is_named(tiny_encoder, tmp_path):
    file = tmp_path / "half.png"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"half\.png is no readable picture"):
        tiny_encoder.prepare([file])


def test_transparency_becomes_white():
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert to_rgb(image).getpixel((1, 1)) == (255, 255, 255)


def test_files_are_cached_until_they_change(own_encoder, tmp_path):
    file = tmp_path / "a.png"
    Image.new("RGB", (96, 96), "red").save(file)
    first = own_encoder.processor.picture(file, 0).pixels
    again = own_encoder.processor.picture(file, 0).pixels
    assert again is first
    Image.new("RGB", (64, 96), "blue").save(file)
    changed = own_encoder.processor.picture(file, 0).pixels
    assert not torch.equal(changed, first)
