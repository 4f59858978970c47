"""Features of pictures in a forward in place of their pixels."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from elva.models.batches import Batch


@contextmanager
def forward_inputs(backbone: Any, batch: Batch) -> Iterator[dict[str, Any]]:
    """The batch as keyword arguments of ``backbone``'s forward, or of a wrapper's around it, for calls inside.

    ``image_features`` (`elva.models.vision`) stand where the tower's output would: through the argument that
    transformers has for them (``mm_encoder_outputs``), and where a version has none, 5.17 among them, by answering in
    the place of the tower's method while the block lasts.
    """
    inputs: dict[str, Any] = {key: value for key, value in batch.items() if key != "image_features"}
    if "image_features" not in batch:
        yield inputs
        return
    last, *levels = batch["image_features"].split(backbone.config.text_config.hidden_size, dim=-1)
    if "mm_encoder_outputs" in inspect.signature(backbone.forward).parameters:
        # deepstack levels are read by Qwen3-VL alone: one entry a level, each split by picture
        out = _tower_output(last, [(level,) for level in levels])
        yield {**inputs, "mm_encoder_outputs": {"image": out}}
        return
    out = _tower_output(last, levels)
    backbone.get_image_features = lambda *arguments, **options: out
    try:
        # only that there are pixels is looked at before the tower is called
        yield {**inputs, "pixel_values": last.new_empty(0)}
    finally:
        del backbone.get_image_features


def _tower_output(last: Any, levels: list[Any]) -> Any:
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    out: Any = BaseModelOutputWithPooling()
    out["pooler_output"] = (last,)
    out["deepstack_features"] = levels
    return out
