"""Weights that are not there: an error that lists them, never random ones in their place."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from elva.data.mrbench.checkpoint import CheckpointJudge
from elva.models import MultimodalEncoder, tiny
from elva.models.files import weight_files

SMALL = {
    "text": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 96,
    },
    "vision": {"depth": 1, "embed_dim": 64, "num_heads": 2},
}
HEAD = "lm_head.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model"
    tiny.create(["a red cat", "two dogs"] * 4, preset=SMALL).save_pretrained(path)
    return path


def changed(saved: Path, tmp_path: Path, change) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def embeddings(weights) -> str:
    return next(key for key in weights if key.endswith("embed_tokens.weight"))


CHANGES = {
    "prefix": (
        lambda weights: {f"module.{key}": value for key, value in weights.items()},
        r"weights have no layer \(module\.model\..*names begin with 'module\.'",
    ),
    "two prefixes": (
        lambda weights: {f"_orig_mod.module.{key}": value for key, value in weights.items()},
        r"names begin with '_orig_mod\.module\.'",
    ),
    "a layer": (
        lambda weights: {key: value for key, value in weights.items() if "layers.1." not in key},
        r"12 of its layers have no weights in the file \(model\.language_model\.layers\.1\.[\w.]+, [^)]*, …\)$",
    ),
    "half": (
        lambda weights: dict(list(weights.items())[::2]),
        "of its layers have no weights in the file",
    ),
    "embeddings": (
        lambda weights: {key: value for key, value in weights.items() if key != embeddings(weights)},
        r"2 of its layers have no weights in the file \(lm_head\.weight, model\.language_model\.embed_tokens",
    ),
    "more": (
        lambda weights: {**weights, "score.weight": torch.zeros(2)},
        r"1 weights have no layer \(score\.weight\)$",
    ),
    "shape": (
        lambda weights: {
            key: value[:10].clone() if key == "model.norm.weight" else value for key, value in weights.items()
        },
        r"1 weights have another shape \(model\.language_model\.norm\.weight \[10\], expected \[64\]\)$",
    ),
    "integers": (
        lambda weights: {
            key: value.long() if key == "model.norm.weight" else value for key, value in weights.items()
        },
        r"1 weights are no floating-point numbers \(model\.norm\.weight I64\)$",
    ),
    "two names": (
        lambda weights: {**weights, "model.language_model.norm.weight": weights["model.norm.weight"] * 3},
        r"1 weights are there twice \(model\.language_model\.norm\.weight and model\.norm\.weight\), expected one",
    ),
    "misshapen head": (
        lambda weights: {**weights, HEAD: torch.zeros(7, 64)},
        r"lm_head\.weight is \[7, 64\] and model\.embed_tokens\.weight \[\d+, 64\], expected one shape for both$",
    ),
    "no numbers in the head": (
        lambda weights: {**weights, HEAD: weights[embeddings(weights)] * torch.nan},
        r"1 weights hold NaN or infinity \(lm_head\.weight\)",
    ),
    "infinity in the tower": (
        lambda weights: {
            key: value / 0 if key == "visual.patch_embed.proj.weight" else value
            for key, value in weights.items()
        },
        r"1 weights hold NaN or infinity \(model\.visual\.patch_embed\.proj\.weight\)",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize(
    "load", [MultimodalEncoder.from_pretrained, CheckpointJudge], ids=["encoder", "judge"]
)
def test_weights_that_are_not_there_are_an_error(name, load, saved, tmp_path, caplog):
    change, message = CHANGES[name]
    folder = changed(saved, tmp_path, change)
    with pytest.raises(ValueError, match=message) as error:
        load(str(folder))
    assert str(error.value).startswith(f"{folder}: ")
    assert "\n" not in str(error.value) and "LOAD REPORT" not in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: {**weights, HEAD: weights[embeddings(weights)].clone()},
        lambda weights: {
            HEAD if key == embeddings(weights) else key: value for key, value in weights.items()
        },
        lambda weights: {key: value.double() for key, value in weights.items()},
    ],
    ids=["both", "head alone", "float64"],
)
def test_a_tied_head_may_stand_in_either_place(change, saved, tmp_path):
    expected = MultimodalEncoder.from_pretrained(saved, device="cpu").encode(["a red cat"], mode="direct")
    folder = changed(saved, tmp_path, change)
    encoder = MultimodalEncoder.from_pretrained(folder, device="cpu", dtype=torch.float32)
    assert torch.equal(encoder.encode(["a red cat"], mode="direct"), expected)


class Payload:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("content", ["tensors", "integers", "code"])
def test_pickled_weights_are_read_as_tensors_alone(content, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    if content == "code":
        file.write_bytes(pickle.dumps({**weights, "x": Payload()}))
    else:
        torch.save({k: v.long() if content == "integers" else v for k, v in weights.items()}, file)
    if content == "tensors":
        loaded = MultimodalEncoder.from_pretrained(folder, device="cpu").encode(["a cat"], mode="direct")
        assert torch.equal(loaded, MultimodalEncoder.from_pretrained(saved).encode(["a cat"], mode="direct"))
        return
    message = {
        "integers": r"weights are no floating-point numbers \(.* torch\.int64",
        "code": "holds more than tensors",
    }
    with pytest.raises(ValueError, match=message[content]) as error:
        MultimodalEncoder.from_pretrained(folder, device="cpu")
    assert "\n" not in str(error.value) and not (tmp_path / "ran").exists()


def test_an_index_names_the_files(tmp_path):
    for shard in ("a.safetensors", "b.safetensors"):
        save_file({shard[0]: torch.zeros(1)}, tmp_path / shard)
    index = tmp_path / "model.safetensors.index.json"
    shards = {"b": "b.safetensors", "a": "a.safetensors", "c": "a.safetensors"}
    index.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    assert weight_files(str(tmp_path)) == [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for values in ({}, {"metadata": None}, {"metadata": [1]}):
        index.write_text(json.dumps({**values, "weight_map": shards}))
        with pytest.raises(
            ValueError, match=r"index\.json: metadata is (NoneType|list), expected an object$"
        ):
            weight_files(str(tmp_path))
    index.write_text('{"metadata": {}, "weight_map": {"a": "c.safetensors"}}')
    with pytest.raises(FileNotFoundError, match=r"index\.json: there is no file 'c\.safetensors'"):
        weight_files(str(tmp_path))
    index.write_text('{"weight_map": [1]}')
    with pytest.raises(ValueError, match=r"index\.json: weight_map is list, expected names of files"):
        weight_files(str(tmp_path))
    index.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"index\.json: no JSON: "):
        weight_files(str(tmp_path))


def test_a_token_without_an_embedding_is_named(saved, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    encoder = MultimodalEncoder.from_pretrained(saved, device="cpu")
    known = len(encoder.tokenizer)
    encoder.tokenizer.add_tokens(["<one>", "<two>"])
    encoder.tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match=f"knows {known + 2} tokens and the model has embeddings of {known}"):
        MultimodalEncoder.from_pretrained(folder, device="cpu")


def test_weights_that_are_no_numbers_give_no_embeddings(saved):
    encoder = MultimodalEncoder.from_pretrained(saved, device="cpu")
    encoder.model.model.language_model.norm.weight.data.fill_(torch.nan)
    message = r"inputs\[0\]: its embedding is not finite, nor are those of 1 other inputs of 2; the weights hold NaN"
    for mode in ("direct", "generative"):
        with pytest.raises(FloatingPointError, match=message):
            encoder.encode(["a red cat", "two dogs"], mode=mode)


@pytest.mark.parametrize("shard", ["../other/model.safetensors", "/etc/hostname", "a\0b"])
def test_an_index_reads_no_files_of_other_directories(saved, tmp_path, shard):
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "model-1.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    MultimodalEncoder.from_pretrained(folder, device="cpu")
    index["weight_map"][embeddings(weights)] = shard
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index\.json: .* leads out of the directory, expected the name"):
        MultimodalEncoder.from_pretrained(folder, device="cpu")


def test_an_index_without_weights_is_named(saved, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"metadata": {}, "weight_map": {}}')
    with pytest.raises(ValueError, match=r"index\.json: weight_map is dict, expected names of files"):
        MultimodalEncoder.from_pretrained(folder, device="cpu")


LAYER = "model.layers.0.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, rf"1 weights are no floating-point numbers \({LAYER} I8\)$"),
        ({"quant_method": "gptq"}, r"/config\.json: transformers cannot use its quantization_config: .*bits"),
        ({"foo": 1}, r"/config\.json: transformers cannot use its quantization_config: .*quant_method"),
        pytest.param(
            {"quant_method": "fp8"},
            r"packed \(model\.language_model\.layers\.0\.mlp\.down_proj\.weight torch\.int8",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU it stays packed"),
        ),
    ],
)
def test_integers_behind_a_quantization_that_does_not_unpack_them_are_refused(
    settings, message, saved, tmp_path
):
    folder = changed(
        saved, tmp_path, lambda weights: {**weights, LAYER: (weights[LAYER] * 10).to(torch.int8)}
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    with pytest.raises(ValueError, match=message) as error:
        MultimodalEncoder.from_pretrained(folder, device="cpu")
    assert str(error.value).startswith(str(folder)) and "\n" not in str(error.value)
