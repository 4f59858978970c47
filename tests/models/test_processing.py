from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from elva.models.processing import parse_input
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


@pytest.mark.parametrize("suffix", ["jfif", "avif", "jpe", "jp2", "JPG", "ppm", "heic", "svg", "apng"])
def test_a14_every_pictures_suffix_makes_a_path(tmp_path, suffix):
    file = tmp_path / f"a cat.{suffix}"
    file.write_bytes(b"whatever")
    assert parse_input(str(file), 0).image == file
    message = re.escape(f"inputs[2]: 'absent.{suffix}' looks like a picture's path but there is no such file")
    for line in (f"absent.{suffix}", f"absent.{suffix}\n"):
        with pytest.raises(FileNotFoundError, match=message):
            parse_input(line, 2)
    with pytest.raises(FileNotFoundError, match="looks like a picture's path"):
        parse_input(f"www.host/absent.{suffix}?width=200", 2)
    assert parse_input(f"see photo.{suffix}", 0).text == f"see photo.{suffix}"
    assert parse_input({"text": f"absent.{suffix}"}, 0).text == f"absent.{suffix}"


def test_a14_a_file_in_a_folder_needs_no_suffix(tmp_path):
    (tmp_path / "0001").touch()
    assert parse_input(f"{tmp_path}/0001", 0).image == tmp_path / "0001"
    assert parse_input("red/blue", 0).text == "red/blue"


@pytest.mark.parametrize(
    "url", ["https://host/a.png", "http://host/pictures?id=3", "s3://b/k.jpg", "data:image/png;base64,iVBO"]
)
def test_a14_urls_are_refused(url):
    with pytest.raises(ValueError, match=re.escape(f"inputs[1]: {url!r} is a URL, expected a file")):
        parse_input(url, 1)
    with pytest.raises(ValueError, match=re.escape(f"inputs[1]['image']: {url!r} is a URL, expected a file")):
        parse_input({"image": url}, 1)
    assert parse_input({"text": url}, 1).text == url
    assert parse_input(f"see {url} for more", 1).text == f"see {url} for more"
    assert parse_input("note: data:image is a scheme", 1).text == "note: data:image is a scheme"


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


def test_c26_the_input_is_named_by_its_place_in_the_whole_list(tiny_encoder, tmp_path):
    """Whatever the order and the batches in which inputs are encoded."""
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(tmp_path / "float.tif")
    texts = ["a much longer text than all the others here", "b", "c"]
    message = re.escape(f"inputs[3]: {tmp_path}/float.tif is no readable picture: float samples")
    with pytest.raises(ValueError, match=message):
        tiny_encoder.encode([*texts, tmp_path / "float.tif"], mode="direct", batch_size=2)
    with pytest.raises(ValueError, match=r"inputs\[3\]: picture of 900 × 2 pixels refused"):
        tiny_encoder.encode([*texts, Image.new("RGB", (900, 2))], instruction="Find:", batch_size=1)


def test_c26_bombs_are_named(tiny_encoder, tmp_path):
    file = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(file)
    with pytest.raises(
        ValueError, match=re.escape(f"inputs[1]: {file} is no readable picture: refused: expected at most")
    ):
        tiny_encoder.prepare(["fine", file])


def test_a6_16_bit_pictures_are_seen_as_their_8_bit_copies(tiny_encoder):
    grey = np.arange(96 * 96, dtype=np.uint32).reshape(96, 96) % 256
    deep = tiny_encoder.processor.picture(Image.fromarray((grey * 257).astype(np.uint16)), "inputs[0]")
    plain = tiny_encoder.processor.picture(Image.fromarray(grey.astype(np.uint8)), "inputs[0]")
    assert torch.equal(deep.pixels, plain.pixels)


def test_files_are_cached_until_they_change(own_encoder, tmp_path):
    file = tmp_path / "a.png"
    Image.new("RGB", (96, 96), "red").save(file)
    first = own_encoder.processor.picture(file, "inputs[0]").pixels
    again = own_encoder.processor.picture(file, "inputs[0]").pixels
    assert again is first
    Image.new("RGB", (64, 96), "blue").save(file)
    changed = own_encoder.processor.picture(file, "inputs[0]").pixels
    assert not torch.equal(changed, first)


@pytest.mark.parametrize(
    ("inputs", "instruction", "kind", "message"),
    [
        (
            ["a", "b\ud800"],
            None,
            ValueError,
            r"inputs\[1\]: character 1 is '\\ud800', half of a surrogate pair",
        ),
        ([{"text": "\udc00"}], None, ValueError, r"inputs\[0\]\['text'\]: character 0 is '\\udc00', half"),
        (["a"], "\ud800", ValueError, r"instructions: character 0 is"),
        (["a", "b"], ["c", "\ud800"], ValueError, r"instructions\[1\]: character 0 is"),
        (["a"], 5, TypeError, "instructions: int given, expected a str or a list with one for each input"),
        (["a"], {"a": 1}, TypeError, "instructions: dict given, expected a str or a list"),
        (["a"], b"x", TypeError, "instructions: bytes given, expected a str or a list"),
        (["a", "b"], [None, 5], TypeError, r"instructions\[1\]: int given, expected a str or None"),
    ],
)
def test_what_no_tokenizer_takes_is_named(tiny_encoder, inputs, instruction, kind, message):
    with pytest.raises(kind, match=message):
        tiny_encoder.encode(inputs, instruction)
