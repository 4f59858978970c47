"""G completions behind each prompt in one packed sequence without padding: every prompt's tokens are there once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from elva.models.batches import PICTURE_KEYS, Batch, rope_positions
from elva.ops.shared_prefix_attention import PrefixLayout


@dataclass(frozen=True)
class PackedBatch:
    """``batch``: ``input_ids`` and ``mm_token_type_ids`` [1, T], and pictures as in `elva.models.batches`.

    ``positions [3, 1, T]``: M-RoPE; a completion goes on where its prompt ends. ``ends [n·G]``: where each completion's
    last token stands. ``before [K]``: where the state stands that predicts each of the K completion tokens, one
    completion behind the other.
    """

    batch: Batch
    positions: Tensor
    layout: PrefixLayout
    ends: Tensor
    before: Tensor

    @property
    def completion_ids(self) -> Tensor:
        """[K] token ids of all completions, one behind the other."""
        return self.batch["input_ids"][0, self.layout.prompt_tokens :]


def pack(
    prompts: Batch, completions: Sequence[Sequence[int]], num_generations: int, merge_size: int
) -> PackedBatch:
    """Prompts of n items and their n · ``num_generations`` completions (item-major, none empty), packed.

    Raises ValueError for completions that do not fit.
    """
    mask = prompts["attention_mask"].bool()
    device = mask.device
    layout = PrefixLayout(
        tuple(mask.sum(1).tolist()), tuple(len(completion) for completion in completions), num_generations
    )
    lengths = torch.tensor(layout.completions, device=device)
    starts = layout.prompt_tokens + lengths.cumsum(0) - lengths
    step = torch.arange(int(lengths.sum()), device=device) - (
        starts - layout.prompt_tokens
    ).repeat_interleave(lengths)
    owner = torch.arange(len(lengths), device=device).div(num_generations, rounding_mode="floor")
    prompt_positions = rope_positions(prompts, merge_size)
    behind = prompt_positions[:, :, -1].amax(0)[owner].repeat_interleave(lengths) + 1 + step
    tail = torch.tensor([token for completion in completions for token in completion], device=device)
    batch = {
        "input_ids": torch.cat([prompts["input_ids"][mask], tail])[None],
        "mm_token_type_ids": torch.cat([prompts["mm_token_type_ids"][mask], torch.zeros_like(tail)])[None],
        **{key: prompts[key] for key in ("image_grid_thw", *PICTURE_KEYS) if key in prompts},
    }
    last = torch.tensor(layout.prompts, device=device).cumsum(0) - 1
    first = step == 0
    here = torch.arange(len(step), device=device) + layout.prompt_tokens
    before = torch.where(first, last[owner].repeat_interleave(lengths), here - 1)
    positions = torch.cat([prompt_positions[:, mask], behind.expand(3, -1)], dim=1)
    return PackedBatch(batch, positions[:, None], layout, starts + lengths - 1, before)
