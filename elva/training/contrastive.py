"""Stages 1 and 2: InfoNCE over NLI triplets, and over the query-candidate pairs of M-BEIR."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from elva.losses import InfoNCELoss
from elva.models.batches import Batch
from elva.training.config import InstructConfig, TextConfig
from elva.training.examples import Item, RetrievalExample, TrainingData, TripletExample, draw_batch
from elva.training.known_positives import same_text
from elva.training.rollouts import sample, separate
from elva.training.trainer import StageTrainer

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from elva.models.encoder import MultimodalEncoder


def embed(
    encoder: MultimodalEncoder, items: Sequence[Item], model: torch.nn.Module | None = None
) -> torch.Tensor:
    """States at [RET] right behind the prompt, with gradient: [n, H], as InfoNCE takes them (`states_for_loss`)."""
    batch = encoder.prepare(list(items))
    batch, _ = encoder.append(batch, [[] for _ in items], ret=True)
    return states_for_loss(encoder, batch, model)


def states_for_loss(
    encoder: MultimodalEncoder, batch: Batch, model: torch.nn.Module | None = None
) -> torch.Tensor:
    """The states [n, H] whose directions are the embeddings, in the dtype of the model's products.

    InfoNCE normalises them in float32 itself. In half precision its own products take the GPU's matrix units, and lose
    nothing to it: the states of half-precision weights are half precision before accelerate widens them.
    """
    states = encoder.read_state(encoder.hidden_states(batch, model), batch)
    return states if encoder.autocast_dtype is None else states.to(encoder.autocast_dtype)


class TextTrainer(StageTrainer):
    """Stage 1 (docs/method.md): anchors against positives (and, where asked for, contradictions)."""

    def __init__(
        self,
        encoder: MultimodalEncoder,
        arguments: TrainingArguments,
        examples: Sequence[TripletExample],
        config: TextConfig,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, arguments, examples, **kwargs)
        self.criterion = InfoNCELoss(config.loss.temperature, bidirectional=config.loss.bidirectional)
        self._known: dict[str, set[str]] = defaultdict(set)
        for example in examples:
            texts = (example.anchor, example.positive, *example.known)
            self._known[same_text(example.anchor)].update(map(same_text, texts))

    def loss(self, examples: list[TripletExample], model: torch.nn.Module) -> torch.Tensor:
        texts = [example.positive for example in examples]
        texts += [example.negative for example in examples if example.negative]
        anchors = [example.anchor for example in examples]
        queries = embed(self.encoder, [{"text": text, "image": None} for text in anchors], model)
        keys = embed(self.encoder, [{"text": text, "image": None} for text in texts], model)
        return self.criterion(queries, keys, mask=self.negatives(anchors, texts).to(keys.device))

    def negatives(self, anchors: Sequence[str], texts: Sequence[str]) -> torch.Tensor:
        """[anchors, texts] bool: True unless the text is the anchor, or follows from it in any of the examples."""
        keys = [same_text(text) for text in texts]
        known = [self._known[same_text(anchor)] for anchor in anchors]
        return torch.tensor([[key not in own for key in keys] for own in known])


class InstructTrainer(StageTrainer):
    """Stage 2 (docs/method.md): queries against all candidates of the batch, false negatives masked by content."""

    def __init__(
        self,
        encoder: MultimodalEncoder,
        arguments: TrainingArguments,
        examples: Sequence[RetrievalExample],
        config: InstructConfig,
        data: TrainingData,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, arguments, examples, **kwargs)
        self.config = config
        self.data = data
        self.criterion = InfoNCELoss(config.loss.temperature, bidirectional=config.loss.bidirectional)

    def loss(self, examples: list[RetrievalExample], model: torch.nn.Module) -> torch.Tensor:
        batch = draw_batch(self.data, examples, self.draw)
        items, dids = batch.items, batch.dids
        if self.draw("summary").random() < self.config.summary_probability:
            queries = self._read_behind_summary(items, model)
        else:
            queries = embed(self.encoder, items, model)
        keys = embed(self.encoder, [self.data.candidate_item(did) for did in dids], model)
        labels = torch.tensor([dids.index(did) for did in batch.positives], device=keys.device)
        mask = self.data.known_positives.negatives([example.query for example in examples], dids)
        self.record(queries=len(items), encoded_items=len(items) + len(dids))
        return self.criterion(queries, keys, labels, mask=mask.to(keys.device))

    def _read_behind_summary(self, items: list[Item], model: torch.nn.Module) -> torch.Tensor:
        rollouts = sample(
            self.encoder,
            items,
            1,
            max_new_tokens=self.config.max_completion_length,
            generator=self.generator("summary"),
        )
        batch = separate(self.encoder, rollouts).batch
        return states_for_loss(self.encoder, batch, model)
