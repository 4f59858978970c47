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

import torch
from torch import Tensor

from elva.losses import elva_reward


class ELVAReward:
    """``R_total = alpha R_margin + epsilon R_rank`` of prompt and completion as the query (paper, section 3).

    Args:
        embed: the fixed embedder: a function from a list of n inputs to ``[n, D]`` (tensor or array), or an object with
            such an ``encode``, e.g. an :class:`elva.MultimodalEncoder` or a ``SentenceTransformer``. An input is a
            str, or ``{"text": …, "image": …}`` where the prompt holds a picture; candidates come as the columns hold
            them.
        alpha, epsilon, delta, gamma, normalize_gamma, clamp_negative_weight: as in :func:`elva.losses.elva_reward`.

    Called by the trainer with ``prompts`` and ``completions``, plain (str) or conversational (lists of messages), and
    the data set's columns ``positive`` (an input a row) and ``negatives`` (a list of inputs a row, of any lengths).
    Returns a finite reward a row; None, which TRL leaves out, where ``positive`` is None.

    Raises:
        TypeError: ``embed`` is neither, a prompt or completion of another form, ``negatives`` holds no list.
        ValueError: a column is missing or of another length, a prompt with several pictures, embeddings that are not
            ``[n, D]``.

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
            queries = [_query(prompts[row], completions[row], row) for row in rows]
            found = self._rewards(queries, [positive[row] for row in rows], [negatives[row] for row in rows])
            for row, reward in zip(rows, found, strict=True):
                rewards[row] = reward
        return rewards

    def _rewards(
        self, queries: list[Any], positive: list[Any], negatives: list[Sequence[Any]]
    ) -> list[float]:
        # The completions of one prompt share its candidates: each is embedded once.
        place: dict[Hashable, int] = {}
        inputs: list[Any] = []

        def index(value: Any) -> int:
            key = value if isinstance(value, str) else id(value)
            if key not in place:
                place[key] = len(inputs)
                inputs.append(value)
            return place[key]

        own = [index(value) for value in positive]
        others = [[index(value) for value in row] for row in negatives]
        embeddings = self._embed(queries + inputs)
        query, candidates = embeddings[: len(queries)], embeddings[len(queries) :]
        width = max(map(len, others))
        padded = torch.tensor([row + [0] * (width - len(row)) for row in others], dtype=torch.long)
        mask = torch.tensor([[column < len(row) for column in range(width)] for row in others])
        total = elva_reward(
            query,
            candidates[own],
            candidates[padded.reshape(len(others), width)],
            mask.reshape(len(others), width).to(query.device),
            **self.options,
        )
        return total.tolist()

    @torch.no_grad()
    def _embed(self, inputs: list[Any]) -> Tensor:
        embeddings = torch.as_tensor(self.embed(inputs))
        if embeddings.ndim != 2 or len(embeddings) != len(inputs):
            raise ValueError(
                f"embed: an embedding of shape {list(embeddings.shape)} for {len(inputs)} inputs, "
                f"expected [{len(inputs)}, D]"
            )
        return embeddings


def _check_columns(rows: int, **columns: Any) -> None:
    for name, values in columns.items():
        if values is None:
            raise ValueError(
                f"{name}: the data set has no such column; expected prompt, positive and negatives"
            )
        if len(values) != rows:
            raise ValueError(f"{name}: {len(values)} rows given, expected {rows} (one a prompt)")
    for row, values in enumerate(columns["negatives"]):
        if not isinstance(values, list | tuple):
            raise TypeError(
                f"negatives[{row}]: {type(values).__name__} given, expected a list of inputs (it may be empty)"
            )


def _query(prompt: Any, completion: Any, row: int) -> Any:
    """Prompt and completion as one input of the embedder."""
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt + completion
    texts: list[str] = []
    images: list[Any] = []
    for name, messages in (("prompts", prompt), ("completions", completion)):
        if not isinstance(messages, list):
            raise TypeError(
                f"{name}[{row}]: {type(messages).__name__} given, expected a str or a list of messages "
                "(prompts and completions of one form)"
            )
        for message in messages:
            _read_message(message, texts, images)
    if len(images) > 1:
        raise ValueError(f"prompts[{row}]: {len(images)} pictures given, expected at most one")
    text = "\n".join(texts)
    return {"text": text, "image": images[0]} if images else text


def _read_message(message: dict[str, Any], texts: list[str], images: list[Any]) -> None:
    """Add what a message holds; the instructions to the policy itself (system) describe no query."""
    if message.get("role") == "system":
        return
    content = message.get("content")
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content or []:
        if part.get("type") == "text":
            texts.append(part["text"])
        elif part.get("image") is not None:
            images.append(part["image"])
