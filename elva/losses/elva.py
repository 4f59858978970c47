"""The paper's ranking and margin aims as a loss that can be minimised directly (docs/method.md)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elva.losses.rewards import reward_of_rows
from elva.losses.rows import Rows, Similarities, as_rows, similarities
from elva.losses.tiered_rank import tiered_ranking
from elva.ops.checks import is_finite
from elva.ops.tiered_rank import tiered_rank
from elva.ops.tiered_rank_check import check_options

FORMS = ("smooth", "reward")


class ELVALoss(nn.Module):
    """Rank the positive first, keep a margin to the hardest negative, and order the negatives among themselves.

    ``form="smooth"`` (default)::

        epsilon (L_nce + tier_weight L_tier) + alpha softplus((delta - (s_pos - max_i s_i)) / tau_m)

    with ``L_nce`` the InfoNCE of the positive over the row's own candidates at ``temperature``, ``L_tier`` of
    :class:`elva.losses.TieredRankingLoss` and ``tau_m = margin_temperature``. A row without a valid negative
    contributes 0.

    ``form="reward"``: minus ``R_total`` as printed (:func:`elva.losses.elva_reward`). It is there for study: R is a
    reward, so its gradient fades where the positive loses (the margin is flat below delta, and the positive's weight
    1/(1 + ln r) is smallest where r is worst). Alone it made retrieval worse in our trial.

    Args:
        alpha, epsilon: weights of the margin and the ranking part.
        form: ``"smooth"`` or ``"reward"``.
        delta: margin, a difference of cosines.
        gamma, normalize_gamma: only ``form="reward"``; see :func:`elva.losses.elva_reward`.
        temperature: tau > 0 of ``L_nce`` and ``L_tier``.
        margin_temperature: tau_m > 0.
        tier_weight: weight of ``L_tier``; 0 leaves it out.
        num_tiers: T >= 2.
        false_negative_threshold: negatives whose cosine to the positive is above it are left out of every term.
        infonce_weight: weight of an added plain ``L_nce``, in either form.

    Raises:
        ValueError: an unknown form, a temperature that is not finite and above 0, fewer than two tiers.

    Example:
        >>> query = positive = torch.tensor([[1.0, 0.0]])
        >>> negatives = torch.tensor([[[0.0, 1.0]]])
        >>> loss = ELVALoss(temperature=1.0, margin_temperature=1.0)
        >>> loss(query, positive, negatives)  # .6 log(1 + exp(-1)) + .4 log(1 + exp(-.9))
        tensor(0.3244)
    """

    def __init__(
        self,
        alpha: float = 0.4,
        epsilon: float = 0.6,
        form: str = "smooth",
        delta: float = 0.1,
        gamma: float = 0.5,
        normalize_gamma: bool = True,
        temperature: float = 0.05,
        margin_temperature: float = 0.05,
        tier_weight: float = 0.3,
        num_tiers: int = 3,
        false_negative_threshold: float | None = None,
        infonce_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"form must be one of {FORMS}, got {form!r}")
        if not (margin_temperature > 0 and is_finite(margin_temperature)):
            raise ValueError(f"margin_temperature must be above 0 and finite, got {margin_temperature}")
        numbers = {"alpha": alpha, "epsilon": epsilon, "delta": delta, "gamma": gamma}
        numbers |= {"tier_weight": tier_weight, "infonce_weight": infonce_weight}
        for name, value in numbers.items():
            if not is_finite(value):
                raise ValueError(f"{name} must be a finite number, got {value}")
        check_options(temperature, num_tiers, false_negative_threshold, None)
        if num_tiers < 2:
            raise ValueError(f"num_tiers must be at least 2, got {num_tiers}")
        self.alpha = alpha
        self.epsilon = epsilon
        self.form = form
        self.delta = delta
        self.gamma = gamma
        self.normalize_gamma = normalize_gamma
        self.temperature = temperature
        self.margin_temperature = margin_temperature
        self.tier_weight = tier_weight
        self.num_tiers = num_tiers
        self.false_negative_threshold = false_negative_threshold
        self.infonce_weight = infonce_weight

    def forward(
        self, query: Tensor, positive: Tensor, negatives: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Mean loss over the rows.

        Args:
            query, positive: ``[..., D]``, any floating dtype; accumulated in float32 (float64 for float64 input).
            negatives: ``[..., N, D]``, or ``[N, D]`` shared by all rows (the candidates of a batch: then exclude each
                row's positive and false negatives by ``mask``).
            mask: ``[..., N]`` bool, True = use. Masked negatives may hold anything and receive no gradient.

        Returns:
            Scalar, float32 (float64 for float64 input); >= 0 in the smooth form.

        Raises:
            ValueError, TypeError: shapes, dtypes or devices that do not fit, naming the argument.
        """
        rows = as_rows(query, positive, negatives, mask)
        if rows.query.shape[0] == 0:
            raise ValueError("query has no rows: the mean over an empty batch is not defined")
        if self.form == "reward" and self.infonce_weight == 0 and self.false_negative_threshold is None:
            return self._minus_reward(rows).mean()
        cosines = similarities(rows)
        valid = rows.valid
        if self.false_negative_threshold is not None:
            valid = valid & (cosines.between <= self.false_negative_threshold)
        infonce = self._infonce(cosines, valid)
        if self.form == "reward":
            loss = self._minus_reward(rows._replace(mask=valid))
        else:
            loss = self._smooth(cosines, valid, infonce)
        return (loss + self.infonce_weight * infonce).mean()

    def _minus_reward(self, rows: Rows) -> Tensor:
        weights = {"alpha": self.alpha, "epsilon": self.epsilon, "delta": self.delta, "gamma": self.gamma}
        return -reward_of_rows(rows, normalize_gamma=self.normalize_gamma, **weights).total.flatten()

    def _infonce(self, cosines: Similarities, valid: Tensor) -> Tensor:
        negative = cosines.negative.masked_fill(~valid, -torch.inf)
        logits = torch.cat([cosines.positive[:, None], negative], dim=1) / self.temperature
        return logits.logsumexp(dim=1) - logits[:, 0]

    def _smooth(self, cosines: Similarities, valid: Tensor, infonce: Tensor) -> Tensor:
        ranking = infonce
        if self.tier_weight:
            tiers = tiered_rank(
                cosines.negative,
                cosines.between,
                valid,
                temperature=self.temperature,
                num_tiers=self.num_tiers,
            )
            ranking = ranking + self.tier_weight * tiered_ranking(tiers.logsumexp)
        return self.epsilon * ranking + self.alpha * self._margin(cosines, valid)

    def _margin(self, cosines: Similarities, valid: Tensor) -> Tensor:
        if valid.shape[1] == 0:
            return torch.zeros_like(cosines.positive)
        # argmax names the first of tied negatives; max would leave open which of them takes the gradient
        index = cosines.negative.masked_fill(~valid, -torch.inf).argmax(dim=1, keepdim=True)
        hardest = cosines.negative.gather(1, index).squeeze(1)
        shortfall = (self.delta - (cosines.positive - hardest)) / self.margin_temperature
        return torch.where(valid.any(dim=1), F.softplus(shortfall), 0)

    def extra_repr(self) -> str:
        names = (
            "alpha",
            "epsilon",
            "form",
            "delta",
            "temperature",
            "tier_weight",
            "num_tiers",
            "infonce_weight",
        )
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
