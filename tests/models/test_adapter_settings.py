"""Expressions of an adapter: matched as PEFT would, and stopped where they do not come to an end."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from torch import nn

from elva.models import adapter_settings as module
from elva.models.adapter_settings import adapter_settings

ENDLESS = r"((\w+\.?)+)+!"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query_projection = nn.Linear(4, 4)
        self.value_projection = nn.Linear(4, 4)


def model() -> nn.Module:
    body = nn.ModuleDict({"some_long_name_of_layers": nn.ModuleList(Block() for _ in range(3))})
    return nn.ModuleDict({"body": body, "head": nn.Linear(4, 4)})


def write(folder: Path, **values) -> str:
    settings = {"peft_type": "LORA", "r": 2, "target_modules": ["query_projection"], **values}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return str(folder)


def ranks(settings) -> dict[str, tuple[int, float]]:
    wrapped = get_peft_model(model(), settings)
    layers = {name: part for name, part in wrapped.named_modules() if hasattr(part, "lora_A") and part.lora_A}
    return {name: (layer.r["default"], layer.scaling["default"]) for name, layer in layers.items()}


@pytest.mark.parametrize(
    "values",
    [
        {"target_modules": r".*\.[12]\.(query|value)_projection"},
        {"target_modules": ["query_projection", "head"], "exclude_modules": r".*\.1\..*"},
        {"target_modules": "all-linear"},
        {"target_modules": r".*projection", "rank_pattern": {r"1\.query_projection": 4, ".*query.*": 3}},
        {"target_modules": ["head"], "alpha_pattern": {"head": 32}, "rank_pattern": {}},
        {
            "target_modules": ["value_projection"],
            "layers_to_transform": [0, 2],
            "layers_pattern": "some_long_name_of_layers",
        },
    ],
)
def test_they_choose_the_layers_that_peft_would(values, tmp_path):
    found = ranks(adapter_settings(write(tmp_path, **values), model()))
    assert found
    assert found == ranks(LoraConfig(**{"r": 2, "target_modules": ["query_projection"], **values}))


@pytest.mark.parametrize(
    "values",
    [
        {"target_modules": ENDLESS},
        {"exclude_modules": ENDLESS},
        {"rank_pattern": {ENDLESS: 3}},
        {"alpha_pattern": {ENDLESS: 3}},
    ],
)
def test_an_expression_without_an_end_is_stopped(values, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.5)
    (key,) = values
    start = time.monotonic()
    with pytest.raises(ValueError, match=f"{key} is an expression that does not come to an end within 0.5 s"):
        adapter_settings(write(tmp_path, **values), model())
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target_modules": "(query"}, "target_modules is no regular expression: .*unterminated subpattern"),
        ({"rank_pattern": {"(": 3}}, "rank_pattern is no regular expression"),
        ({"rank_pattern": [3]}, "rank_pattern is list, expected an object of names and numbers"),
        ({"modules_to_save": [ENDLESS]}, "modules_to_save holds .*, expected names of layers"),
        ({"layers_pattern": ENDLESS, "layers_to_transform": [1]}, "layers_pattern holds .*, expected names"),
        ({"target_modules": "absent"}, None),
    ],
)
def test_other_expressions_are_named(values, message, tmp_path):
    name = write(tmp_path, **values)
    if message is None:
        with pytest.raises(ValueError, match="absent"):
            get_peft_model(model(), adapter_settings(name, model()))
        return
    with pytest.raises(ValueError, match=message) as error:
        adapter_settings(name, model())
    assert str(error.value).startswith(f"{tmp_path / 'adapter_config.json'}: ")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"lora_alpha": True}, "lora_alpha is True"),
        ({"r": 0}, "r is 0"),
        ({"lora_alpha": "16"}, "lora_alpha is '16'"),
        ({"r": True}, "r is True"),
        ({"alpha_pattern": {"head": False}}, r"alpha_pattern\['head'\] is False"),
        ({"rank_pattern": {"head": [3]}}, r"rank_pattern\['head'\] is \[3\]"),
    ],
)
def test_what_is_no_scale_is_named(values, named, tmp_path):
    with pytest.raises(ValueError, match=f"adapter_config.json: {named}, expected a "):
        adapter_settings(write(tmp_path, **values), model())
