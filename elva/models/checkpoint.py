"""What lies in a model directory or on the hub, as an encoder's parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from elva.models import adapters
from elva.models.attention import resolve_attention
from elva.models.config import EncoderConfig, read_config
from elva.models.processing import load_image_processor
from elva.models.prompts import RET_TOKEN

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
    name: str, attn_implementation: str, dtype: torch.dtype | str | None, device: torch.device | str | None
) -> Loaded:
    """See `MultimodalEncoder.from_pretrained`."""
    import transformers
    from transformers.utils import has_file

    _require_directory(name)
    base = adapters.base_of(name)
    weights = base or name
    _require_directory(weights)
    model_config = transformers.AutoConfig.from_pretrained(weights)
    if model_config.model_type not in ARCHITECTURES:
        raise ValueError(
            f"path_or_name: {weights} is a {model_config.model_type!r} model, "
            f"expected one of {', '.join(ARCHITECTURES)}"
        )
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    attention = resolve_attention(attn_implementation, device, dtype or model_config.dtype)
    model = adapters.load_weights(
        getattr(transformers, ARCHITECTURES[model_config.model_type]),
        weights,
        attn_implementation=attention,
        dtype=dtype or "auto",
    )
    # An adapter's own tokenizer may know tokens that its base does not.
    own = next((place for place in (name, weights) if has_file(place, "tokenizer_config.json")), weights)
    tokenizer = transformers.AutoTokenizer.from_pretrained(own)
    if base is not None:
        if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        model = adapters.merge(model, name)
    settings = read_config(Path(name), *([Path(base)] if base else []))
    image_processor = load_image_processor(weights, settings.image_backend)
    return Loaded(model.to(device).eval(), tokenizer, image_processor, settings)


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
