"""sentence-transformers' modules: what is read of them, and what is refused because it is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from elva.models.config import EncoderConfig, read_config

LIBRARY = "sentence_transformers.models."
LAST_TOKEN = EncoderConfig(mode="direct", read="before")


def write(folder: Path, *kinds: str, pooling: str = "1_Pooling", settings: str = "lasttoken") -> str:
    modules = [
        {"idx": place, "name": str(place), "path": pooling if kind.endswith("Pooling") else "", "type": kind}
        for place, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / pooling).mkdir()
    (folder / pooling / "config.json").write_text(json.dumps({"pooling_mode": settings}))
    return str(folder)


@pytest.mark.parametrize("library", [LIBRARY, "sentence_transformers.base.modules.transformer."])
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("pooling", ["1_Pooling", "pool"])
def test_transformer_pooling_and_normalize_are_read(library, normalised, pooling, tmp_path):
    kinds = [f"{library}Transformer", f"{library}Pooling", *[f"{library}Normalize"] * normalised]
    assert read_config(write(tmp_path, *kinds, pooling=pooling)) == LAST_TOKEN


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(
    "kinds",
    [
        ("Transformer", "Pooling", "Dense"),
        ("Transformer", "Pooling", "Dense", "Normalize"),
        ("Transformer", "Pooling", "LayerNorm"),
        ("Router",),
        ("Transformer",),
        ("Transformer", "Normalize", "Pooling"),
    ],
)
def test_another_module_is_refused(kinds, own, tmp_path):
    write(tmp_path, *[LIBRARY + kind for kind in kinds])
    if own:
        (tmp_path / "elva.json").write_text("{}")
    with pytest.raises(ValueError) as error:
        read_config(str(tmp_path))
    assert str(error.value) == (
        f"{tmp_path / 'modules.json'}: modules {', '.join(kinds)} given, expected Transformer, Pooling and perhaps "
        "Normalize: another module would change the embeddings, and is not read"
    )


def test_a_module_of_the_checkpoints_own_code_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"modules custom_st\.Transformer, Pooling given"):
        read_config(write(tmp_path, "custom_st.Transformer", f"{LIBRARY}Pooling"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON: "),
        ('{"type": 1}', "expected a list of modules"),
        ("[1]", "expected a list of modules"),
        ("[]", "modules none given"),
        ('[{"type": 5}]', "modules 5 given"),
    ],
)
def test_a_list_of_modules_that_is_none_is_named(text, message, tmp_path):
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_config(str(tmp_path))
    assert str(error.value).startswith(str(tmp_path / "modules.json"))


def test_modules_in_other_places_are_named(tmp_path):
    write(tmp_path, f"{LIBRARY}Transformer", f"{LIBRARY}Pooling")
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=r"paths \['0_Transformer', '1_Pooling'\] given, expected ''"):
        read_config(str(tmp_path))
    modules[0]["path"], modules[1]["path"] = "", "elsewhere"
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=r"a pooling in .elsewhere., but there is no config\.json"):
        read_config(str(tmp_path))


def test_another_pooling_is_refused_and_an_own_setting_goes_before_it(tmp_path):
    name = write(tmp_path, f"{LIBRARY}Transformer", f"{LIBRARY}Pooling", settings="mean")
    with pytest.raises(ValueError, match="pooling mean given, expected lasttoken"):
        read_config(name)
    (tmp_path / "elva.json").write_text('{"read": "before"}')
    assert read_config(name) == EncoderConfig(read="before")


def test_a_name_on_the_hub_is_read_as_a_directory_is(tmp_path, monkeypatch):
    write(tmp_path, *[LIBRARY + kind for kind in ("Transformer", "Pooling", "Dense")])
    monkeypatch.setattr("transformers.utils.has_file", lambda name, file: (tmp_path / file).is_file())
    monkeypatch.setattr("transformers.utils.cached_file", lambda name, file: str(tmp_path / file))
    with pytest.raises(ValueError, match="modules Transformer, Pooling, Dense given"):
        read_config("owner/retriever")
    (tmp_path / "modules.json").unlink()
    assert read_config("owner/retriever") == LAST_TOKEN
    (tmp_path / "elva.json").write_text('{"prompt": "short"}')
    assert read_config("owner/retriever") == EncoderConfig(prompt="short")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("[]", "list given, expected a JSON object"),
        ("{", "no JSON: "),
        ('{"mode": ["direct"]}', r"mode: \['direct'\] given, expected one of generative, direct"),
        ('{"read": {}}', r"read: {} given, expected one of at, before"),
        ('{"prompt": 5}', "prompt: 5 given, expected a name"),
        ('{"prompt": []}', r"prompt: \[\] given, expected a name"),
        (
            '{"max_summary_tokens": "64"}',
            "max_summary_tokens: '64' given, expected a whole number of at least 1",
        ),
        (
            '{"max_summary_tokens": true}',
            "max_summary_tokens: True given, expected a whole number of at least 1",
        ),
        ('{"max_pixels": 1.5}', "max_pixels: 1.5 given, expected a whole number of at least 1 or None"),
        ('{"image_backend": 1}', "image_backend: 1 given, expected one of pil, torchvision"),
        ('{"pool": 1}', "unknown keys pool; written by another version of elva?"),
    ],
)
def test_wrong_values_of_elva_json_are_one_line(values, message, tmp_path):
    file = tmp_path / "elva.json"
    file.write_text(values)
    with pytest.raises(ValueError, match=message) as error:
        read_config(str(tmp_path))
    assert str(error.value).startswith(f"{file}: ") and "\n" not in str(error.value)


def test_a_pooling_of_another_directory_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    name = write(tmp_path / "model", f"{LIBRARY}Transformer", f"{LIBRARY}Pooling", pooling="../elsewhere")
    with pytest.raises(ValueError, match=r"modules\.json: '\.\./elsewhere' leads out of the directory"):
        read_config(name)
