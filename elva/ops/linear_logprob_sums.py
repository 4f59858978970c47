"""The end of a sweep of `linear_logprob`: from its running sums to what the operator returns."""

from __future__ import annotations

from torch import Tensor


def of_sums(target: Tensor, highest: Tensor, total: Tensor, weighted: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy [T] of a sweep's sums: of p = exp(z − highest), and of p · (z − highest).

    By distances from the highest logit: their size, not the logits', bounds the rounding.
    """
    log_total = total.log()
    return (target - highest) - log_total, (log_total - weighted / total).clamp_min(0)
