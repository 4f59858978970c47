"""What a directory of sentence-transformers does with the model's states, as far as a Qwen-VL embedder can do it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elva.models.files import file_of, read_json, read_object, require_below

MODULES_FILE = "modules.json"
POOLING_FOLDER = "1_Pooling"
TRANSFORMER, POOLING, NORMALIZE = "Transformer", "Pooling", "Normalize"
"""The modules that are read. Embeddings are normalised in any case; others (Dense, LayerNorm …) would change them."""


@dataclass(frozen=True)
class Pooling:
    """The settings of a pooling, and where they stand."""

    file: Path
    modes: Any

    def require_last_token(self) -> None:
        """ValueError for another pooling."""
        if self.modes not in ("lasttoken", ["lasttoken"]):
            raise ValueError(
                f"{self.file}: pooling {self.modes} given, expected lasttoken (an embedding is read at one position)"
            )


def pooling_of(name: str) -> Pooling | None:
    """The pooling that the directory or hub name says; None where it says none.

    Raises:
        ValueError: modules of other kinds, of the same kind twice, or weights in a folder of their own.
    """
    folder = POOLING_FOLDER
    if modules := file_of(name, MODULES_FILE):
        folder = _pooling_folder(modules)
    file = file_of(name, f"{folder}/config.json")
    if file is None:
        if modules is not None:
            raise ValueError(f"{modules}: a pooling in {folder!r}, but there is no config.json")
        return None
    values = read_object(file)
    flags = [key.removeprefix("pooling_mode_") for key, value in values.items() if value is True]
    return Pooling(file, values.get("pooling_mode") or [flag for flag in flags if flag != "include_prompt"])


def _pooling_folder(file: Path) -> str:
    listed = read_json(file)
    if not isinstance(listed, list) or not all(isinstance(module, dict) for module in listed):
        raise ValueError(f"{file}: expected a list of modules, each with type and path")
    kinds = [_kind(module) for module in listed]
    if kinds not in ([TRANSFORMER, POOLING], [TRANSFORMER, POOLING, NORMALIZE]):
        raise ValueError(
            f"{file}: modules {', '.join(kinds) or 'none'} given, expected {TRANSFORMER}, {POOLING} and perhaps "
            f"{NORMALIZE}: another module would change the embeddings, and is not read"
        )
    paths = [module.get("path") for module in listed]
    if paths[0] != "" or not isinstance(paths[1], str):
        raise ValueError(
            f"{file}: paths {paths} given, expected '' (the transformer beside this file) and the pooling's folder"
        )
    require_below(file, paths[1])
    return paths[1]


def _kind(module: dict[str, Any]) -> str:
    """The class's name if it is the library's own: code of the checkpoint may give any meaning to a name."""
    kind = str(module.get("type"))
    package, _, _ = kind.partition(".")
    return kind.rpartition(".")[2] if package == "sentence_transformers" else kind
