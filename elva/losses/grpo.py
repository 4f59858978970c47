"""The policy loss of stage 3: GRPO on the tokens of the summaries (the ELVA paper; names as in TRL)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from elva.losses.rewards import SCALES, group_advantage
from elva.ops.checks import check_devices
from elva.ops.linear_logprob import LinearLogprob, linear_logprob


class GRPOLoss(nn.Module):
    """Clipped token ratio with group-relative advantages and a KL penalty to the reference policy.

        ratio = exp(logp - logp_old);  kl = exp(logp_ref - logp) - (logp_ref - logp) - 1    (k3 estimator)
        token = -min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon_high) A) + beta kl

    averaged over the tokens of a completion, then over completions (TRL's ``loss_type="grpo"``); or, with
    ``max_completion_length``, summed over them and divided by that constant (``"dr_grpo"``), which weights every
    sampled token alike and makes the loss's gradient that of E[R] up to a constant. The loss maximises E[R] through
    the sampled tokens only; the path through the embedding is not part of it (docs/method.md).

    Args:
        beta: weight of the KL penalty, >= 0; the reference is needed when it is above 0.
        epsilon: lower clip range, in (0, 1).
        epsilon_high: upper clip range, > 0; ``None`` means ``epsilon``.
        scale_rewards: how rewards become advantages; see :func:`elva.losses.group_advantage`.
        max_completion_length: ``None``, or the constant > 0 that replaces each completion's own length.

    Attributes:
        metrics: of the last call, detached scalars: ``kl`` (mean per token; 0 without a reference), ``clip_ratio``
            (share of tokens whose gradient the clip cut off) and ``ratio_mean``.

    Raises:
        ValueError: a value outside the ranges above.

    Example:
        >>> loss = GRPOLoss(beta=0.0, scale_rewards="none")
        >>> logps = torch.full((2, 1), -1.0, requires_grad=True)
        >>> loss(logps, torch.tensor([[1.0, 0.0]]), torch.ones(2, 1, dtype=torch.bool)).backward()
        >>> logps.grad.flatten()  # -A / 2: the better completion becomes more likely
        tensor([-0.2500,  0.2500])
    """

    def __init__(
        self,
        beta: float = 0.2,
        epsilon: float = 0.2,
        epsilon_high: float | None = None,
        scale_rewards: str = "group",
        max_completion_length: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= beta < math.inf:
            raise ValueError(f"beta must be at least 0 and finite, got {beta}")
        if not 0 < epsilon < 1:
            raise ValueError(f"epsilon must be between 0 and 1, got {epsilon}")
        if epsilon_high is not None and not epsilon_high > 0:
            raise ValueError(f"epsilon_high must be above 0, got {epsilon_high}")
        if scale_rewards not in SCALES:
            raise ValueError(f"scale_rewards must be one of {SCALES}, got {scale_rewards!r}")
        if max_completion_length is not None and max_completion_length < 1:
            raise ValueError(f"max_completion_length must be at least 1, got {max_completion_length}")
        self.beta = beta
        self.epsilon = epsilon
        self.epsilon_high = epsilon if epsilon_high is None else epsilon_high
        self.scale_rewards = scale_rewards
        self.max_completion_length = max_completion_length
        self.metrics: dict[str, Tensor] = {}

    def forward(
        self,
        logps: Tensor,
        rewards_or_advantages: Tensor,
        mask: Tensor,
        old_logps: Tensor | None = None,
        ref_logps: Tensor | None = None,
    ) -> Tensor:
        """Mean loss over R completions.

        Args:
            logps: ``[R, T]`` log-probabilities of the sampled tokens under the policy, with gradient.
            rewards_or_advantages: rewards ``[B, G]`` with ``B * G == R`` (completions of one query adjacent), turned
                into advantages here; or advantages ``[R]``, used as they are.
            mask: ``[R, T]`` bool (or 0/1), True = a sampled token. Other places may hold anything. A completion
                without any token contributes 0.
            old_logps: ``[R, T]`` under the policy that sampled; ``None``: this one, so every ratio is 1.
            ref_logps: ``[R, T]`` under the reference policy; not used when ``beta`` is 0.

        Returns:
            Scalar, float32 (float64 for float64 log-probabilities). A ratio too large for the dtype (exp 88 in float32)
            makes it inf only where the ratio counts: with a negative advantage, which the clip leaves unbounded.

        Raises:
            ValueError: shapes or devices that do not fit, no reference although ``beta > 0``, rewards that are
                not finite.
            TypeError: log-probabilities that are not floating point, complex rewards.
        """
        check_devices(
            logps=logps,
            rewards_or_advantages=rewards_or_advantages,
            mask=mask,
            old_logps=old_logps,
            ref_logps=ref_logps,
        )
        self._check(logps, mask, old_logps, ref_logps)
        dtype = torch.float64 if logps.dtype == torch.float64 else torch.float32
        used = mask.bool()
        advantage = self._advantages(rewards_or_advantages, logps.shape[0]).to(dtype)[:, None]
        logps = torch.where(used, logps.to(dtype), 0)
        old = logps.detach() if old_logps is None else torch.where(used, old_logps.detach().to(dtype), 0)
        drawn = torch.exp(logps.detach() - old)
        cut = self._cut(drawn, advantage)
        # A ratio that overflows must not meet a factor of 0, in the loss or in its gradient: 0 * inf would be NaN.
        ratio = torch.exp(torch.where(cut | (advantage == 0), 0, logps - old))
        clipped = drawn.clamp(1 - self.epsilon, 1 + self.epsilon_high)
        token_loss = -torch.where(cut, clipped, ratio) * advantage
        kl = torch.zeros_like(token_loss)
        if self.beta > 0 and ref_logps is not None:
            drift = torch.where(used, ref_logps.detach().to(dtype), 0) - logps
            kl = torch.exp(drift) - drift - 1
            token_loss = token_loss + self.beta * kl
        self._record(drawn, kl.detach(), cut, used)
        lengths = self.max_completion_length or used.sum(dim=1).clamp(min=1)
        return (torch.where(used, token_loss, 0).sum(dim=1) / lengths).mean()

    def from_hidden(
        self,
        hidden: Tensor,
        weight: Tensor,
        completion_ids: Tensor,
        rewards_or_advantages: Tensor,
        mask: Tensor,
        old_logps: Tensor | None = None,
        ref_logps: Tensor | None = None,
        *,
        temperature: float = 1.0,
        trainable_rows: Tensor | None = None,
        row_values: Tensor | None = None,
    ) -> Tensor:
        """:meth:`forward` from the states before the tokens: the ``R x T x V`` logits are never held.

        ``metrics`` gain ``entropy``, the mean over the tokens of ``mask``, in nats.

        Args:
            hidden, weight, completion_ids, mask: as in :func:`completion_logprob`.
            rewards_or_advantages, old_logps, ref_logps: as in :meth:`forward`.
            temperature, trainable_rows, row_values: see :func:`elva.ops.linear_logprob`.

        Raises:
            ValueError, TypeError: shapes, dtypes or devices that do not fit, naming the argument.
        """
        tokens = completion_logprob(
            hidden,
            weight,
            completion_ids,
            mask,
            temperature=temperature,
            trainable_rows=trainable_rows,
            row_values=row_values,
        )
        loss = self(tokens.logprob, rewards_or_advantages, mask, old_logps, ref_logps)
        self.metrics["entropy"] = tokens.entropy.sum() / mask.sum().clamp(min=1)
        return loss

    def _advantages(self, rewards_or_advantages: Tensor, completions: int) -> Tensor:
        shape = list(rewards_or_advantages.shape)
        if len(shape) not in (1, 2) or rewards_or_advantages.numel() != completions:
            raise ValueError(
                f"rewards_or_advantages must be rewards [B, G] with B * G = {completions} or advantages "
                f"[{completions}], got {shape}"
            )
        if rewards_or_advantages.is_complex():
            raise TypeError(f"rewards_or_advantages must be real, got {rewards_or_advantages.dtype}")
        if len(shape) == 1:
            return rewards_or_advantages.detach()
        return group_advantage(rewards_or_advantages, scale_rewards=self.scale_rewards).flatten()

    def _cut(self, ratio: Tensor, advantage: Tensor) -> Tensor:
        """Where the clip is the smaller of the two terms: the token's gradient is 0 there."""
        below = (ratio < 1 - self.epsilon) & (advantage < 0)
        return below | ((ratio > 1 + self.epsilon_high) & (advantage > 0))

    def _record(self, ratio: Tensor, kl: Tensor, cut: Tensor, used: Tensor) -> None:
        tokens = used.sum().clamp(min=1)
        values = {"kl": kl, "clip_ratio": cut.to(ratio.dtype), "ratio_mean": ratio}
        self.metrics = {name: torch.where(used, value, 0).sum() / tokens for name, value in values.items()}

    def _check(self, logps: Tensor, mask: Tensor, old_logps: Tensor | None, ref_logps: Tensor | None) -> None:
        if logps.ndim != 2 or logps.shape[0] == 0:
            raise ValueError(f"logps must have shape [R, T] with R > 0, got {list(logps.shape)}")
        if self.beta > 0 and ref_logps is None:
            raise ValueError(
                f"ref_logps is needed for the KL penalty (beta={self.beta}); give it or set beta=0"
            )
        for name, tensor in (("mask", mask), ("old_logps", old_logps), ("ref_logps", ref_logps)):
            if tensor is not None and tensor.shape != logps.shape:
                raise ValueError(
                    f"{name} must have the shape of logps {list(logps.shape)}, got {list(tensor.shape)}"
                )
        for name, tensor in (("logps", logps), ("old_logps", old_logps), ("ref_logps", ref_logps)):
            if tensor is not None and not tensor.is_floating_point():
                raise TypeError(f"{name} must be floating point, got {tensor.dtype}")

    def extra_repr(self) -> str:
        return (
            f"beta={self.beta}, epsilon={self.epsilon}, epsilon_high={self.epsilon_high}, "
            f"scale_rewards={self.scale_rewards!r}, max_completion_length={self.max_completion_length}"
        )


def completion_logprob(
    hidden: Tensor,
    weight: Tensor,
    completion_ids: Tensor,
    mask: Tensor,
    *,
    temperature: float = 1.0,
    trainable_rows: Tensor | None = None,
    row_values: Tensor | None = None,
) -> LinearLogprob:
    """Log-probability and entropy ``[R, T]`` of the tokens of completions, 0 outside of ``mask``.

    Only the tokens of ``mask`` are scored, and the ``R x T x V`` logits are never held.

    Args:
        hidden: ``[R, T, H]``, the state before each token. Where ``mask`` is False it may hold anything.
        weight: ``[V, H]``, the language model's head, in hidden's dtype.
        completion_ids: ``[R, T]`` int64.
        mask: ``[R, T]`` bool (or 0/1), True = a token to score.
        temperature, trainable_rows, row_values: see :func:`elva.ops.linear_logprob`.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit, naming the argument.
    """
    for name, tensor in (("completion_ids", completion_ids), ("mask", mask)):
        if tensor.shape != hidden.shape[:-1]:
            raise ValueError(
                f"{name} must have shape {list(hidden.shape[:-1])}, as hidden has [R, T, H], "
                f"got {list(tensor.shape)}"
            )
    check_devices(
        hidden=hidden,
        weight=weight,
        completion_ids=completion_ids,
        mask=mask,
        trainable_rows=trainable_rows,
        row_values=row_values,
    )
    if completion_ids.dtype != torch.int64:
        raise TypeError(f"completion_ids must be int64, got {completion_ids.dtype}")
    used = mask.bool()
    tokens = linear_logprob(
        hidden[used],
        weight,
        completion_ids[used],
        temperature=temperature,
        trainable_rows=trainable_rows,
        row_values=row_values,
    )
    spread = (value.new_zeros(used.shape).masked_scatter(used, value) for value in tokens)
    return LinearLogprob(*spread)
