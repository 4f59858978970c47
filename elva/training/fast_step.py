"""The same RL step without repeated work: docs/rl-step.md says what is saved and why the gradients are the same.

Embeddings and states come from the rollout; rewards, and their gradients with respect to the embeddings, are computed
first. Then packed micro-batches (each prompt once, its completions behind it) run forward and backward one by one, so
that memory depends on the micro-batch and not on the number of rollouts or candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from elva.models.batches import Batch
from elva.models.packing import PackedBatch
from elva.ops import LinearLogprob, linear_logprob
from elva.training.credit import Relations
from elva.training.examples import Item
from elva.training.rollouts import Rollouts, sample
from elva.training.vllm_generation import VLLMGenerator

if TYPE_CHECKING:
    from elva.training.rl import RLTrainer

CACHED = 8
"""Tokens in the cache while sampling, over tokens trained at once: keys and values take far less than activations."""


@dataclass
class Share:
    """What one side still owes: ``advantages [n, G]`` of its tokens, ``pull [n, G, D]`` on its embeddings."""

    rollouts: Rollouts
    advantages: torch.Tensor | None
    pull: torch.Tensor | None


@dataclass
class Piece:
    """Items of one share that run together; ``weight`` 0 for a copy that only keeps ranks in step."""

    share: Share
    rows: list[int]
    weight: float = 1.0


class FastStep:
    def __init__(self, trainer: RLTrainer) -> None:
        self.trainer = trainer
        self.encoder = trainer.encoder
        self.rl = trainer.config.rl
        self.vllm = VLLMGenerator(self.encoder, trainer.config.seed) if self.rl.use_vllm else None

    def roll_out(self, items: list[Item], name: str, candidates: bool) -> Rollouts:
        """Summaries of queries, or what stands for them at candidates, with the states at [RET]."""
        kind = self.rl.candidates if candidates else "generate"
        with self.trainer.phase("generate"):
            if kind == "direct":
                return self._direct(items)
            if kind == "generate" and self.vllm is not None:
                return self._by_vllm(items, name)
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
                cached_tokens=CACHED * self.rl.micro_batch_tokens,
            )

    def loss(
        self, queries: Rollouts, candidates: Rollouts, relations: Relations, model: torch.nn.Module
    ) -> torch.Tensor:
        """The step's loss. All of its gradient but the last piece's is there when it returns."""
        trainer = self.trainer
        leaves = [side.embeddings.detach().requires_grad_() for side in (queries, candidates)]
        lengths = candidates.lengths() if self.rl.candidates == "generate" else None
        with trainer.phase("reward"):
            credit = trainer.assessor.credit(
                leaves[0].detach(), leaves[1].detach(), relations, queries.lengths(), lengths
            )
            loss = trainer.assessor.embedding_loss(leaves[0], leaves[1], relations)
            pulls = torch.autograd.grad(loss, leaves) if loss.requires_grad else (None, None)
        trainer.record_credit(credit, queries, candidates)
        trainer.record_embedding_loss(loss)
        shares = [Share(queries, credit.queries, pulls[0]), Share(candidates, credit.candidates, pulls[1])]
        pieces = self._in_step([piece for share in shares for piece in self._pieces(share)])
        total = loss.detach()
        for piece in pieces[:-1]:
            with trainer.accelerator.no_sync(model):
                value, surrogate = self._run(piece, model)
                trainer.accelerator.backward(surrogate / trainer.current_gradient_accumulation_steps)
            total = total + value
        value, surrogate = self._run(pieces[-1], model)
        return surrogate + (total + value - surrogate).detach()

    def _direct(self, items: list[Item]) -> Rollouts:
        """Candidates without a summary: [RET] right behind the prompt."""
        prompts = self.encoder.prepare(items)
        return self._read(prompts, [[self.encoder.ret_id] for _ in items], [False] * len(items), 1)

    def _by_vllm(self, items: list[Item], name: str) -> Rollouts:
        assert self.vllm is not None
        with torch.no_grad():
            prompts = self.encoder.prepare(items)
        completions, sampled_ret = self.vllm(
            items,
            prompts,
            self.rl.num_generations,
            temperature=self.rl.temperature,
            top_p=self.rl.top_p,
            top_k=self.rl.top_k,
            max_new_tokens=self.rl.max_completion_length,
            seed=self.trainer.draw(f"{name}:{self.trainer.args.process_index}").getrandbits(31),
        )
        return self._read(prompts, completions, sampled_ret, self.rl.num_generations)

    def _read(
        self, prompts: Batch, completions: list[list[int]], sampled_ret: list[bool], num_generations: int
    ) -> Rollouts:
        """Rollouts of given tokens: the states at [RET] come from a packed forward."""
        count = len(completions) // num_generations
        device = self.encoder.device
        found = torch.empty(count, num_generations, self.encoder.hidden_size, device=device)
        rollouts = Rollouts(prompts, completions, sampled_ret, num_generations, found)
        training = self.encoder.model.training
        self.encoder.model.eval()
        try:
            with torch.no_grad():
                for piece in self._pieces(Share(rollouts, None, found)):
                    packed = self._pack(piece)
                    states = self.encoder.packed_states(packed)
                    read = self.encoder.read_packed(states, packed)
                    found[piece.rows] = read.unflatten(0, (-1, num_generations))
        finally:
            self.encoder.model.train(training)
        return rollouts

    def _pieces(self, share: Share) -> Iterator[Piece]:
        """Items of alike prompts together, at most ``rl.micro_batch_tokens`` tokens at a time (one item at least)."""
        if share.advantages is None and share.pull is None:
            return
        rollouts = share.rollouts
        generations = rollouts.num_generations
        prompts = rollouts.prompts["attention_mask"].sum(1).tolist()
        sizes = [
            length + sum(map(len, rollouts.completions[row * generations : (row + 1) * generations]))
            for row, length in enumerate(prompts)
        ]
        rows: list[int] = []
        for row in sorted(range(len(sizes)), key=lambda row: -prompts[row]):
            if rows and sum(sizes[other] for other in rows) + sizes[row] > self.rl.micro_batch_tokens:
                yield Piece(share, rows)
                rows = []
            rows.append(row)
        if rows:
            yield Piece(share, rows)

    def _in_step(self, pieces: list[Piece]) -> list[Piece]:
        """As many pieces on every rank: FSDP's forward and backward are collectives."""
        if not (dist.is_available() and dist.is_initialized()):
            return pieces
        most = torch.tensor(len(pieces), device=self.encoder.device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        spare = Piece(pieces[0].share, pieces[0].rows[:1], weight=0.0)
        return [*[spare] * (int(most) - len(pieces)), *pieces]

    def _pack(self, piece: Piece) -> PackedBatch:
        rollouts = piece.share.rollouts
        completions = [rollouts.completions[place] for place in self._places(piece)]
        prompts = self.encoder.select(rollouts.prompts, piece.rows)
        return self.encoder.pack(prompts, completions, rollouts.num_generations)

    def _places(self, piece: Piece) -> list[int]:
        generations = piece.share.rollouts.num_generations
        return [row * generations + g for row in piece.rows for g in range(generations)]

    def _run(self, piece: Piece, model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """The piece's part of the loss's value, and what has its part of the gradient."""
        share, trainer = piece.share, self.trainer
        packed = self._pack(piece)
        mask = self._token_mask(piece, packed)
        reference = None
        if share.advantages is not None and self.rl.beta > 0:
            with trainer.phase("reference"), trainer.reference(model), torch.no_grad():
                reference = self._logps(packed, mask, self.encoder.packed_states(packed)).logprob
        with trainer.phase("policy"):
            states = self.encoder.packed_states(packed, model)
            value = surrogate = states.new_zeros((), dtype=torch.float32)
            if share.advantages is not None:
                tokens = self._logps(packed, mask, states)
                advantages = share.advantages[piece.rows].flatten()
                part = trainer.policy_loss(tokens.logprob, advantages, mask, ref_logps=reference)
                trainer.record_policy(tokens.entropy.sum() / mask.sum().clamp(min=1))
                value = surrogate = part * (len(piece.rows) / len(share.advantages))
            if share.pull is not None:
                pull = share.pull[piece.rows].flatten(0, 1)
                surrogate = surrogate + (self.encoder.read_packed(states, packed) * pull).sum()
        return piece.weight * value.detach(), piece.weight * surrogate

    def _token_mask(self, piece: Piece, packed: PackedBatch) -> torch.Tensor:
        """[completions, longest] bool, left-aligned: True on sampled tokens."""
        lengths = torch.tensor(packed.layout.completions, device=packed.ends.device)
        sampled = [piece.share.rollouts.sampled_ret[place] for place in self._places(piece)]
        counted = lengths - 1 + torch.tensor(sampled, device=lengths.device).long()
        return torch.arange(int(lengths.max()), device=lengths.device) < counted[:, None]

    def _logps(self, packed: PackedBatch, mask: torch.Tensor, states: torch.Tensor) -> LinearLogprob:
        """[completions, longest] log-probability and entropy of the sampled tokens, 0 elsewhere."""
        head = self.encoder.head()
        lengths = torch.tensor(packed.layout.completions, device=mask.device)
        there = torch.arange(mask.shape[1], device=mask.device) < lengths[:, None]
        used = mask[there]
        tokens = linear_logprob(
            states[packed.before[used]].to(head.weight.dtype),
            head.weight,
            packed.completion_ids[used],
            temperature=self.rl.temperature,
            trainable_rows=head.trainable_rows,
            row_values=head.row_values,
        )
        spread = (value.new_zeros(mask.shape).masked_scatter(mask, value) for value in tokens)
        return LinearLogprob(*spread)
