"""Shared-prefix attention inside transformers' models: a packed forward says its layout, other calls are untouched."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

from elva.ops.shared_prefix_attention import PrefixLayout, shared_prefix_attention

PREFIX = "shared_prefix_"
KEYWORD = "prefix_layout"
"""Keyword of the model's forward that carries the layout down to its attention layers, also when they are replayed."""
_packed: ContextVar[bool] = ContextVar("packed", default=False)


def enable(model: Any) -> None:
    """Let a Qwen-VL model's language part answer packed forwards; its other forwards run as before.

    ValueError where its attention has a sliding window.
    """
    config = model.config.text_config
    inner = config._attn_implementation
    if inner.startswith(PREFIX):
        return
    if getattr(config, "use_sliding_window", False):
        raise ValueError("model: sliding-window attention cannot share a prefix; use rl.step=plain")
    _register(inner)
    model.set_attn_implementation({"text_config": PREFIX + inner})


@contextmanager
def packed_forward() -> Iterator[None]:
    """No mask is built inside: packed attention needs none."""
    token = _packed.set(True)
    try:
        yield
    finally:
        _packed.reset(token)


def _register(inner: str) -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    own_mask = ALL_MASK_ATTENTION_FUNCTIONS[inner]

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
    ) -> tuple[Tensor, Any]:
        layout: PrefixLayout | None = options.pop(KEYWORD, None)
        if layout is None:
            return _inner_attention(inner, module)(module, query, key, value, attention_mask, **options)
        if options.get("dropout"):
            raise ValueError(
                "attention_dropout: shared-prefix attention has none; set it to 0 or use rl.step=plain"
            )
        # Rotation leaves queries and keys of fp32 weights in float32, where autocast made the values half precision.
        queries, keys, values = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))
        backend = "sdpa" if inner == "eager" else inner
        out = shared_prefix_attention(
            queries, keys, values, layout, scale=options["scaling"], backend=backend
        )
        return out[None], None

    def mask(*arguments: Any, **options: Any) -> Any:
        return None if _packed.get() else own_mask(*arguments, **options)

    AttentionInterface.register(PREFIX + inner, attention)
    AttentionMaskInterface.register(PREFIX + inner, mask)


def _inner_attention(name: str, module: nn.Module) -> Any:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    # "eager" is no entry there: each model has its own, beside its attention layer
    eager = importlib.import_module(type(module).__module__).eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)
