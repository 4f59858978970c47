"""Summaries sampled by the current model, and their log-probabilities under a model with gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from elva.losses.grpo import completion_logprob
from elva.ops import LinearLogprob
from elva.training.examples import Item

if TYPE_CHECKING:
    from elva.models.encoder import MultimodalEncoder

PADDING = 1.25
"""Prompts are sampled together while the longest is at most so many times the shortest."""
WORTHWHILE = 4096
"""Fewer tokens of prompts are not worth a decode loop of their own: padding costs less."""


@dataclass
class Rollouts:
    """`n` prompts with G summaries each, item-major: row i·G + g is rollout g of item i.

    ``prompts``: the prompts once each, left-padded. ``completions``: ids ending in [RET]; ``sampled_ret``: whether that
    one was sampled (one appended because the summary was cut was not, and earns no policy gradient).
    ``embeddings [n, G, H]``: the states at [RET] while sampling, normalised, without gradient.
    """

    prompts: dict[str, Any]
    completions: list[list[int]]
    sampled_ret: list[bool]
    num_generations: int
    embeddings: torch.Tensor

    @property
    def mean_length(self) -> float:
        return sum(map(len, self.completions)) / max(len(self.completions), 1)

    def lengths(self) -> torch.Tensor:
        """[n, G] float32: tokens of each completion, [RET] included, on the embeddings' device."""
        counts = torch.tensor([float(len(row)) for row in self.completions], device=self.embeddings.device)
        return counts.unflatten(0, (-1, self.num_generations))


@dataclass
class Sequences:
    """Rollouts as separate sequences: prompt + summary + [RET], left-padded.

    ``token_mask [n·G, width]`` is True on sampled tokens, the last ``width`` positions at most.
    """

    batch: dict[str, Any]
    token_mask: torch.Tensor

    @property
    def width(self) -> int:
        return self.token_mask.shape[1]

    def completion_ids(self) -> torch.Tensor:
        """[n·G, width] token ids, right-aligned as in ``batch``."""
        return self.batch["input_ids"][:, -self.width :]


def separate(encoder: MultimodalEncoder, rollouts: Rollouts) -> Sequences:
    """Every rollout behind a copy of its prompt."""
    prompts = encoder.repeat(rollouts.prompts, rollouts.num_generations)
    batch, mask = encoder.append(prompts, rollouts.completions, ret=True)
    token_mask = mask[:, -max(map(len, rollouts.completions)) :].clone()
    token_mask[:, -1] &= torch.tensor(rollouts.sampled_ret, device=token_mask.device)
    return Sequences(batch, token_mask)


def sample(
    encoder: MultimodalEncoder,
    items: Sequence[Item],
    num_generations: int,
    *,
    do_sample: bool = True,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int = 64,
    generator: torch.Generator | None = None,
    shared: bool = True,
    cached_tokens: int | None = None,
) -> Rollouts:
    """Sample G summaries of every item with the current model, without gradient; alike lengths together.

    ``cached_tokens``: most tokens in the key-value cache at once (one item at least); None: no limit.

    ``shared``: each prompt is run once and its cache branched; False runs every copy of it, as ``generate`` with
    ``num_return_sequences`` does.
    """
    training = encoder.model.training
    encoder.model.eval()
    count = len(items)
    completions: list[list[int]] = [[] for _ in range(count * num_generations)]
    sampled_ret = [False] * len(completions)
    embeddings = torch.empty(count, num_generations, encoder.hidden_size, device=encoder.device)
    try:
        with torch.no_grad():
            prompts = encoder.prepare(list(items), image_features=shared)
            lengths = prompts["attention_mask"].sum(1).tolist()
            for rows in _alike(lengths, num_generations, max_new_tokens + 1, cached_tokens):
                batch = encoder.select(prompts, rows)
                written = encoder.generate_summaries(
                    batch if shared else encoder.repeat(batch, num_generations),
                    num_generations=num_generations if shared else 1,
                    do_sample=do_sample,
                    temperature=temperature,
                    top_p=top_p,
                    top_k=top_k,
                    max_new_tokens=max_new_tokens,
                    generator=generator,
                )
                places = [row * num_generations + g for row in rows for g in range(num_generations)]
                for place, ids, flag in zip(places, written.summaries, written.sampled_ret, strict=True):
                    completions[place], sampled_ret[place] = ids, flag
                found = written.embeddings(encoder.config.read)
                embeddings[rows] = found.unflatten(0, (len(rows), num_generations))
    finally:
        encoder.model.train(training)
    return Rollouts(prompts, completions, sampled_ret, num_generations, embeddings)


def _alike(
    lengths: Sequence[int], num_generations: int, new_tokens: int, cached_tokens: int | None
) -> Iterator[list[int]]:
    """Row numbers in groups of similar length, longest first, that fit in the cache together."""
    group: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if group:
            longest = lengths[group[0]]
            cached = (len(group) + 1) * num_generations * (longest + new_tokens)
            full = cached_tokens is not None and cached > cached_tokens
            apart = longest > PADDING * lengths[row] and len(group) * longest >= WORTHWHILE
            if full or apart:
                yield group
                group = []
        group.append(row)
    if group:
        yield group


def token_logps(
    encoder: MultimodalEncoder, sequences: Sequences, hidden: torch.Tensor, temperature: float = 1.0
) -> LinearLogprob:
    """[n·G, width] log-probability and entropy (fp32) of each sampled token, from the state before it; else 0."""
    head = encoder.head()
    return completion_logprob(
        # behind autocast a wrapped model's states are float32, whatever the head is
        hidden[:, -sequences.width - 1 : -1].to(head.weight.dtype),
        head.weight,
        sequences.completion_ids(),
        sequences.token_mask,
        temperature=temperature,
        trainable_rows=head.trainable_rows,
        row_values=head.row_values,
    )
