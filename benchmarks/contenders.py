"""Who is timed against whom: every operator's contenders, what a step of them is, and how it is compared with float64.

Called by the benchmarks of pytest and by benchmarks.gpu, so nothing here needs pytest. Inputs are those of problems.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from benchmarks import rivals, samples
from benchmarks.problems import PROBLEMS, TEMPERATURE, TIERS
from elva.ops import PrefixLayout, rank_reward_reference, similarity_topk, tiered_rank_reference
from elva.ops.shared_prefix_attention import visible

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Race:
    """``contenders``: ours, then the strongest first. ``compiled``: those that a compiler has to work on before.

    ``step(function, inputs)`` is one forward and backward, ``sample(inputs)`` what its results are compared with.
    """

    contenders: dict[str, Function]
    step: Callable[[Function, list[Any]], list[Tensor]]
    sample: Callable[[list[Any]], samples.Sample]
    compiled: dict[str, Function] = field(default_factory=dict)


def compiled(function: Function) -> Function:
    """`function` under torch.compile, whose import waits for the first call."""
    whole = cache(lambda: torch.compile(function))
    return lambda *inputs: whole()(*inputs)


def eager_infonce(query: Tensor, keys: Tensor) -> Tensor:
    """As every training script has it."""
    scores = F.normalize(query, dim=-1) @ F.normalize(keys, dim=-1).T / TEMPERATURE
    return F.cross_entropy(scores, torch.arange(query.shape[0], device=query.device), reduction="none")


def inf_cl(query: Tensor, keys: Tensor) -> Tensor:
    return rivals.inf_cl(F.normalize(query, dim=-1), F.normalize(keys, dim=-1), TEMPERATURE)


def eager_logprob(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return (hidden @ weight.T).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)


def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return -F.cross_entropy(hidden @ weight.T, targets, reduction="none")


def chunked_logprob(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """As TRL and Liger do on every device: pieces of the tokens, their logits computed again in the backward."""
    parts = zip(hidden.split(128), targets.split(128), strict=True)
    return torch.cat([checkpoint(cross_entropy, h, weight, t, use_reentrant=False) for h, t in parts])


def eager_reward(query: Tensor, positive: Tensor, negatives: Tensor) -> Tensor:
    return rank_reward_reference(query, positive, negatives).total


def copies(query: Tensor, key: Tensor, value: Tensor, layout: PrefixLayout) -> Tensor:
    """Every completion a causal sequence of its own behind a copy of its prompt; the first copy's prompt is kept."""
    items, generations, split = len(layout.prompts), layout.generations, layout.prompt_tokens

    def rows(packed: Tensor) -> Tensor:
        prompts = packed[:split].unflatten(0, (items, 1, -1)).expand(-1, generations, -1, -1, -1)
        completions = packed[split:].unflatten(0, (items, generations, -1))
        return torch.cat([prompts, completions], 2).flatten(0, 1).transpose(1, 2)

    out = F.scaled_dot_product_attention(
        rows(query), rows(key), rows(value), is_causal=True, enable_gqa=query.shape[1] != key.shape[1]
    )
    out = out.transpose(1, 2).unflatten(0, (items, generations))
    prompt = layout.prompts[0]
    return torch.cat([out[:, 0, :prompt].flatten(0, 1), out[:, :, prompt:].flatten(0, 2)])


def masked(query: Tensor, key: Tensor, value: Tensor, layout: PrefixLayout) -> Tensor:
    """The packed sequence as one, with its [T, T] mask (made once); heads repeated, as masked kernels want them."""
    groups = query.shape[1] // key.shape[1]
    rows = (query, *(x.repeat_interleave(groups, dim=1) for x in (key, value)))
    q, k, v = (x.transpose(0, 1)[None] for x in rows)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=_mask(layout, query.device))
    return out[0].transpose(0, 1)


@lru_cache(maxsize=2)
def _mask(layout: PrefixLayout, device: torch.device) -> Tensor:
    return visible(layout).to(device)


def pairwise_tiers(similarity: Tensor, between: Tensor) -> Tensor:
    """Ranks by comparing all pairs [R, N, N], as allRank and others do; then one log-sum-exp per tier."""
    nearer = (between[:, None, :] > between[:, :, None]).sum(-1)
    tier = nearer * TIERS // between.shape[1]
    logits = (similarity / TEMPERATURE)[:, None, :]
    here = tier[:, None, :] == torch.arange(TIERS, device=tier.device)[:, None]
    return logits.masked_fill(~here, -torch.inf).logsumexp(-1)


def sorted_tiers(similarity: Tensor, between: Tensor) -> Tensor:
    return tiered_rank_reference(similarity, between, temperature=TEMPERATURE, num_tiers=TIERS).logsumexp


def both_passes(function: Function, inputs: list[Any]) -> list[Tensor]:
    """The result, and the gradients of its sum in all inputs that need one."""
    out = function(*inputs)
    leaves = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    return [out.detach(), *torch.autograd.grad(out, leaves, torch.ones_like(out))]


def mean_passes(function: Function, inputs: list[Any]) -> list[Tensor]:
    loss = function(*inputs)
    return [loss.detach(), *torch.autograd.grad(loss.mean(), inputs)]


def attention_passes(function: Function, inputs: list[Any]) -> list[Tensor]:
    """The query stands in for what comes back from behind: any tensor of its shape does."""
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs[:3], inputs[0].detach())]


@torch.no_grad()
def search(function: Function, inputs: list[Any]) -> list[Tensor]:
    return [function(*inputs)]


RACES = {
    "infonce": Race(
        {"elva": PROBLEMS["infonce"].call, "Inf-CL": inf_cl, "eager": eager_infonce},
        mean_passes,
        partial(samples.of_infonce, eager_infonce),
        {"torch.compile": compiled(eager_infonce)},
    ),
    "linear_logprob": Race(
        {
            "elva": PROBLEMS["linear_logprob"].call,
            "cut_cross_entropy": rivals.cut_cross_entropy,
            "Liger, cross-entropy": rivals.liger_cross_entropy,
            "F.linear_cross_entropy": rivals.linear_cross_entropy,
            "eager": eager_logprob,
            "chunks of tokens": chunked_logprob,
        },
        both_passes,
        partial(samples.of_rows, eager_logprob, both_passes, (0, 2)),
        {"torch.compile": compiled(eager_logprob)},
    ),
    "rank_reward": Race(
        {"elva": PROBLEMS["rank_reward"].call, "eager": eager_reward},
        both_passes,
        partial(samples.of_rows, eager_reward, both_passes, (0, 1, 2)),
        {"torch.compile": compiled(eager_reward)},
    ),
    "shared_prefix_attention": Race(
        {
            "elva": PROBLEMS["shared_prefix_attention"].call,
            "copies of the prompt": copies,
            "one masked sequence": masked,
        },
        attention_passes,
        partial(samples.of_items, masked, attention_passes),
    ),
    "similarity_topk": Race(
        {
            "elva": lambda query, keys, k: similarity_topk(query, keys, k).indices,
            "eager": lambda query, keys, k: (query @ keys.T).topk(k).indices,
        },
        search,
        samples.of_search,
    ),
    "tiered_rank": Race(
        {"elva": PROBLEMS["tiered_rank"].call, "eager": sorted_tiers, "eager, pairwise": pairwise_tiers},
        both_passes,
        partial(samples.of_rows, pairwise_tiers, both_passes, (0, 1)),
        {"torch.compile, pairwise": compiled(pairwise_tiers)},
    ),
}
