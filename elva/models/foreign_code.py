"""Code that a checkpoint brings: not run unless somebody asks for it, and never asked for on standard input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def refused(name: str) -> Iterator[None]:
    """One line in place of transformers' advice where it stops because of ``trust_remote_code=False``.

    Raises:
        ValueError: the checkpoint ``name`` cannot be loaded without its own code.
    """
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{name}: needs code of its own for its configuration, tokenizer or image processor, which is not run; "
            "if you trust it, load it with MultimodalEncoder.from_pretrained(…, trust_remote_code=True)"
        ) from error
