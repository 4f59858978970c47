"""Sampled summaries behind their prompts, ready for a forward pass with gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from elva.losses.grpo import completion_logprob
from elva.ops import LinearLogprob
from elva.training.examples import Item

if TYPE_CHECKING:
    from elva.models.encoder import MultimodalEncoder


@dataclass
class Rollouts:
    """`n` prompts with G summaries each, item-major: row i·G + g is rollout g of item i.

    ``batch`` is prompt + summary + [RET], left-padded; the sampled tokens are the last ``width`` positions
    at most. ``token_mask [n·G, width]`` is True on tokens that were sampled: a [RET] appended because the
    summary was cut at its maximum length was not, and earns no policy gradient.
    """

    batch: dict[str, Any]
    token_mask: torch.Tensor
    completions: list[list[int]]
    num_generations: int

    @property
    def width(self) -> int:
        return self.token_mask.shape[1]

    @property
    def mean_length(self) -> float:
        return sum(map(len, self.completions)) / max(len(self.completions), 1)

    def completion_ids(self) -> torch.Tensor:
        """[n·G, width] token ids, right-aligned as in ``batch``."""
        return self.batch["input_ids"][:, -self.width :]


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
) -> Rollouts:
    """Sample G summaries of every item with the current model, without gradient."""
    training = encoder.model.training
    encoder.model.eval()
    try:
        with torch.no_grad():
            prompts = encoder.prepare(list(items))
            completions, sampled_ret = encoder.generate_summaries(
                prompts,
                num_generations=num_generations,
                do_sample=do_sample,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                max_new_tokens=max_new_tokens,
                generator=generator,
            )
    finally:
        encoder.model.train(training)
    batch, mask = encoder.append(encoder.repeat(prompts, num_generations), completions, ret=True)
    width = max(map(len, completions))
    token_mask = mask[:, -width:].clone()
    token_mask[:, -1] &= torch.tensor(sampled_ret, device=token_mask.device)
    return Rollouts(batch, token_mask, completions, num_generations)


def token_logps(
    encoder: MultimodalEncoder, rollouts: Rollouts, hidden: torch.Tensor, temperature: float = 1.0
) -> LinearLogprob:
    """[n·G, width] log-probability and entropy (fp32) of each sampled token, from the state before it; else 0."""
    head = encoder.head()
    return completion_logprob(
        # behind autocast a wrapped model's states are float32, whatever the head is
        hidden[:, -rollouts.width - 1 : -1].to(head.weight.dtype),
        head.weight,
        rollouts.completion_ids(),
        rollouts.token_mask,
        temperature=temperature,
        trainable_rows=head.trainable_rows,
        row_values=head.row_values,
    )
