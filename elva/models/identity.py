"""What embeddings depend on, as short names for caches: the model with all its settings, and the inputs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from elva.models.processing import parse_input
from elva.models.vision_store import digest

# Where a model lies and who wrote it changes no embedding.
UNSAID = frozenset(
    {"_name_or_path", "name_or_path", "transformers_version", "architectures", "processor_class"}
)


def model_digest(encoder: Any) -> str:
    """Of all that an encoder's embeddings depend on, as it is now; reads all weights, about a second for each GB.

    Weights with an adapter's on them, the model's own settings (heads, rotation …), tokenizer, image processor,
    ``EncoderConfig``, the prompt's words, and the precision of its forwards.
    """
    settings = [asdict(encoder.config), encoder.processor.prompt.suffix, str(encoder.autocast_dtype)]
    parts = parts_digest(encoder.model, encoder.tokenizer, encoder.image_processor)
    return _hash([parts, settings])


def parts_digest(model: Any, tokenizer: Any, image_processor: Any) -> str:
    """Of transformers' parts of a model: weights and settings."""
    state = model.state_dict()
    settings = [model.config.to_dict(), image_processor.to_dict()]
    return _hash([list(state), digest(*state.values()), _tokens(tokenizer), _without(settings)])


def describe(value: Any) -> list[Any] | None:
    """What an input of ``MultimodalEncoder.encode`` is: its text, and path, size and time of its picture.

    None for a picture in memory. Raises what ``encode`` raises for an input that is none.
    """
    item = parse_input(value, 0)
    if item.image is None:
        return [item.text]
    if not isinstance(item.image, Path):
        return None
    status = item.image.stat()
    return [item.text, str(item.image), status.st_size, status.st_mtime_ns]


def _tokens(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return json.dumps(sorted(tokenizer.get_vocab().items())) if backend is None else backend.to_str()


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(own) for key, own in value.items() if key not in UNSAID}
    return [_without(own) for own in value] if isinstance(value, list | tuple) else value


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=_shown)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=20).hexdigest()


def _shown(value: Any) -> str:
    return str(value) if isinstance(value, torch.dtype) else repr(value)
