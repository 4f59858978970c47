"""The decode loop for summaries: one prefill per input, its cache shared by all of its generations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elva.models.batches import Batch, rope_positions
from elva.models.features import forward_inputs

BANNED_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


@dataclass(frozen=True)
class SpecialIds:
    """Token ids that steer generation: ``ret`` and ``stop`` end a summary, ``banned`` are never produced."""

    ret: int
    stop: tuple[int, ...]
    banned: tuple[int, ...]


def special_ids(tokenizer: Any, ret_id: int, rows: int) -> SpecialIds:
    """Of a Qwen-VL ``tokenizer``; the head's ``rows`` beyond its tokens are never produced either."""
    known = tokenizer.get_vocab()
    beyond = range(len(tokenizer), rows)
    banned = [known[token] for token in BANNED_TOKENS if token in known]
    return SpecialIds(ret_id, (known["<|im_end|>"],), (*banned, *beyond))


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


@dataclass(frozen=True)
class Generated:
    """Summaries of n · G rows (item-major): token ids ending in ``[RET]``, and whether that one was sampled.

    ``before`` and ``at`` [n·G, H]: the last hidden states that predict the final ``[RET]`` and that stand at it.
    """

    summaries: list[list[int]]
    sampled_ret: list[bool]
    before: Tensor
    at: Tensor

    def embeddings(self, read: str) -> Tensor:
        """[n·G, H] fp32, L2-normalised: what ``MultimodalEncoder.read_embedding`` reads from a whole forward."""
        return F.normalize((self.at if read == "at" else self.before).float(), dim=-1)


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
) -> Generated:
    """Summaries of every row of ``batch``, ``num_generations`` side by side for each (item-major).

    ``backbone`` returns ``last_hidden_state`` and ``past_key_values``; ``head`` maps hidden states to logits.
    Both must be in evaluation mode. Every list ends in ``special.ret``: sampled (flag True), or forced after
    a stop token (which is dropped) or after ``max_new_tokens`` tokens (flag False), so a list holds at most
    ``max_new_tokens + 1`` ids. A finished row decodes its ``[RET]`` with those that go on, so that its state is known.
    """
    if max_new_tokens < 1 or num_generations < 1:
        raise ValueError(f"{max_new_tokens=} and {num_generations=} given, expected at least 1")
    positions = rope_positions(batch, merge_size)
    with forward_inputs(backbone, batch) as inputs:
        out = backbone(**inputs, position_ids=positions, use_cache=True)
    cache = out.past_key_values
    hidden = out.last_hidden_state[:, -1].repeat_interleave(num_generations, 0)
    mask = batch["attention_mask"].repeat_interleave(num_generations, 0)
    position = positions[:, :, -1:].repeat_interleave(num_generations, 1)
    if num_generations > 1:
        cache.batch_repeat_interleave(num_generations)
    loop = _DecodeState(hidden.shape[0], special)
    banned = torch.tensor(special.banned, dtype=torch.long, device=hidden.device)
    for step in range(max_new_tokens + 1):
        if step < max_new_tokens:
            logits = head(hidden).index_fill(-1, banned, -torch.inf)
            tokens = next_tokens(logits, sampling, generator)
        else:
            tokens = banned.new_full((hidden.shape[0],), special.ret)
        tokens = loop.record(tokens, hidden, sampled=step < max_new_tokens)
        running = loop.running()
        if 2 * len(running) <= tokens.shape[0]:
            # Half of the rows are done: the rest goes on without them.
            index = torch.tensor(running, device=tokens.device)
            cache.batch_select_indices(index)
            tokens, mask, position = tokens[index], mask[index], position[:, index]
            loop.keep(running)
        mask = torch.cat([mask, mask.new_ones(mask.shape[0], 1)], dim=1)
        position = position + 1
        hidden = _decode(backbone, tokens, mask, position, cache)
        loop.see(hidden)
        if not loop.running():
            break
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
    """What every row has produced so far, and which rows are still in the running batch.

    A row writes, then decodes its ``[RET]``, then is done.
    """

    def __init__(self, rows: int, special: SpecialIds) -> None:
        self.special = special
        self.summaries: list[list[int]] = [[] for _ in range(rows)]
        self.sampled_ret = [False] * rows
        self.before: list[Tensor | None] = [None] * rows
        self.at: list[Tensor | None] = [None] * rows
        self.active = list(range(rows))

    def record(self, tokens: Tensor, hidden: Tensor, sampled: bool) -> Tensor:
        """Take one token per active row, predicted by ``hidden``; return what to decode: ``[RET]`` where a row ends."""
        ends = (self.special.ret, *self.special.stop)
        decode = tokens.tolist()
        for position, (row, token) in enumerate(zip(self.active, decode, strict=True)):
            if self.before[row] is not None:
                continue
            if token not in ends:
                self.summaries[row].append(token)
                continue
            self.sampled_ret[row] = sampled and token == self.special.ret
            self.before[row] = hidden[position]
            decode[position] = self.special.ret
        return torch.tensor(decode, device=tokens.device)

    def see(self, hidden: Tensor) -> None:
        """Take the states of the tokens decoded last."""
        for position, row in enumerate(self.active):
            if self.before[row] is not None and self.at[row] is None:
                self.at[row] = hidden[position]

    def running(self) -> list[int]:
        """Positions, in the running batch, of rows that are not done."""
        return [position for position, row in enumerate(self.active) if self.at[row] is None]

    def keep(self, positions: Sequence[int]) -> None:
        self.active = [self.active[position] for position in positions]

    def finish(self) -> Generated:
        before, at = (
            torch.stack([state for state in x if state is not None]) for x in (self.before, self.at)
        )
        summaries = [[*summary, self.special.ret] for summary in self.summaries]
        return Generated(summaries, self.sampled_ret, before, at)
