"""A tokenizer or image processor that is not the model's is one line that names the file, before an embedding."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import Qwen2VLForConditionalGeneration

from elva.models import tiny
from elva.models.image_processor import load_image_processor
from elva.models.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "model"
    tiny.create(["a red cat", "two dogs"] * 4).save_pretrained(path)
    return path


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    shutil.copytree(saved, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def model(tiny_encoder, saved):
    # no weights are looked at
    return type("Model", (), {"config": Qwen2VLForConditionalGeneration.config_class.from_pretrained(saved)})


def vocabulary(change):
    def apply(folder: Path) -> None:
        values = json.loads((folder / "tokenizer.json").read_text())
        change(values)
        (folder / "tokenizer.json").write_text(json.dumps(values))

    return apply


def settings(file: str, **values):
    def apply(folder: Path) -> None:
        known = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**known, **values}))

    return apply


def text(file: str, content: str):
    return lambda folder: (folder / file).write_text(content)


def without(token: str):
    def change(values) -> None:
        values["added_tokens"] = [own for own in values["added_tokens"] if own["content"] != token]

    return vocabulary(change)


def moved(values) -> None:
    for own in values["added_tokens"]:
        own["id"] = 3 if own["content"] == "[RET]" else own["id"]


TOKENIZERS = {
    "no vocabulary": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        r"gives '' back for .*, expected them unchanged; its tokenizer\.json is not there$",
    ),
    "nothing": (
        lambda folder: [(folder / f"tokenizer{end}.json").unlink() for end in ("", "_config")],
        r"its tokenizer\.json is not there$",
    ),
    "letters": (
        vocabulary(lambda values: values["model"]["vocab"].pop("a")),
        r"model/tokenizer\.json: transformers cannot use it|its tokenizer\.json is of another tokenizer$",
    ),
    "damaged": (text("tokenizer.json", "{"), r"model/tokenizer\.json: no JSON: "),
    "empty": (text("tokenizer.json", "{}"), r"model/tokenizer\.json: transformers cannot use it: KeyError"),
    "a list": (text("tokenizer.json", "[]"), r"model/tokenizer\.json: list given, expected a JSON object"),
    "settings": (text("tokenizer_config.json", "[]"), r"model/tokenizer_config\.json: list given"),
    "class": (
        settings("tokenizer_config.json", tokenizer_class=5),
        r"model/tokenizer\.json: transformers cannot use it: AttributeError",
    ),
    "no image token": (
        without("<|image_pad|>"),
        r"model: the tokenizer has no <\|image_pad\|>, expected the",
    ),
    "ret moved": (vocabulary(moved), r"<\|image_pad\|> is token \d+ and the model's config\.json says \d+"),
    "ret shares": (
        vocabulary(lambda values: values["model"]["vocab"].update({"[RET]": 300})),
        r"the tokens '.*' and '.*' are both number 300$",
    ),
}


@pytest.mark.parametrize("fault", TOKENIZERS)
def test_a_tokenizer_that_is_not_the_models_is_refused(fault, folder, model):
    change, message = TOKENIZERS[fault]
    change(folder)
    with pytest.raises(ValueError, match=message) as error:
        load_tokenizer(str(folder), model)
    assert str(error.value).startswith(str(folder)) and "\n" not in str(error.value)


def test_ret_is_no_ordinary_token(folder, model):
    def rename(values) -> None:
        known = values["model"]["vocab"]
        last = max(known, key=known.get)
        values["model"]["merges"].pop()
        known["[RET]"] = known.pop(last)

    without("[RET]")(folder)
    vocabulary(rename)(folder)
    with pytest.raises(
        ValueError, match=r"model: \[RET\] is the ordinary token \d+, expected a special one$"
    ):
        load_tokenizer(str(folder), model)


PROCESSORS = {
    "damaged": (text("preprocessor_config.json", "{"), "no JSON: "),
    "a list": (text("preprocessor_config.json", "[]"), "list given, expected a JSON object"),
    "merge 0": ({"merge_size": 0}, "merge_size is 0, expected 2 as in the vision tower's settings$"),
    "merge 3": ({"merge_size": 3}, "merge_size is 3, expected 2 "),
    "merge word": ({"merge_size": "2"}, "merge_size is '2', expected 2 "),
    "patch": ({"patch_size": 7}, "patch_size is 7, expected 12 "),
    "frames": ({"temporal_patch_size": 2}, "temporal_patch_size is 2, expected 1 "),
    "no size": ({"size": {}}, "transformers cannot use it: ValueError: size must"),
    "words": (
        {"size": {"shortest_edge": "a", "longest_edge": 5}},
        "size has shortest_edge 'a' and longest_edge 5",
    ),
    "turned": (
        {"size": {"shortest_edge": 9, "longest_edge": 5}},
        "size has shortest_edge 9 and longest_edge 5",
    ),
    "mean": ({"image_mean": [0.5]}, "transformers cannot use it: ValueError: mean must have 3"),
    "deviation": ({"image_std": [0, 0, 0]}, "black and white come out as .*, expected two numbers"),
    "no scale": ({"rescale_factor": 0}, "black and white come out as .*, expected two numbers"),
    "scale": ({"rescale_factor": "x"}, "transformers cannot use it: "),
}


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("fault", PROCESSORS)
def test_an_image_processor_that_does_not_fit_the_tower_is_refused(fault, folder, model):
    change, message = PROCESSORS[fault]
    (change if callable(change) else settings("preprocessor_config.json", **change))(folder)
    with pytest.raises(ValueError, match=message) as error:
        load_image_processor(str(folder), model.config.vision_config, "pil")
    assert str(error.value).startswith(f"{folder}/preprocessor_config.json: ")
    assert "\n" not in str(error.value)
