"""What lies in a model directory or on the hub, as an encoder's parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from elva.models import adapters
from elva.models.attention import resolve_attention
from elva.models.config import EncoderConfig, read_config
from elva.models.files import file_of
from elva.models.image_processor import load_image_processor
from elva.models.prompts import RET_TOKEN
from elva.models.tokenizer import load_tokenizer

ARCHITECTURES = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}


class Loaded(NamedTuple):
    """transformers' model (in evaluation mode, on its device), tokenizer and image processor, and how it embeds."""

    model: Any
    tokenizer: Any
    image_processor: Any
    config: EncoderConfig


def load(
    name: str,
    attn_implementation: str,
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
    trust_remote_code: bool,
) -> Loaded:
    """See `MultimodalEncoder.from_pretrained`."""
    _require_directory(name)
    base = adapters.base_of(name)
    weights = base or name
    model_class = model_class_of(weights)
    try:
        model_config = model_class.config_class.from_pretrained(weights)
    except Exception as error:  # transformers checks values where it first uses them
        reason = " ".join(str(error).split())
        raise ValueError(f"{weights}/config.json: transformers cannot use it: {reason}") from error
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = _dtype(dtype)
    attention = resolve_attention(attn_implementation, device, dtype or model_config.dtype)
    settings = read_config(name, *([base] if base else []))
    model = adapters.load_weights(model_class, weights, attn_implementation=attention, dtype=dtype or "auto")
    # An adapter's own tokenizer may know tokens that its base does not.
    own = next((place for place in (name, weights) if file_of(place, "tokenizer_config.json")), weights)
    tokenizer = load_tokenizer(own, model, trust_remote_code)
    if base is not None:
        model = adapters.merge(model, name, len(tokenizer))
    _require_rows(model, tokenizer, own)
    tower = model.config.vision_config
    image_processor = load_image_processor(weights, tower, settings.image_backend, trust_remote_code)
    return Loaded(model.to(device).eval(), tokenizer, image_processor, settings)


def _dtype(given: torch.dtype | str | None) -> torch.dtype | None:
    """torch's, by its name; None for the checkpoint's own, which transformers calls auto."""
    if given is None or given == "auto":
        return None
    found = getattr(torch, given, None) if isinstance(given, str) else given
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(
            f"dtype: {given!r} given, expected auto, float32, bfloat16, float16 or another of torch's"
        )
    return found


def model_class_of(weights: str) -> Any:
    """transformers' own class for the directory or hub name, so that no code of a checkpoint is asked for the model.

    Raises:
        ValueError: another architecture. OSError: there is no such checkpoint.
    """
    import transformers

    try:
        values, _ = transformers.PreTrainedConfig.get_config_dict(weights)
    except OSError as error:
        raise OSError(f"path_or_name: {weights}: {' '.join(str(error).split())}") from error
    kind = values.get("model_type")
    stage = Path(weights) / "model"
    if kind is None and (stage / "config.json").is_file():
        raise ValueError(
            f"path_or_name: {weights} is the output of a stage, expected the model in it, {stage}"
        )
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise ValueError(
            f"path_or_name: {weights} is a {kind!r} model, expected one of {', '.join(ARCHITECTURES)}"
        )
    return getattr(transformers, ARCHITECTURES[kind])


def _require_rows(model: Any, tokenizer: Any, own: str) -> None:
    """Every token has an embedding; the rows that are missing would be an index error in the middle of a batch."""
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ValueError(
            f"{own}: the tokenizer knows {len(tokenizer)} tokens and the model has embeddings of {rows}, "
            "expected one for every token"
        )


def _require_directory(name: str) -> None:
    """A hub name is `name` or `owner/name`; for anything else the hub would answer with advice that misleads."""
    looks_like_path = name.count("/") > 1 or name.startswith((".", "/", "~"))
    if looks_like_path and not Path(name).is_dir():
        raise FileNotFoundError(
            f"path_or_name: no model directory at {name}, expected one that save_pretrained or an earlier stage wrote, "
            "or a name on the Hugging Face Hub"
        )


def register_ret(model: Any, tokenizer: Any) -> int:
    """The id of ``[RET]``; a new one's rows start as the mean of the known tokens' rows."""
    known = len(tokenizer)
    found = tokenizer.get_vocab().get(RET_TOKEN)
    if found is not None:
        return found
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken(RET_TOKEN, special=True, normalized=False)], special_tokens=True)
    ret_id = tokenizer.convert_tokens_to_ids(RET_TOKEN)
    if ret_id >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(ret_id + 1, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight[ret_id] = layer.weight[:known].float().mean(0).to(layer.weight.dtype)
    return ret_id
