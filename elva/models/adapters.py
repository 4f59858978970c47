"""Checkpoints that hold a PEFT adapter, beside weights of their own or instead of them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = "adapter_*"
# What transformers before 4.52 called the parts of a Qwen-VL model, and adapters trained with it still do.
OLDER_NAMES = {r"^visual": "model.visual", r"^model(?!\.(language_model|visual))": "model.language_model"}


def base_of(name: str) -> str | None:
    """The directory or hub name of the weights below the adapter that ``name`` holds; None where it holds none.

    Weights beside the adapter are what it stands on, as in transformers. Elsewhere its ``base_model_name_or_path``
    says it: relative to the working directory or to the adapter's own.

    Raises:
        ValueError: the adapter names no base. FileNotFoundError: a base that looks like a path and is no directory.
    """
    from transformers.utils import cached_file, has_file

    if not has_file(name, ADAPTER_CONFIG):
        return None
    if has_file(name, "config.json"):
        return name
    file = cached_file(name, ADAPTER_CONFIG)
    assert file is not None
    base = json.loads(Path(file).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"{name}/{ADAPTER_CONFIG}: base_model_name_or_path is {base!r}, expected the model that it adapts"
        )
    beside = Path(name) / base
    return str(beside) if not Path(base).is_dir() and beside.is_dir() else base


def load_weights(model_class: Any, base: str, **options: Any) -> Any:
    """``model_class.from_pretrained(base)`` without an adapter that lies beside the weights.

    transformers would put that one into the model's layers, where it cannot be merged.
    """
    if not (Path(base) / ADAPTER_CONFIG).is_file():
        return model_class.from_pretrained(base, **options)
    with tempfile.TemporaryDirectory(prefix="elva-weights-") as folder:
        for file in Path(base).resolve().iterdir():
            if not file.match(ADAPTER_FILES):
                (Path(folder) / file.name).symlink_to(file)
        return model_class.from_pretrained(folder, **options)


def merge(model: Any, name: str) -> Any:
    """``model`` with the adapter in ``name`` merged into its weights.

    Raises:
        ValueError: the adapter's weights do not fit the model's layers one to one.
    """
    from peft import PeftConfig, PeftModel

    config = PeftConfig.from_pretrained(name)
    config.inference_mode = True
    wrapped = PeftModel(model, config)
    found = wrapped.load_adapter(name, "default", key_mapping=OLDER_NAMES)
    wrong = [*found.missing_keys, *found.unexpected_keys]
    if wrong:
        raise ValueError(
            f"{name}: the adapter does not fit {type(model).__name__}: {len(found.missing_keys)} of its layers have no "
            f"weights in the file and {len(found.unexpected_keys)} weights have no layer, e.g. {wrong[0]}"
        )
    return wrapped.merge_and_unload()
