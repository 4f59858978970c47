"""Stage 3: GRPO on the ranking and margin rewards (docs/method.md says which term sends gradient where)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from elva.losses import GRPOLoss
from elva.training.config import ConfigError, RLConfig
from elva.training.credit import Assessor, Credit, Relations
from elva.training.examples import Item, RetrievalExample, TrainingData, draw_batch
from elva.training.fast_step import FastStep
from elva.training.plain_step import PlainStep
from elva.training.rollouts import Rollouts
from elva.training.trainer import StageTrainer

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from elva.models.encoder import MultimodalEncoder


STEP = "step"
"""What the stopwatch calls a whole micro-batch."""


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
        encoder.stopwatch.running = arguments.logging_strategy != "no"
        self.add_callback(OptimizerClock(self))

    def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
        with self.encoder.stopwatch.measure(STEP, self.encoder.device):
            return super().training_step(*arguments, **options)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            seconds = self.take_seconds()
            self.record(**{f"seconds__{name}": value for name, value in seconds.items()})
        super().log(logs, start_time)

    def take_seconds(self) -> dict[str, float]:
        """Mean seconds of each phase of a micro-batch since the last call, and of an optimiser's step.

        Waits for the device.
        """
        spent = self.encoder.stopwatch.take()
        if STEP not in spent:
            return {}
        optimiser = spent.pop("optimiser", None)
        steps = spent[STEP].pieces
        seconds = {name: found.seconds / steps for name, found in spent.items()}
        # What runs outside of all phases is the last backward.
        seconds["policy"] += seconds.pop(STEP)
        return (
            seconds if optimiser is None else {**seconds, "optimiser": optimiser.seconds / optimiser.pieces}
        )

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
        negatives = self.data.known_positives.negatives([example.query for example in examples], dids)
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

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Adds the time inside to ``seconds/name``."""
        return self.encoder.stopwatch.measure(name, self.encoder.device)

    def record_credit(self, credit: Credit, queries: Rollouts, candidates: Rollouts) -> None:
        ranking = credit.ranking
        spread = ranking.reward.std(1) if ranking.reward.shape[1] > 1 else torch.zeros(1)
        self.record(
            reward=ranking.reward.mean(),
            reward_std=spread.mean(),
            frac_reward_zero_std=(spread == 0).float().mean(),
            rank=ranking.rank.float().mean(),
            hit_rate=(ranking.rank == 1).float().mean(),
            mean_cosine=ranking.similarities.mean(),
            completions__mean_length=queries.mean_length,
            queries=queries.embeddings.shape[0],
            encoded_items=len(queries.completions) + len(candidates.completions),
        )

    def record_policy(self, entropy: torch.Tensor) -> None:
        self.record(entropy=entropy, **self.policy_loss.metrics)

    def record_embedding_loss(self, loss: torch.Tensor) -> None:
        if self.config.rl.gradient == "surrogate":
            self.record(surrogate=loss)


class OptimizerClock(TrainerCallback):
    """Measures ``seconds/optimiser``."""

    def __init__(self, trainer: RLTrainer) -> None:
        self.trainer = trainer
        self.step = ExitStack()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        encoder = self.trainer.encoder
        self.step.enter_context(encoder.stopwatch.measure("optimiser", encoder.device))

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.step.close()
