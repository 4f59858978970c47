"""Code that a checkpoint brings: not run unless somebody asks for it, and never asked for on standard input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def refused(name: str, file: str) -> Iterator[None]:
    """One line in place of what transformers says where it cannot read ``file`` of the checkpoint ``name``.

    Raises:
        ValueError: the checkpoint cannot be loaded without its own code, or the file holds something else than
            transformers expects. OSError: the file is not there.
    """
    try:
        yield
    except (
        Exception
    ) as error:  # transformers checks little of what a file holds: what it raises is of many kinds
        if isinstance(error, ValueError) and "trust_remote_code" in str(error):
            raise ValueError(
                f"{name}: needs code of its own for its configuration, tokenizer or image processor, which is not "
                "run; if you trust it, load it with MultimodalEncoder.from_pretrained(…, trust_remote_code=True)"
            ) from error
        kind = OSError if isinstance(error, OSError) else ValueError
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise kind(f"{name}/{file}: transformers cannot use it: {reason}") from error
