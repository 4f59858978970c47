"""Retrievers of others: adapters instead of and beside weights, no [RET] yet, other poolings and architectures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from elva.models import EncoderConfig, MultimodalEncoder, tiny
from elva.models.image_processor import image_backend
from elva.models.prompts import RET_TOKEN

INPUTS = ["a red cat", {"text": "two dogs"}]
OWN, OLDER = "base_model.model.model.language_model.", "base_model.model.model."


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A checkpoint as transformers saves it: without [RET], without elva.json."""
    path = tmp_path_factory.mktemp("retriever") / "base"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "SPECIAL_TOKENS", tuple(t for t in tiny.SPECIAL_TOKENS if t != RET_TOKEN))
        tokenizer = tiny.train_tokenizer(["a red cat", "two dogs"] * 4)
        torch.manual_seed(0)
        model = tiny._model(tokenizer, tiny.PRESETS["tiny"])
    for part in (model, tokenizer, tiny._image_processor(48)):
        part.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def adapter(base) -> tuple[Path, torch.Tensor]:
    """An adapter on ``base``, saved by PEFT, and the embeddings with it in place."""
    encoder = MultimodalEncoder.from_pretrained(base, device="cpu")
    encoder.model = get_peft_model(encoder.model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    encoder.model.peft_config["default"].base_model_name_or_path = str(base)
    torch.manual_seed(1)
    for name, parameter in encoder.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    path = base.parent / "adapter"
    encoder.model.save_pretrained(path)
    return path, encoder.encode(INPUTS, mode="direct")


def direct(path: Path) -> torch.Tensor:
    encoder = MultimodalEncoder.from_pretrained(path, device="cpu")
    assert encoder.model is encoder.base_model, "an adapter is left on the model"
    assert not any("lora" in name for name, _ in encoder.model.named_parameters())
    return encoder.encode(INPUTS, mode="direct")


def test_a_checkpoint_without_ret_gets_one(base):
    encoder = MultimodalEncoder.from_pretrained(base, device="cpu")
    assert RET_TOKEN not in json.loads((base / "tokenizer.json").read_text())["model"]["vocab"]
    assert encoder.tokenizer.convert_ids_to_tokens(encoder.ret_id) == RET_TOKEN
    weight = encoder.model.get_input_embeddings().weight
    torch.testing.assert_close(weight[encoder.ret_id], weight[: encoder.ret_id].mean(0))
    assert encoder.encode(INPUTS).isfinite().all()


@pytest.mark.parametrize("place", ["instead", "beside", "relative", "older names"])
def test_an_adapter_is_merged(base, adapter, tmp_path, place):
    path, expected = adapter
    assert (direct(base) - expected).abs().max() > 1e-2
    folder = tmp_path / "adapter"
    shutil.copytree(path, folder)
    if place == "beside":
        shutil.copytree(base, folder, dirs_exist_ok=True)
    if place == "relative":
        shutil.copytree(base, tmp_path / "base")
        file = folder / "adapter_config.json"
        settings = json.loads(file.read_text())
        file.write_text(json.dumps({**settings, "base_model_name_or_path": "../base"}))
    if place == "older names":
        weights = load_file(folder / "adapter_model.safetensors")
        assert all(name.startswith(OWN) for name in weights)
        renamed = {name.replace(OWN, OLDER): value for name, value in weights.items()}
        save_file(renamed, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    torch.testing.assert_close(direct(folder), expected, atol=1e-5, rtol=0)


def test_an_adapter_that_does_not_fit_is_refused(adapter, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(adapter[0], folder)
    weights = load_file(folder / "adapter_model.safetensors")
    renamed = {name.replace("q_proj", "query"): value for name, value in weights.items()}
    save_file(renamed, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="does not fit Qwen2VLForConditionalGeneration: 8 of its layers"):
        MultimodalEncoder.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("adapted", [False, True])
def test_another_architecture_is_refused_with_the_supported_ones(adapter, tmp_path, adapted):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    path = tmp_path / "bert"
    if adapted:
        path = tmp_path / "adapter"
        shutil.copytree(adapter[0], path)
        (path / "adapter_config.json").write_text('{"base_model_name_or_path": "../bert"}')
    with pytest.raises(
        ValueError, match="bert is a 'bert' model, expected one of qwen2_vl, qwen2_5_vl, qwen3_vl"
    ):
        MultimodalEncoder.from_pretrained(path, device="cpu")


def test_an_adapter_without_a_base_is_named(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": null}')
    with pytest.raises(
        ValueError, match="base_model_name_or_path is None, expected the model that it adapts"
    ):
        MultimodalEncoder.from_pretrained(tmp_path, device="cpu")


def test_a_config_without_weights_beside_an_adapter_is_no_base(base, adapter, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(adapter[0], folder)
    shutil.copy(base / "config.json", folder)
    torch.testing.assert_close(direct(folder), adapter[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("change", [5, -3])
def test_embeddings_that_were_resized_come_with_the_adapter(base, tmp_path, change):
    encoder = MultimodalEncoder.from_pretrained(base, device="cpu")
    height = len(encoder.tokenizer) + 8 + change
    for size in (len(encoder.tokenizer) + 8, height):
        encoder.model.resize_token_embeddings(size, mean_resizing=False)
    encoder.tokenizer.save_pretrained(tmp_path)
    torch.nn.init.normal_(encoder.model.get_input_embeddings().weight)
    encoder.model = get_peft_model(encoder.model, LoraConfig(r=4, target_modules=["q_proj"]))
    encoder.model.peft_config["default"].base_model_name_or_path = str(base)
    encoder.model.save_pretrained(tmp_path, save_embedding_layers=True)
    loaded = MultimodalEncoder.from_pretrained(tmp_path, device="cpu")
    assert loaded.model.get_input_embeddings().weight.shape[0] == height
    assert torch.equal(loaded.encode(INPUTS, mode="direct"), encoder.encode(INPUTS, mode="direct"))


@pytest.mark.parametrize("tied", [True, False])
def test_a_trained_row_of_a_new_token_comes_with_the_adapter(base, tmp_path, tied):
    model = MultimodalEncoder.from_pretrained(base, device="cpu").model
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 1)
        model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    rows = model.lm_head.weight.shape[0]  # [RET] is the last of them, and the base saved below lacks it
    model.resize_token_embeddings(rows - 1)
    model.save_pretrained(tmp_path / "base")
    shutil.copy(base / "preprocessor_config.json", tmp_path / "base")
    encoder = MultimodalEncoder.from_pretrained(base, device="cpu")
    encoder.tokenizer.save_pretrained(tmp_path / "adapter")
    model.resize_token_embeddings(rows)
    wrapped = get_peft_model(
        model, LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[rows - 1])
    )
    wrapped.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    for name, parameter in wrapped.named_parameters():
        if "trainable_tokens" in name:
            torch.nn.init.constant_(parameter, 3.0)
    wrapped.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    first, second = (
        MultimodalEncoder.from_pretrained(tmp_path / "adapter", device="cpu").model for _ in range(2)
    )
    head, embeddings = first.lm_head.weight, first.get_input_embeddings().weight
    assert embeddings.shape[0] == rows and bool((embeddings[-1] == 3).all())
    torch.testing.assert_close(head[-1], embeddings[-1] if tied else head[:-1].mean(0))
    assert torch.equal(second.lm_head.weight, head)


def test_tokens_without_embeddings_are_named(adapter, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(adapter[0], folder)
    encoder = MultimodalEncoder.from_pretrained(folder, device="cpu")
    rows = encoder.model.get_input_embeddings().weight.shape[0] - 1  # without [RET], which the base has not
    encoder.tokenizer.add_tokens(["<new>"])
    encoder.tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError) as error:
        MultimodalEncoder.from_pretrained(folder, device="cpu")
    assert str(error.value) == (
        f"{folder}: the adapter's tokenizer knows {rows + 2} tokens and its base has embeddings of {rows}; the adapter "
        f"brings none for 2 of them, e.g. token {rows}"
    )


def settings(**values):
    def change(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return change


def weights(change):
    def apply(folder: Path) -> None:
        found = change(load_file(folder / "adapter_model.safetensors"))
        save_file(found, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    return apply


def text(file: str, content: str):
    return lambda folder: (folder / file).write_text(content)


def binary(content):
    def apply(folder: Path) -> None:
        (folder / "adapter_model.safetensors").unlink()
        torch.save(content, folder / "adapter_model.bin")

    return apply


class Code:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


FAULTS = {
    "no JSON": (text("adapter_config.json", "{"), r"adapter_config\.json: no JSON"),
    "a list": (text("adapter_config.json", "[]"), "list given, expected a JSON object"),
    "base 5": (settings(base_model_name_or_path=5), "base_model_name_or_path is 5, expected the model"),
    "no base": (
        settings(base_model_name_or_path="../nowhere"),
        r"adapter_config\.json: base_model_name_or_path is '\.\./nowhere', and there is no such directory",
    ),
    "r": (settings(r="4"), r"adapter_config\.json: r is '4', expected a whole number above 0"),
    "another r": (settings(r=8), "16 weights have another shape .* expected "),
    "type": (settings(peft_type="FOO"), "PEFT cannot use it: KeyError: 'FOO'"),
    "kind": (settings(alora_invocation_tokens=[1]), "the adapter cannot be merged"),
    "targets": (settings(target_modules=5), "PEFT cannot use it"),
    "lost": (weights(lambda w: dict(list(w.items())[1:])), "1 of its layers have no weights in the file"),
    "prefix": (
        weights(lambda w: {f"module.{k}": v for k, v in w.items()}),
        r"16 weights have no layer .*; names begin with 'module\.'",
    ),
    "integers": (weights(lambda w: {k: v.long() for k, v in w.items()}), "16 weights are no floating-point"),
    "no numbers": (
        weights(lambda w: {k: v * torch.nan for k, v in w.items()}),
        "16 weights hold NaN or infinity",
    ),
    "two names": (
        weights(lambda w: {**w, **{k.replace(OWN, OLDER): v + 1 for k, v in list(w.items())[:1]}}),
        r"1 weights are there twice \(base_model\.model\..* and base_model",
    ),
    "narrow": (
        weights(lambda w: {**w, "base_model.model.lm_head.weight": torch.zeros(9, 3)}),
        r"lm_head\.weight is \[9, 3\], expected a row of 192 for every token",
    ),
    "cut off": (text("adapter_model.safetensors", "x"), "the file of weights is damaged or cut off"),
    "none": (lambda f: (f / "adapter_model.safetensors").unlink(), "an adapter_config.json without weights"),
    "code": (binary({"a": Code()}), r"its \.bin file holds more than tensors, or is damaged"),
    "no tensors": (binary({"a": "b"}), r"its \.bin file holds more than tensors, or is damaged"),
    "elva.json": (text("elva.json", '{"max_pixels": "1"}'), r"elva\.json: max_pixels: '1' given"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_adapter_that_cannot_be_used_is_one_line(fault, adapter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change, message = FAULTS[fault]
    folder = tmp_path / "adapter"
    shutil.copytree(adapter[0], folder)
    change(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        MultimodalEncoder.from_pretrained(folder, device="cpu")
    assert str(error.value).startswith(str(folder)) and "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": ["qwen2_vl"]}, r"is a \['qwen2_vl'\] model, expected one of qwen2_vl"),
        (
            {"text_config": {"hidden_size": "wide"}},
            r"config\.json: transformers cannot use it: .*hidden_size",
        ),
    ],
)
def test_a_config_with_wrong_values_is_one_line(values, message, base, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    with pytest.raises(ValueError, match=message) as error:
        MultimodalEncoder.from_pretrained(folder, device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "pooling", [{"pooling_mode": "lasttoken"}, {"pooling_mode_lasttoken": True, "include_prompt": True}]
)
def test_last_token_pooling_of_sentence_transformers_is_the_state_before_ret(base, tmp_path, pooling):
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    encoder = MultimodalEncoder.from_pretrained(folder, device="cpu")
    batch = encoder.prepare(INPUTS)
    with torch.no_grad():
        last = torch.nn.functional.normalize(encoder.hidden_states(batch)[:, -1], dim=-1)
    torch.testing.assert_close(encoder.encode(INPUTS), last, atol=1e-5, rtol=0)


def test_another_pooling_is_refused(base, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    with pytest.raises(ValueError, match=r"pooling \['mean_tokens'\] given, expected lasttoken"):
        MultimodalEncoder.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize(("settings", "asked"), [("kept", {"backend": "pil"}), ("removed", {})])
def test_the_image_processor_is_of_the_kind_that_was_saved(
    own_encoder, tmp_path, monkeypatch, settings, asked
):
    """transformers saves one name for its two kinds, and hands out torchvision's wherever that is installed."""
    own_encoder.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "elva.json"
    assert json.loads(file.read_text())["image_backend"] == "pil"
    if settings == "removed":
        file.unlink()
    seen = []
    load = AutoImageProcessor.from_pretrained

    def spy(name, **options):
        seen.append(options)
        return load(name, **options)

    monkeypatch.setattr(AutoImageProcessor, "from_pretrained", spy)
    loaded = MultimodalEncoder.from_pretrained(tmp_path / "model", device="cpu")
    assert seen == [{"trust_remote_code": False, **asked}]
    if settings == "kept":
        assert type(loaded.image_processor) is type(own_encoder.image_processor)


def test_torchvisions_image_processor_is_known_by_its_class():
    assert image_backend(type("Qwen2VLImageProcessorPil", (), {})()) == "pil"
    assert image_backend(type("Qwen2VLImageProcessor", (), {})()) == "torchvision"
    assert image_backend(type("Qwen2VLImageProcessorFast", (), {})()) == "torchvision"
    with pytest.raises(ValueError, match="image_backend: 'opencv' given, expected one of pil, torchvision"):
        EncoderConfig(image_backend="opencv")


def test_the_output_of_a_stage_is_not_taken_for_its_model(base, tmp_path):
    shutil.copytree(base, tmp_path / "run" / "model")
    (tmp_path / "run" / "config.json").write_text('{"seed": 0}')
    with pytest.raises(
        ValueError, match=r"run is the output of a stage, expected the model in it, .*run/model$"
    ):
        MultimodalEncoder.from_pretrained(tmp_path / "run", device="cpu")


@pytest.mark.parametrize("dtype", ["auto", None, "float32", torch.float32])
def test_dtypes_by_their_names(base, dtype):
    encoder = MultimodalEncoder.from_pretrained(base, dtype=dtype, device="cpu")
    assert encoder.base_model.dtype == torch.float32


@pytest.mark.parametrize("dtype", ["bf16", "int8", "nn", 16])
def test_what_is_no_dtype_is_named(base, dtype):
    with pytest.raises(ValueError, match=f"^dtype: {dtype!r} given, expected auto, float32"):
        MultimodalEncoder.from_pretrained(base, dtype=dtype, device="cpu")
