"""Checkpoints that hold a PEFT adapter, beside weights of their own or instead of them."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from elva.models.adapter_settings import ADAPTER_CONFIG, adapter_settings
from elva.models.files import file_of, read_object, weight_files
from elva.models.weight_files import Entry, damaged, pickled, require_floating, require_once
from elva.models.weights import load_model, require_finite_weights, require_fit

ADAPTER_FILES = "adapter_*"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# What transformers before 4.52 called the parts of a Qwen-VL model, and adapters trained with it still do.
OLDER_NAMES = {r"^visual": "model.visual", r"^model(?!\.(language_model|visual))": "model.language_model"}
PREFIX = "base_model.model."
VOCABULARY_LAYERS = ("embed_tokens", "lm_head")


def base_of(name: str) -> str | None:
    """The directory or hub name of the weights below the adapter that ``name`` holds; None where it holds none.

    Weights beside the adapter are what it stands on, as in transformers; a ``config.json`` alone is none. Elsewhere its
    ``base_model_name_or_path`` says it: relative to the working directory or to the adapter's own.

    Raises:
        ValueError: the adapter names no base. FileNotFoundError: a base that looks like a path and is no directory.
    """
    file = file_of(name, ADAPTER_CONFIG)
    if file is None:
        return None
    if file_of(name, "config.json") and weight_files(name):
        return name
    base = read_object(file).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ValueError(f"{file}: base_model_name_or_path is {base!r}, expected the model that it adapts")
    beside = Path(name) / base
    if not Path(base).is_dir() and beside.is_dir():
        return str(beside)
    if (base.count("/") > 1 or base.startswith((".", "/", "~"))) and not Path(base).is_dir():
        raise FileNotFoundError(
            f"{file}: base_model_name_or_path is {base!r}, and there is no such directory; expected the model that it "
            "adapts"
        )
    return base


def load_weights(model_class: Any, base: str, **options: Any) -> Any:
    """`load_model` without an adapter that lies beside the weights.

    transformers would put that one into the model's layers, where it cannot be merged.
    """
    if not (Path(base) / ADAPTER_CONFIG).is_file():
        return load_model(model_class, base, **options)
    with tempfile.TemporaryDirectory(prefix="elva-weights-") as folder:
        for file in Path(base).resolve().iterdir():
            if not file.match(ADAPTER_FILES):
                (Path(folder) / file.name).symlink_to(file)
        return load_model(model_class, folder, label=base, **options)


def merge(model: Any, name: str, tokens: int) -> Any:
    """``model`` with the adapter in ``name`` merged into its weights, and embeddings of ``tokens`` tokens at least.

    Raises:
        ValueError: the adapter's settings cannot be used, its weights do not fit the model's layers one to one, or
            there are tokens that neither it nor the model has embeddings of.
    """
    from peft import PeftModel, set_peft_model_state_dict

    weights = read_adapter(name)
    settings = adapter_settings(name, model)
    _fit_vocabulary(model, weights, settings, tokens, name)
    try:
        wrapped = PeftModel(model, settings)
    except Exception as error:  # what PEFT raises for settings that it cannot use is of many kinds
        raise ValueError(f"{name}/{ADAPTER_CONFIG}: PEFT cannot use it: {_first_line(error)}") from error
    if not hasattr(wrapped.base_model, "merge_and_unload"):
        raise ValueError(
            f"{name}/{ADAPTER_CONFIG}: peft_type is {str(settings.peft_type.value)!r}, which cannot be merged into the "
            "weights; expected LORA or another that can"
        )
    require_adapter(wrapped, weights, name)
    set_peft_model_state_dict(wrapped, weights)
    try:
        return merged(wrapped)
    except (NotImplementedError, TypeError) as error:
        raise ValueError(f"{name}: the adapter cannot be merged: {_first_line(error)}") from error


def require_adapter(wrapped: Any, weights: dict[str, Tensor], name: str) -> None:
    """ValueError where ``weights`` (of `read_adapter`) are not those of the adapter on ``wrapped``, one to one."""
    from peft import get_peft_model_state_dict

    expected = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    mismatched = [
        f"{key} {list(value.shape)}, expected {list(expected[key].shape)}"
        for key, value in weights.items()
        if key in expected and value.shape != expected[key].shape
    ]
    whole = {key for key in weights if _is_vocabulary(key)}
    require_fit(
        f"{name}: the adapter does not fit {type(wrapped.get_base_model()).__name__}",
        expected.keys() - weights.keys(),
        weights.keys() - expected.keys() - whole,
        mismatched,
    )


def merged(wrapped: Any) -> Any:
    """The model below a PEFT wrapper with the adapter in its weights.

    Where embeddings and head are one matrix and a delta belongs to one of them, they become two: the adapter was
    trained beside a head (or embeddings) without it.
    """
    model = wrapped.get_base_model()
    _untie_adapted(model)
    result = wrapped.merge_and_unload()
    if result.get_output_embeddings().weight is not result.get_input_embeddings().weight:
        _mark_untied(result)
    return result


def _untie_adapted(model: Any) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = model.get_input_embeddings(), model.get_output_embeddings()
    embeddings, head = (_inner(layer) for layer in layers)
    if embeddings.weight is head.weight and any(isinstance(layer, BaseTunerLayer) for layer in layers):
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
        _fold_rows(layers[1])


def _fold_rows(head: Any) -> None:
    """Put the trained rows of tied embeddings into the head that a delta goes around: PEFT would lose them there."""
    rows = getattr(getattr(head, "base_layer", None), "token_adapter", None)
    if rows is not None:
        rows.merge()
        head.base_layer = rows.base_layer


def _inner(layer: Any) -> Any:
    while True:
        inner = getattr(layer, "base_layer", None) or getattr(layer, "original_module", None)
        if inner is None:
            return layer
        layer = inner


def _mark_untied(model: Any) -> None:
    for config in (model.config, model.config.get_text_config()):
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}


def read_adapter(name: str) -> dict[str, Tensor]:
    """An adapter's weights by the names that PEFT gives them today; a ``.bin`` is read as tensors alone.

    Raises:
        ValueError: no file of weights, one that holds more than tensors, or weights that are there twice, no
            floating-point numbers or not finite.
    """
    from peft.utils.save_and_load import load_peft_weights

    if not any(file_of(name, file) for file in ADAPTER_WEIGHTS):
        raise ValueError(
            f"{name}: an {ADAPTER_CONFIG} without weights, expected {' or '.join(ADAPTER_WEIGHTS)} beside it"
        )
    try:
        weights = load_peft_weights(name, device="cpu")
    except SafetensorError as error:
        raise damaged(f"{name}/{ADAPTER_WEIGHTS[0]}", error) from error
    except OSError:
        raise
    except Exception as error:  # what a damaged pickle raises is of many kinds
        raise pickled(name) from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise pickled(name)
    entries = [Entry(key, value.dtype, tuple(value.shape)) for key, value in weights.items()]
    require_floating(name, entries)
    require_once(name, ((_name_of_today(entry.name), entry) for entry in entries))
    require_finite_weights(name, weights.items())
    return {_name_of_today(key): value for key, value in weights.items()}


def _name_of_today(key: str) -> str:
    own = key.removeprefix(PREFIX)
    if own == key:
        return key
    renamed = (re.sub(pattern, name, own) for pattern, name in OLDER_NAMES.items() if re.search(pattern, own))
    return PREFIX + next(renamed, own)


def _fit_vocabulary(model: Any, weights: dict[str, Tensor], settings: Any, tokens: int, name: str) -> None:
    """Resize the model's embeddings to those that the adapter brings, or for tokens whose rows it trains."""
    rows, width = model.get_input_embeddings().weight.shape
    matrices = {key: value for key, value in weights.items() if _is_vocabulary(key)}
    for key, value in matrices.items():
        if value.ndim != 2 or value.shape[1] != width:
            raise ValueError(
                f"{name}: {key} is {list(value.shape)}, expected a row of {width} for every token"
            )
    heights = {value.shape[0] for value in matrices.values()}
    if len(heights) > 1 or any(height < tokens for height in heights):
        raise ValueError(
            f"{name}: the adapter's embeddings have {', '.join(map(str, sorted(heights)))} rows and its tokenizer "
            f"knows {tokens} tokens, expected a row for every token"
        )
    trained = _trained_rows(settings)
    absent = [token for token in range(rows, tokens) if token not in trained]
    if absent and not heights:
        raise ValueError(
            f"{name}: the adapter's tokenizer knows {tokens} tokens and its base has embeddings of {rows}; the adapter "
            f"brings none for {len(absent)} of them, e.g. token {absent[0]}"
        )
    height = heights.pop() if heights else max(rows, tokens)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    if matrices and height > rows and not tied and len(matrices) < len(VOCABULARY_LAYERS):
        raise ValueError(
            f"{name}: the adapter brings {', '.join(matrices)} of {height} rows for a base of {rows}, expected both "
            f"{' and '.join(VOCABULARY_LAYERS)}: they are not tied"
        )
    if height != rows:
        _resize(model, rows, height)


@torch.no_grad()
def _resize(model: Any, rows: int, height: int) -> None:
    """New rows begin as the mean of the known ones, not at random: an adapter may train those of one matrix alone."""
    model.resize_token_embeddings(height, mean_resizing=False)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        layer.weight[rows:] = layer.weight[:rows].float().mean(0).to(layer.weight.dtype)


def _trained_rows(settings: Any) -> set[int]:
    indices = getattr(settings, "trainable_token_indices", None) or []
    lists = indices.values() if isinstance(indices, dict) else [indices]
    return {int(index) for part in lists for index in part}


def _is_vocabulary(key: str) -> bool:
    """Whether it is the whole matrix of embeddings or head, which PEFT saves with an adapter once it was resized."""
    parts = key.removesuffix(".weight").removesuffix(".base_layer").split(".")
    return key.endswith(".weight") and parts[-1] in VOCABULARY_LAYERS


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no reason given'}"
