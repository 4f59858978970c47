"""ELVA's losses for sentence-transformers: ``Loss(model, scale=20.0, ...)``; columns anchor, positive, negative_1 ...

Every positive and every hard negative of the batch is a candidate of every anchor, as in that library's
``MultipleNegativesRankingLoss``. Use ``BatchSamplers.NO_DUPLICATES``, or a ``false_negative_threshold``, where one
text can be a right answer to two anchors of a batch.

    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from elva.integrations.sentence_transformers import ELVALoss

    model = SentenceTransformer("all-MiniLM-L6-v2")
    trainer = SentenceTransformerTrainer(model=model, train_dataset=triplets, loss=ELVALoss(model))
    trainer.train()
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from elva import losses

_INFONCE_CITATION = """
@misc{oord2019representationlearningcontrastivepredictive,
      title={Representation Learning with Contrastive Predictive Coding},
      author={Aaron van den Oord and Yazhe Li and Oriol Vinyals},
      year={2019},
      eprint={1807.03748},
      archivePrefix={arXiv},
      primaryClass={cs.LG},
      url={https://arxiv.org/abs/1807.03748},
}
"""
_ELVA_CITATION = """
@misc{liu2026elva,
      title={ELVA: Exploring Ranking-Driven Universal Multimodal Retrieval},
      author={Yuhan Liu and Pei Fu and Hang Li and Yukun Qi and Chao Jiang and Jingwen Fu and Zhen Liu and Bin Qin and
              Zhenbo Luo and Jian Luan and Jingmin Xin},
      year={2026},
      eprint={2606.20280},
      archivePrefix={arXiv},
      url={https://arxiv.org/abs/2606.20280},
}
"""


class _BatchLoss(nn.Module):
    """Embeds the columns of a batch; a subclass turns the embeddings into a loss."""

    citation = _ELVA_CITATION

    def __init__(self, model: SentenceTransformer, scale: float, **config: Any) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale must be above 0, got {scale}")
        self.model = model
        self.scale = scale
        self._config = config

    @property
    def temperature(self) -> float:
        """tau = 1 / scale."""
        return 1.0 / self.scale

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """Scalar loss of a batch; ``sentence_features`` holds one dict per column, ``labels`` is not used."""
        embeddings = [self.model(features)["sentence_embedding"] for features in sentence_features]
        if len(embeddings) < 2:
            raise ValueError(
                f"columns anchor, positive[, negative_1, ...] expected, got {len(embeddings)} column(s)"
            )
        return self.compute_loss_from_embeddings(embeddings)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor]) -> Tensor:
        """Scalar loss from one tensor ``[B, D]`` per column."""
        raise NotImplementedError

    def get_config_dict(self) -> dict[str, Any]:
        """The constructor's options, for the model card."""
        return {"scale": self.scale, **self._config}


class InfoNCELoss(_BatchLoss):
    """InfoNCE over all positives and hard negatives of the batch; see :class:`elva.losses.InfoNCELoss`.

    Args:
        model: the SentenceTransformer to train.
        scale: 1 / tau, > 0.
        similarity: ``"cosine"`` or ``"dot"``.
        bidirectional: average with the direction positive → anchor.

    Example:
        >>> loss = InfoNCELoss(model, scale=20.0)  # equals MultipleNegativesRankingLoss(model, scale=20.0)
    """

    citation = _INFONCE_CITATION

    def __init__(
        self,
        model: SentenceTransformer,
        scale: float = 20.0,
        similarity: str = "cosine",
        bidirectional: bool = False,
    ) -> None:
        super().__init__(model, scale, similarity=similarity, bidirectional=bidirectional)
        self.loss = losses.InfoNCELoss(self.temperature, similarity, bidirectional)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor]) -> Tensor:
        anchor, positive, *hard = embeddings
        return self.loss(anchor, positive, negatives=torch.cat(hard) if hard else None)


class ELVALoss(_BatchLoss):
    """ELVA's ranking and margin loss over all candidates of the batch; see :class:`elva.losses.ELVALoss`.

    Args:
        model: the SentenceTransformer to train.
        scale: 1 / tau of the InfoNCE and tier terms, > 0.
        alpha, epsilon, form, delta, gamma, normalize_gamma, margin_temperature, tier_weight, num_tiers,
            false_negative_threshold, infonce_weight: as in :class:`elva.losses.ELVALoss`.

    Example:
        >>> trainer = SentenceTransformerTrainer(model=model, train_dataset=triplets, loss=ELVALoss(model))
    """

    def __init__(
        self,
        model: SentenceTransformer,
        scale: float = 20.0,
        alpha: float = 0.4,
        epsilon: float = 0.6,
        form: str = "smooth",
        delta: float = 0.1,
        gamma: float = 0.5,
        normalize_gamma: bool = True,
        margin_temperature: float = 0.05,
        tier_weight: float = 0.3,
        num_tiers: int = 3,
        false_negative_threshold: float | None = None,
        infonce_weight: float = 0.0,
    ) -> None:
        config: dict[str, Any] = {
            "alpha": alpha,
            "epsilon": epsilon,
            "form": form,
            "delta": delta,
            "gamma": gamma,
            "normalize_gamma": normalize_gamma,
            "margin_temperature": margin_temperature,
            "tier_weight": tier_weight,
            "num_tiers": num_tiers,
            "false_negative_threshold": false_negative_threshold,
            "infonce_weight": infonce_weight,
        }
        super().__init__(model, scale, **config)
        self.loss = losses.ELVALoss(temperature=self.temperature, **config)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor]) -> Tensor:
        return self.loss(embeddings[0], embeddings[1], *_candidates(embeddings))


class TieredRankingLoss(_BatchLoss):
    """``infonce_weight * InfoNCE + L_tier`` over the batch; see :class:`elva.losses.TieredRankingLoss`.

    ``L_tier`` orders the negatives and never sees the positive's score, so InfoNCE is part of it here by default.

    Args:
        model: the SentenceTransformer to train.
        scale: 1 / tau, > 0.
        num_tiers, false_negative_threshold: as in :class:`elva.losses.TieredRankingLoss`.
        infonce_weight: weight of the InfoNCE term; 0 leaves ``L_tier`` alone, to be combined elsewhere.

    Example:
        >>> trainer = SentenceTransformerTrainer(model=model, train_dataset=triplets, loss=TieredRankingLoss(model))
    """

    def __init__(
        self,
        model: SentenceTransformer,
        scale: float = 20.0,
        num_tiers: int = 3,
        false_negative_threshold: float | None = None,
        infonce_weight: float = 1.0,
    ) -> None:
        config = {"num_tiers": num_tiers, "false_negative_threshold": false_negative_threshold}
        super().__init__(model, scale, **config, infonce_weight=infonce_weight)
        self.loss = losses.TieredRankingLoss(self.temperature, num_tiers, false_negative_threshold)
        self.infonce = losses.InfoNCELoss(self.temperature)
        self.infonce_weight = infonce_weight

    def compute_loss_from_embeddings(self, embeddings: list[Tensor]) -> Tensor:
        anchor, positive, *hard = embeddings
        loss = self.loss(anchor, positive, *_candidates(embeddings))
        if self.infonce_weight == 0:
            return loss
        return loss + self.infonce_weight * self.infonce(
            anchor, positive, negatives=torch.cat(hard) if hard else None
        )


def _candidates(embeddings: list[Tensor]) -> tuple[Tensor, Tensor]:
    """All documents of the batch ``[M, D]`` and a mask ``[B, M]`` that leaves out each anchor's own positive."""
    documents = torch.cat(embeddings[1:])
    own = torch.eye(embeddings[0].shape[0], documents.shape[0], dtype=torch.bool, device=documents.device)
    return documents, ~own
