"""ELVA's reward in TRL's form: ``fn(prompts, completions, completion_ids, **columns) -> list[float | None]``.

TRL trains the policy that writes; something else, held fixed, embeds what it wrote. So the reward reaches the policy
through its sampled tokens alone, as with ``rl.gradient: score`` of ``elva train rl``, which also trains the embedding.

    from trl import GRPOConfig, GRPOTrainer
    from elva.integrations.trl import ELVAReward

    # columns of the data set: prompt, positive, negatives (a list of inputs a row)
    reward = ELVAReward(SentenceTransformer("all-MiniLM-L6-v2"))
    GRPOTrainer(model, reward, GRPOConfig(num_generations=8, beta=0.2), train_dataset=rows).train()
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elva.integrations.trl_messages import pictures_of, query_input
from elva.losses import elva_reward


class ELVAReward:
    """``R_total = alpha R_margin + epsilon R_rank`` of prompt and completion as the query (paper, section 3).

    Args:
        embed: the fixed embedder: a function from a list of n inputs to ``[n, D]`` (tensor or array), or an object with
            such an ``encode``, e.g. an :class:`elva.MultimodalEncoder` or a ``SentenceTransformer``. An input is a
            str, or ``{"text": …, "image": …}`` where the prompt holds a picture; candidates come as the columns hold
            them. For an embedder of pictures every str becomes ``{"text": …}``: what a policy writes, or a caption
            such as "mug.jpg", is never taken for a picture's path. A picture is a PIL image, a path object or
            ``{"image": …}``.
        alpha, epsilon, delta, gamma, normalize_gamma, clamp_negative_weight: as in :func:`elva.losses.elva_reward`.

    Called by the trainer with ``prompts`` and ``completions``, plain (str) or conversational (lists of messages), and
    the data set's columns ``positive`` (an input a row) and ``negatives`` (a list of inputs a row, of any lengths, also
    none). The picture of a prompt stands in its message, or in the column ``image`` or ``images``, as in TRL.
    Returns a finite reward a row; None, which TRL leaves out, where ``positive`` is None (``negatives`` may be, too).

    Raises:
        TypeError: ``embed`` is neither, a prompt or completion of another form, ``negatives`` holds no list.
        ValueError: a column is missing or of another length, a prompt with several pictures, with parts of other kinds,
            or with more or fewer places for pictures than pictures; embeddings that are not ``[n, D]`` or not finite.

    Example:
        >>> table = {"a red cat": [1.0, 0.0], "a cat": [1.0, 0.0], "a dog": [0.0, 1.0]}
        >>> reward = ELVAReward(lambda texts: torch.tensor([table[text] for text in texts]))
        >>> [round(r, 2) for r in reward(["a red"], [" cat"], positive=["a cat"], negatives=[["a dog"]])]
        [0.96]
    """

    def __init__(
        self,
        embed: Any,
        alpha: float = 0.4,
        epsilon: float = 0.6,
        delta: float = 0.1,
        gamma: float = 0.5,
        normalize_gamma: bool = True,
        clamp_negative_weight: bool = False,
    ) -> None:
        self.embed: Callable[[list[Any]], Any] = getattr(embed, "encode", embed)
        if not callable(self.embed):
            raise TypeError(
                f"embed: {type(embed).__name__} given, expected a function or an object with encode()"
            )
        self._texts_as_such = _reads_pictures(embed)
        self.__name__ = type(self).__name__  # TRL before 1.9 logs a reward by it
        self.options: dict[str, Any] = {
            "alpha": alpha,
            "epsilon": epsilon,
            "delta": delta,
            "gamma": gamma,
            "normalize_gamma": normalize_gamma,
            "clamp_negative_weight": clamp_negative_weight,
        }

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        *,
        positive: Sequence[Any] | None = None,
        negatives: Sequence[Sequence[Any]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        _check_columns(len(prompts), completions=completions, positive=positive, negatives=negatives)
        assert positive is not None and negatives is not None
        rows = [row for row, own in enumerate(positive) if own is not None]
        rewards: list[float | None] = [None] * len(prompts)
        if rows:
            pictures = pictures_of(columns, len(prompts))
            queries = [query_input(prompts[row], completions[row], pictures[row], row) for row in rows]
            found = self._rewards(
                rows, queries, [positive[row] for row in rows], [negatives[row] for row in rows]
            )
            for row, reward in zip(rows, found, strict=True):
                rewards[row] = reward
        return rewards

    def _rewards(
        self, rows: list[int], queries: list[Any], positive: list[Any], negatives: list[Sequence[Any]]
    ) -> list[float]:
        # The completions of one prompt share its candidates: each is embedded once.
        place: dict[Hashable, int] = {}
        inputs: list[Any] = []
        names = [f"prompts[{row}] with its completion" for row in rows]

        def index(value: Any, name: str) -> int:
            key = value if isinstance(value, str) else id(value)
            if key not in place:
                place[key] = len(inputs)
                inputs.append(value)
                names.append(name)
            return place[key]

        own = [index(value, f"positive[{row}]") for row, value in zip(rows, positive, strict=True)]
        others = [
            [index(value, f"negatives[{row}][{column}]") for column, value in enumerate(values)]
            for row, values in zip(rows, negatives, strict=True)
        ]
        embeddings = self._embed(queries + inputs, names)
        query, candidates = embeddings[: len(queries)], embeddings[len(queries) :]
        width = max(map(len, others))
        padded = torch.tensor([row + [0] * (width - len(row)) for row in others], dtype=torch.long)
        mask = torch.tensor(
            [[column < len(row) for column in range(width)] for row in others], dtype=torch.bool
        )
        total = elva_reward(
            query,
            candidates[own],
            candidates[padded.reshape(len(others), width)],
            mask.reshape(len(others), width).to(query.device),
            **self.options,
        )
        return total.tolist()

    @torch.no_grad()
    def _embed(self, inputs: list[Any], names: list[str]) -> Tensor:
        if self._texts_as_such:
            inputs = [{"text": value} if isinstance(value, str) else value for value in inputs]
        embeddings = torch.as_tensor(self.embed(inputs))
        if embeddings.ndim != 2 or len(embeddings) != len(inputs):
            raise ValueError(
                f"embed: an embedding of shape {list(embeddings.shape)} for {len(inputs)} inputs, "
                f"expected [{len(inputs)}, D]"
            )
        wrong = [
            name
            for name, finite in zip(names, embeddings.isfinite().all(-1).tolist(), strict=True)
            if not finite
        ]
        if wrong:
            raise ValueError(
                f"embed: {len(wrong)} of {len(inputs)} embeddings are not finite, e.g. that of {wrong[0]}; expected "
                "finite numbers"
            )
        return embeddings


def _reads_pictures(embed: Any) -> bool:
    """Whether it takes a str that looks like a picture's path or address for the picture."""
    from elva.models.encoder import MultimodalEncoder

    owner = getattr(embed, "__self__", embed)
    senses = set(getattr(owner, "modalities", None) or ())  # of a SentenceTransformer
    return isinstance(owner, MultimodalEncoder) or not senses.isdisjoint({"image", "video", "audio"})


def _check_columns(rows: int, **columns: Any) -> None:
    for name, values in columns.items():
        if values is None:
            raise ValueError(
                f"{name}: the data set has no such column; expected prompt, positive and negatives"
            )
        if len(values) != rows:
            raise ValueError(f"{name}: {len(values)} rows given, expected {rows} (one a prompt)")
    for row, (own, values) in enumerate(zip(columns["positive"], columns["negatives"], strict=True)):
        if own is not None and not isinstance(values, list | tuple | np.ndarray):
            raise TypeError(
                f"negatives[{row}]: {type(values).__name__} given, expected a list of inputs (it may be empty)"
            )
