"""An RL step as everybody writes it: every rollout a sequence of its own, a pass each for old, reference and policy.

It is what the fast step is tested and timed against.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from elva.ops import LinearLogprob
from elva.training.credit import Relations
from elva.training.examples import Item
from elva.training.rollouts import Rollouts, Sequences, sample, separate, token_logps

if TYPE_CHECKING:
    from elva.training.rl import RLTrainer


@dataclass
class Side:
    """Queries or candidates: embeddings [n, G, D] with gradient and, where summaries were sampled, their tokens."""

    embeddings: torch.Tensor
    rollouts: Rollouts
    sequences: Sequences | None = None
    tokens: LinearLogprob | None = None
    old: torch.Tensor | None = None


class PlainStep:
    def __init__(self, trainer: RLTrainer) -> None:
        self.trainer = trainer
        self.encoder = trainer.encoder
        self.rl = trainer.config.rl

    def roll_out(self, items: list[Item], name: str, candidates: bool) -> Rollouts:
        """Summaries of queries, or what stands for them at candidates, sampled from G copies of each prompt."""
        kind = self.rl.candidates if candidates else "generate"
        with self.trainer.phase("generate"), torch.no_grad():
            if kind == "direct":
                prompts = self.encoder.prepare(items, image_features=False)
                completions = [[self.encoder.ret_id] for _ in items]
                nothing = torch.empty(len(items), 1, 0, device=self.encoder.device)
                return Rollouts(prompts, completions, [False] * len(items), 1, nothing)
            return sample(
                self.encoder,
                items,
                self.rl.num_generations if kind == "generate" else 1,
                do_sample=kind == "generate",
                temperature=self.rl.temperature,
                top_p=self.rl.top_p,
                top_k=self.rl.top_k,
                max_new_tokens=self.rl.max_completion_length,
                generator=self.trainer.generator(name),
                shared=False,
            )

    def loss(
        self, queries: Rollouts, candidates: Rollouts, relations: Relations, model: torch.nn.Module
    ) -> torch.Tensor:
        """The step's loss, differentiable as a whole."""
        trainer = self.trainer
        sampled = self.rl.candidates == "generate"
        sides = (self._side(queries, model, True), self._side(candidates, model, sampled))
        embeddings = (sides[0].embeddings, sides[1].embeddings)
        lengths = candidates.lengths() if sampled else None
        with trainer.phase("reward"):
            credit = trainer.assessor.credit(*embeddings, relations, queries.lengths(), lengths)
        trainer.record_credit(credit, queries, candidates)
        loss = trainer.assessor.embedding_loss(*embeddings, relations)
        trainer.record_embedding_loss(loss)
        for side, advantages in zip(sides, (credit.queries, credit.candidates), strict=True):
            if advantages is not None:
                loss = loss + self._policy_term(side, advantages, model)
        return loss

    def _side(self, rollouts: Rollouts, model: torch.nn.Module, sampled: bool) -> Side:
        sequences = separate(self.encoder, rollouts)
        shape = (-1, rollouts.num_generations)
        if not sampled:
            # GRPO alone sends no gradient through a candidate without sampled tokens
            with self.trainer.phase("policy"), torch.set_grad_enabled(self.rl.gradient != "score"):
                hidden = self.encoder.hidden_states(sequences.batch, model)
                embeddings = self.encoder.read_embedding(hidden, sequences.batch)
            return Side(embeddings.unflatten(0, shape), rollouts)
        with self.trainer.phase("old"), torch.no_grad():
            old = self._logps(sequences, model).logprob
        with self.trainer.phase("policy"):
            hidden = self.encoder.hidden_states(sequences.batch, model)
            embeddings = self.encoder.read_embedding(hidden, sequences.batch).unflatten(0, shape)
            tokens = token_logps(self.encoder, sequences, hidden, self.rl.temperature)
        return Side(embeddings, rollouts, sequences, tokens, old)

    def _policy_term(self, side: Side, advantages: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
        assert side.sequences is not None and side.tokens is not None
        mask = side.sequences.token_mask
        reference = None
        if self.rl.beta > 0:
            with self.trainer.phase("reference"), self.trainer.reference(model), torch.no_grad():
                reference = self._logps(side.sequences).logprob
        loss = self.trainer.policy_loss(side.tokens.logprob, advantages.flatten(), mask, side.old, reference)
        self.trainer.record_policy(side.tokens.entropy.sum() / mask.sum().clamp(min=1))
        return loss

    def _logps(self, sequences: Sequences, model: torch.nn.Module | None = None) -> LinearLogprob:
        hidden = self.encoder.hidden_states(sequences.batch, model)
        return token_logps(self.encoder, sequences, hidden, self.rl.temperature)
