"""Stage 3: GRPO on the ranking and margin rewards (docs/method.md says which term sends gradient where)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from elva.losses import ELVALoss, GRPOLoss, group_advantage
from elva.ops import LinearLogprob
from elva.training.config import RLConfig
from elva.training.contrastive import candidate_mask
from elva.training.examples import Item, RetrievalExample, TrainingData, draw_batch
from elva.training.objective import Ranking, credit_items, pathwise_loss, rank_candidates
from elva.training.rollouts import Rollouts, sample, token_logps
from elva.training.trainer import StageTrainer

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from elva.models.encoder import MultimodalEncoder


@dataclass
class Side:
    """Queries or candidates of a micro-batch: embeddings [n, G, D] and, where summaries were sampled, their tokens."""

    embeddings: torch.Tensor
    rollouts: Rollouts | None = None
    tokens: LinearLogprob | None = None


@dataclass
class Relations:
    """Who is whose candidate: ``positive [Q]`` indices, ``negatives`` and ``owned [Q, C]`` bool."""

    positive: torch.Tensor
    negatives: torch.Tensor
    owned: torch.Tensor


class RLTrainer(StageTrainer):
    """Rollouts, rewards, policy gradient; optionally the pathwise or the surrogate gradient at [RET]."""

    def __init__(
        self,
        encoder: MultimodalEncoder,
        arguments: TrainingArguments,
        examples: Sequence[RetrievalExample],
        config: RLConfig,
        data: TrainingData,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, arguments, examples, **kwargs)
        self.config = config
        self.data = data
        self.policy_loss = GRPOLoss(
            beta=config.rl.beta,
            epsilon=config.rl.epsilon,
            epsilon_high=config.rl.epsilon_high,
            scale_rewards=config.rl.scale_rewards,
            # only with a constant length do the score and the pathwise term add up to one gradient
            max_completion_length=config.rl.max_completion_length
            if config.rl.gradient == "pathwise"
            else None,
        )
        self.surrogate_loss = ELVALoss(
            alpha=config.reward.alpha,
            epsilon=config.reward.epsilon,
            delta=config.reward.delta,
            temperature=config.surrogate.temperature,
            margin_temperature=config.surrogate.margin_temperature,
            tier_weight=config.surrogate.tier_weight,
        )

    def loss(self, examples: list[RetrievalExample], model: torch.nn.Module) -> torch.Tensor:
        items, dids, relations = self._gather(examples)
        queries = self._sampled_side(items, model, "queries")
        candidates = self._candidate_side(dids, model)
        with self._phase("reward"):
            ranking, advantages, candidate_advantages = self._advantages(queries, candidates, relations)
        loss = self._policy_term(queries, advantages, model)
        if candidates.rollouts is not None and candidate_advantages is not None:
            loss = loss + self._policy_term(candidates, candidate_advantages, model)
        loss = loss + self._embedding_term(queries, candidates, relations)
        self._record_ranking(ranking, queries, candidates)
        return loss

    def _gather(self, examples: list[RetrievalExample]) -> tuple[list[Item], list[str], Relations]:
        batch = draw_batch(self.data, examples, self.draw)
        dids = batch.dids
        place = {did: index for index, did in enumerate(dids)}
        owned = torch.zeros(len(examples), len(dids), dtype=torch.bool)
        for row, (example, own) in enumerate(zip(examples, batch.positives, strict=True)):
            owned[row, [place[own], *(place[did] for did in example.negatives)]] = True
        negatives = candidate_mask([example.query.positives for example in examples], dids)
        if self.config.rl.random_negatives == "pool":
            negatives &= owned
        device = self.encoder.device
        positive = torch.tensor([place[did] for did in batch.positives], device=device)
        return batch.items, dids, Relations(positive, negatives.to(device), owned.to(device))

    def _sampled_side(self, items: list[Item], model: torch.nn.Module, name: str) -> Side:
        rl = self.config.rl
        with self._phase("generate"):
            rollouts = sample(
                self.encoder,
                items,
                rl.num_generations,
                temperature=rl.temperature,
                top_p=rl.top_p,
                top_k=rl.top_k,
                max_new_tokens=rl.max_completion_length,
                generator=self.generator(name),
            )
        with self._phase("policy"):
            hidden = self.encoder.hidden_states(rollouts.batch, model)
            embeddings = self.encoder.read_embedding(hidden, rollouts.batch)
            tokens = token_logps(self.encoder, rollouts, hidden, rl.temperature)
        return Side(embeddings.unflatten(0, (len(items), rl.num_generations)), rollouts, tokens)

    def _candidate_side(self, dids: list[str], model: torch.nn.Module) -> Side:
        rl = self.config.rl
        items = [self.data.candidate_item(did) for did in dids]
        if rl.candidates == "generate":
            return self._sampled_side(items, model, "candidates")
        if rl.candidates == "shared":
            with self._phase("generate"):
                batch = sample(
                    self.encoder, items, 1, do_sample=False, max_new_tokens=rl.max_completion_length
                ).batch
        else:
            batch, _ = self.encoder.append(self.encoder.prepare(items), [[] for _ in items], ret=True)
        # GRPO alone sends no gradient through a candidate without sampled tokens
        with self._phase("policy"), torch.set_grad_enabled(rl.gradient != "score"):
            embeddings = self.encoder.read_embedding(self.encoder.hidden_states(batch, model), batch)
        return Side(embeddings.unsqueeze(1))

    @torch.no_grad()
    def _advantages(
        self, queries: Side, candidates: Side, relations: Relations
    ) -> tuple[Ranking, torch.Tensor, torch.Tensor | None]:
        """Rewards, advantages of the queries' rollouts [Q, G], and of the candidates' [C, G] where they have any."""
        arguments = (queries.embeddings, candidates.embeddings, relations.positive, relations.negatives)
        scale = self.config.rl.scale_rewards
        if self.config.rl.credit == "item":
            ranking, shares = credit_items(*arguments, self.config.reward)
            return (
                ranking,
                group_advantage(ranking.reward, scale_rewards=scale),
                group_advantage(shares, scale_rewards=scale),
            )
        ranking = rank_candidates(*arguments, self.config.reward)
        advantages = group_advantage(ranking.reward, scale_rewards=scale)
        if candidates.rollouts is None:
            return ranking, advantages, None
        # one reward for all items of a rollout: a candidate of several queries takes the mean of theirs
        share = relations.owned.to(advantages.dtype)
        return ranking, advantages, share.T @ advantages / share.sum(0).clamp_min(1).unsqueeze(1)

    def _policy_term(self, side: Side, advantages: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
        assert side.rollouts is not None and side.tokens is not None
        mask = side.rollouts.token_mask
        reference = self._reference_logps(side.rollouts, model) if self.config.rl.beta > 0 else None
        loss = self.policy_loss(side.tokens.logprob, advantages.flatten(), mask, ref_logps=reference)
        entropy = side.tokens.entropy.sum() / mask.sum().clamp(min=1)
        self.record(entropy=float(entropy))
        self.record(**{name: float(value) for name, value in self.policy_loss.metrics.items()})
        return loss

    @torch.no_grad()
    def _reference_logps(self, rollouts: Rollouts, model: torch.nn.Module) -> torch.Tensor:
        """The stage-2 model is the policy with its adapter off."""
        policy = self.accelerator.unwrap_model(model)
        training = policy.training
        with self._phase("reference"), policy.disable_adapter():
            policy.eval()
            hidden = self.encoder.hidden_states(rollouts.batch)
            logps = token_logps(self.encoder, rollouts, hidden, self.config.rl.temperature).logprob
        policy.train(training)
        return logps

    def _embedding_term(self, queries: Side, candidates: Side, relations: Relations) -> torch.Tensor:
        """∇R at [RET] (pathwise) or a smooth ranking and margin loss there (surrogate); 0 for `score`."""
        rl = self.config.rl
        if rl.gradient == "score":
            return queries.embeddings.new_zeros(())
        if rl.gradient == "pathwise":
            reward = rank_candidates(
                queries.embeddings,
                candidates.embeddings,
                relations.positive,
                relations.negatives,
                self.config.reward,
            ).reward
            return pathwise_loss(reward, rl.scale_rewards, rl.max_completion_length)
        generations = queries.embeddings.shape[1]
        negatives = candidates.embeddings.squeeze(1)
        if candidates.embeddings.shape[1] > 1:
            pool = candidates.embeddings.transpose(0, 1).unsqueeze(0)
            negatives = pool.expand(len(queries.embeddings), -1, -1, -1)
        positive = candidates.embeddings[relations.positive].expand(-1, generations, -1)
        mask = relations.negatives.unsqueeze(1).expand(-1, generations, -1)
        loss = self.surrogate_loss(queries.embeddings, positive, negatives, mask)
        self.record(surrogate=float(loss.detach()))
        return self.config.surrogate.weight * loss

    def _record_ranking(self, ranking: Ranking, queries: Side, candidates: Side) -> None:
        assert queries.rollouts is not None
        spread = ranking.reward.std(1) if ranking.reward.shape[1] > 1 else torch.zeros(1)
        encoded = queries.embeddings.shape[:2].numel() + candidates.embeddings.shape[:2].numel()
        self.record(
            reward=float(ranking.reward.mean()),
            reward_std=float(spread.mean()),
            frac_reward_zero_std=float((spread == 0).float().mean()),
            rank=float(ranking.rank.float().mean()),
            mean_cosine=float(ranking.similarities.mean()),
            completions__mean_length=queries.rollouts.mean_length,
            queries=len(queries.embeddings),
            encoded_items=encoded,
        )

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.record(**{f"seconds__{name}": time.perf_counter() - start})
