"""Stage 3: GRPO on the ranking and margin rewards (docs/method.md says which term sends gradient where)."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from elva.losses import GRPOLoss
from elva.training.config import ConfigError, RLConfig
from elva.training.contrastive import candidate_mask
from elva.training.credit import Assessor, Credit, Relations
from elva.training.examples import Item, RetrievalExample, TrainingData, draw_batch
from elva.training.fast_step import FastStep
from elva.training.plain_step import PlainStep
from elva.training.rollouts import Rollouts
from elva.training.trainer import StageTrainer

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from elva.models.encoder import MultimodalEncoder


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
        if config.rl.use_vllm and config.rl.step == "plain":
            raise ConfigError(
                "rl.use_vllm: true given with rl.step: plain, which samples by itself; expected fast"
            )
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
        self.assessor = Assessor(config)
        self.step: FastStep | PlainStep = (FastStep if config.rl.step == "fast" else PlainStep)(self)
        self.seconds: dict[str, float] = defaultdict(float)
        self.add_callback(OptimizerClock(self))

    def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
        self.seconds.clear()
        vision = self.encoder.vision_seconds
        start = time.perf_counter()
        loss = super().training_step(*arguments, **options)
        # What runs outside of the phases is the last backward.
        self.seconds["policy"] += time.perf_counter() - start - sum(self.seconds.values())
        self.seconds["vision"] = self.encoder.vision_seconds - vision
        self.seconds["generate"] -= self.seconds["vision"]
        self.record(**{f"seconds__{name}": seconds for name, seconds in self.seconds.items()})
        return loss

    def loss(self, examples: list[RetrievalExample], model: torch.nn.Module) -> torch.Tensor:
        items, dids, relations = self._gather(examples)
        queries = self.step.roll_out(items, "queries", candidates=False)
        pool = [self.data.candidate_item(did) for did in dids]
        candidates = self.step.roll_out(pool, "candidates", candidates=True)
        return self.step.loss(queries, candidates, relations, model)

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

    @contextlib.contextmanager
    def reference(self, model: torch.nn.Module) -> Iterator[None]:
        """The stage-2 model: the policy with its adapter off."""
        policy = self.accelerator.unwrap_model(model)
        training = policy.training
        with policy.disable_adapter():
            policy.eval()
            yield
        policy.train(training)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time inside to this micro-batch's ``seconds/name``."""
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start

    def record_credit(self, credit: Credit, queries: Rollouts, candidates: Rollouts) -> None:
        ranking = credit.ranking
        spread = ranking.reward.std(1) if ranking.reward.shape[1] > 1 else torch.zeros(1)
        self.record(
            reward=float(ranking.reward.mean()),
            reward_std=float(spread.mean()),
            frac_reward_zero_std=float((spread == 0).float().mean()),
            rank=float(ranking.rank.float().mean()),
            hit_rate=float((ranking.rank == 1).float().mean()),
            mean_cosine=float(ranking.similarities.mean()),
            completions__mean_length=queries.mean_length,
            queries=queries.embeddings.shape[0],
            encoded_items=len(queries.completions) + len(candidates.completions),
        )

    def record_policy(self, entropy: torch.Tensor) -> None:
        metrics = {"entropy": entropy, **self.policy_loss.metrics}
        self.record(**{name: float(value) for name, value in metrics.items()})

    def record_embedding_loss(self, loss: torch.Tensor) -> None:
        if self.config.rl.gradient == "surrogate":
            self.record(surrogate=float(loss.detach()))


class OptimizerClock(TrainerCallback):
    """Records ``seconds/optimiser``."""

    def __init__(self, trainer: RLTrainer) -> None:
        self.trainer = trainer
        self.start = 0.0

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.record(seconds__optimiser=time.perf_counter() - self.start)
