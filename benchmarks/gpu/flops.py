"""Floating-point operations of the passes of an RL step, counted from the model's sizes and the tokens that were run.

A product of m × k with k × n is 2 m k n operations. Counted are the passes as each step makes them, the plain one's
copies of prompts included, so that the share of the device's rate says how well a step keeps it busy, and the seconds
how much it had to do. Not counted: what gradient checkpointing computes again, LoRA's gradients of its own small
matrices, norms and the like.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from elva.training.rollouts import Rollouts


@dataclass(frozen=True)
class Costs:
    """Operations: ``token`` through all layers, ``pair`` of a query token and a key it attends to, in all layers,
    ``logits`` of one token, ``patch`` through the vision tower but for its attention, ``patch_pair`` in that."""

    token: float
    pair: float
    logits: float
    patch: float
    patch_pair: float

    @classmethod
    def of(cls, model: Any) -> Costs:
        """Of a transformers Qwen-VL model, with adapter layers in place or not."""
        text, vision = model.config.text_config, model.config.vision_config
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return cls(
            token=2 * _products(model.model.language_model.layers),
            pair=4 * text.num_hidden_layers * text.num_attention_heads * head_dim,
            logits=2 * text.vocab_size * text.hidden_size,
            patch=2 * _products(model.model.visual.blocks),
            patch_pair=4 * vision.depth * vision.embed_dim,
        )


def _products(layers: nn.Module) -> int:
    """Weights of all matrices that a token is multiplied with."""
    return sum(module.weight.numel() for module in layers.modules() if isinstance(module, nn.Linear))


@dataclass(frozen=True)
class Side:
    """One side's sequences: ``prompts`` lengths, ``completions`` of each item's rollouts, ``patches`` of pictures."""

    prompts: Sequence[int]
    completions: Sequence[Sequence[int]]
    patches: Sequence[int]

    @classmethod
    def of(cls, rollouts: Rollouts, patches: Sequence[int]) -> Side:
        generations = rollouts.num_generations
        lengths = [len(completion) for completion in rollouts.completions]
        groups = [lengths[first : first + generations] for first in range(0, len(lengths), generations)]
        return cls(rollouts.prompts["attention_mask"].sum(1).tolist(), groups, patches)


def step_operations(costs: Costs, sides: Sequence[Side], kind: str) -> float:
    """Operations of a whole ``fast`` or ``plain`` step with a reference, rollouts on every side."""
    return sum(_side(costs, side, shared=kind == "fast") for side in sides)


def _side(costs: Costs, side: Side, shared: bool) -> float:
    """Sampling, the passes of reference and (plain) old log-probabilities, and the policy's forward and backward."""
    tokens, pairs, sampled = 0.0, 0.0, 0.0
    for prompt, completions in zip(side.prompts, side.completions, strict=True):
        copies = 1 if shared else len(completions)
        tokens += copies * prompt + sum(completions)
        pairs += copies * prompt**2 / 2 + sum(r * prompt + r**2 / 2 for r in completions)
        sampled += sum(completions)
    forward = costs.token * tokens + costs.pair * pairs + costs.logits * sampled
    # Backward: one more product a matrix (its weights are frozen), two more an attention product, one of the head.
    backward = costs.token * tokens + 2 * costs.pair * pairs + costs.logits * sampled
    passes = 3 if shared else 4
    towers = 1 if shared else len(side.completions[0]) * passes
    vision = sum(costs.patch * n + costs.patch_pair * n**2 for n in side.patches)
    return passes * forward + backward + towers * vision
