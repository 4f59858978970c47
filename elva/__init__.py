"""ELVA: ranking-driven training that cures grain blindness in universal multimodal retrieval (arXiv 2606.20280).

Importing ``elva`` loads nothing else: the losses need only torch (``from elva.losses import ELVALoss``), and
``elva.MultimodalEncoder`` imports transformers the first time it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elva.models.encoder import MultimodalEncoder

__version__ = "0.1.0"
__all__ = ["MultimodalEncoder", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "MultimodalEncoder":
        from elva.models.encoder import MultimodalEncoder

        return MultimodalEncoder
    raise AttributeError(f"module 'elva' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "MultimodalEncoder"])
