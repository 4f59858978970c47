"""Inputs of alike lengths together: what a batch costs is its longest input times its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

TOKENS = 32768
"""A forward takes at most so many tokens, padding included, one input at least: a long text costs no more memory."""
PADDING = 1024
"""So many tokens of padding cost about as much as another forward."""


def split_by_length(lengths: Sequence[int], forwards: int = 1) -> list[list[int]]:
    """The rows of a batch in parts, longest first within and between them; one part where nothing would be saved.

    ``lengths``: tokens of every row. ``forwards``: how many a part costs, as decoding takes one for each token: the
    more, the more padding is worth it.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    parts: list[list[int]] = []
    for place, row in enumerate(order):
        longest = lengths[parts[-1][0]] if parts else 0
        saved = (len(order) - place) * (longest - lengths[row])
        if not parts or saved > PADDING * forwards or (len(parts[-1]) + 1) * longest > TOKENS:
            parts.append([])
        parts[-1].append(row)
    return [sorted(parts[0])] if len(parts) == 1 else parts


def longest_prompt(config: Any, max_summary_tokens: int, frame: int) -> int | None:
    """How many tokens a prompt may have, so that a summary and ``[RET]`` have places behind it that the model knows.

    ``config``: transformers' of the whole model. ``frame``: tokens that every prompt has. None where the model states
    no limit.

    Raises:
        ValueError: there is no place left for a text.
    """
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is None:
        return None
    most = int(limit) - frame - 2  # [RET], and one token of a text
    if max_summary_tokens > most:
        raise ValueError(
            f"max_summary_tokens: {max_summary_tokens} given; of the model's {limit} positions a prompt takes {frame}, "
            f"so that every text would be cut to nothing; expected at most {most}"
        )
    return int(limit) - max_summary_tokens - 1
