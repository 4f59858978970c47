"""The decode loop for summaries: one prefill per input, its cache shared by all of its generations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from elva.models.batches import Batch, model_inputs, rope_positions


@dataclass(frozen=True)
class SpecialIds:
    """Token ids that steer generation: ``ret`` and ``stop`` end a summary, ``banned`` are never produced."""

    ret: int
    stop: tuple[int, ...]
    banned: tuple[int, ...]


@dataclass(frozen=True)
class Sampling:
    """``do_sample=False`` is greedy; else temperature > 0, top_p in (0, 1], top_k ≥ 0 (0: no limit)."""

    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if self.do_sample and self.temperature <= 0:
            raise ValueError(
                f"temperature: {self.temperature} given, expected more than 0 (or do_sample=False)"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: {self.top_p} given, expected a number in (0, 1]")
        if self.top_k < 0:
            raise ValueError(f"top_k: {self.top_k} given, expected 0 (no limit) or more")


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """``model.eval()`` for the block; afterwards just those modules train again that did before."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def next_tokens(logits: Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> Tensor:
    """One token id [n] int64 for each row of ``logits`` [n, V]; sampled in fp32."""
    if not sampling.do_sample:
        return logits.argmax(-1)
    scores = logits.float() / sampling.temperature
    if 0 < sampling.top_k < scores.shape[-1]:
        kth = scores.topk(sampling.top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < kth, -torch.inf)
    probabilities = scores.softmax(-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(stable=True, dim=-1, descending=True)
        # A token stays while the mass before it is below top_p, so the most probable one always does.
        dropped = ordered.cumsum(-1) - ordered >= sampling.top_p
        ordered = ordered.masked_fill(dropped, 0)
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)


@torch.no_grad()
def generate(
    backbone: Any,
    head: nn.Module,
    batch: Batch,
    merge_size: int,
    special: SpecialIds,
    sampling: Sampling,
    max_new_tokens: int,
    num_generations: int = 1,
    generator: torch.Generator | None = None,
) -> tuple[list[list[int]], list[bool]]:
    """Summaries of every row of ``batch``, ``num_generations`` side by side for each (item-major).

    ``backbone`` returns ``last_hidden_state`` and ``past_key_values``; ``head`` maps hidden states to logits.
    Both must be in evaluation mode. Every list ends in ``special.ret``: sampled (flag True), or forced after
    a stop token (which is dropped) or after ``max_new_tokens`` tokens (flag False), so a list holds at most
    ``max_new_tokens + 1`` ids.
    """
    if max_new_tokens < 1 or num_generations < 1:
        raise ValueError(f"{max_new_tokens=} and {num_generations=} given, expected at least 1")
    positions = rope_positions(batch, merge_size)
    inputs = model_inputs(batch, backbone.config.text_config.hidden_size)
    out = backbone(**inputs, position_ids=positions, use_cache=True)
    cache = out.past_key_values
    hidden = out.last_hidden_state[:, -1].repeat_interleave(num_generations, 0)
    mask = batch["attention_mask"].repeat_interleave(num_generations, 0)
    position = positions[:, :, -1:].repeat_interleave(num_generations, 1)
    if num_generations > 1:
        cache.batch_repeat_interleave(num_generations)
    loop = _DecodeState(hidden.shape[0], special)
    banned = torch.tensor(special.banned, dtype=torch.long, device=hidden.device)
    for step in range(max_new_tokens):
        logits = head(hidden).index_fill(-1, banned, -torch.inf)
        tokens = next_tokens(logits, sampling, generator)
        running = loop.record(tokens.tolist())
        if not running or step + 1 == max_new_tokens:
            break
        if 2 * len(running) <= tokens.shape[0]:
            # Half of the rows are done: the rest goes on without them.
            index = torch.tensor(running, device=tokens.device)
            cache.batch_select_indices(index)
            tokens, mask, position = tokens[index], mask[index], position[:, index]
            loop.keep(running)
        mask = torch.cat([mask, mask.new_ones(mask.shape[0], 1)], dim=1)
        position = position + 1
        hidden = _decode(backbone, tokens, mask, position, cache)
    return loop.finish()


def _decode(backbone: nn.Module, tokens: Tensor, mask: Tensor, position: Tensor, cache: Any) -> Tensor:
    out = backbone(
        input_ids=tokens[:, None],
        attention_mask=mask,
        position_ids=position,
        past_key_values=cache,
        use_cache=True,
    )
    return out.last_hidden_state[:, -1]


class _DecodeState:
    """What every row has produced so far, and which rows are still in the running batch."""

    def __init__(self, rows: int, special: SpecialIds) -> None:
        self.special = special
        self.summaries: list[list[int]] = [[] for _ in range(rows)]
        self.sampled_ret = [False] * rows
        self.done = [False] * rows
        self.active = list(range(rows))

    def record(self, tokens: Sequence[int]) -> list[int]:
        """Take one token per active row; return the positions (in the running batch) of unfinished rows."""
        for row, token in zip(self.active, tokens, strict=True):
            if self.done[row]:
                continue
            self.sampled_ret[row] = token == self.special.ret
            self.done[row] = self.sampled_ret[row] or token in self.special.stop
            if not self.done[row]:
                self.summaries[row].append(token)
        return [position for position, row in enumerate(self.active) if not self.done[row]]

    def keep(self, positions: Sequence[int]) -> None:
        self.active = [self.active[position] for position in positions]

    def finish(self) -> tuple[list[list[int]], list[bool]]:
        return [[*summary, self.special.ret] for summary in self.summaries], self.sampled_ret
