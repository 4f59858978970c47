"""Other libraries' operators, called as their own documentation has it; a rival that cannot run here says why.

Each function raises the standard library's SkipTest with "<module> is not installed" or "needs a GPU", which pytest
takes for a skip; the saved run keeps it and the report prints it.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any
from unittest import SkipTest

from torch import Tensor
from torch.nn import functional as F


def require(module: str, *, gpu: bool, device: str) -> None:
    """Skip unless the rival's package is there and, where it has nothing else, a GPU."""
    if find_spec(module) is None:
        raise SkipTest(f"{module} is not installed")
    if gpu and device != "cuda":
        raise SkipTest("needs a GPU")


def inf_cl(query: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Inf-CL's tiled loss of every query, for unit vectors whose width is a multiple of 256 (or 128, … 16)."""
    require("inf_cl", gpu=True, device=query.device.type)
    from inf_cl import cal_flash_loss

    head = next(size for size in (256, 128, 64, 32, 16) if query.shape[1] % size == 0)
    return cal_flash_loss(query, keys, scale=1 / temperature, head_dim=head)


def cut_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Apple's log-probabilities; on CPUs the form that it has for them."""
    require("cut_cross_entropy", gpu=False, device=hidden.device.type)
    from cut_cross_entropy import linear_cross_entropy

    form = "cce" if hidden.is_cuda else "torch_compile"
    return -linear_cross_entropy(hidden, weight, targets, reduction="none", impl=form)


def liger_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Liger's fused linear cross-entropy, as log-probabilities."""
    require("liger_kernel", gpu=True, device=hidden.device.type)
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return -LigerFusedLinearCrossEntropyLoss(reduction="none")(weight, hidden, targets)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """PyTorch's own fused linear cross-entropy, as log-probabilities."""
    if not hasattr(F, "linear_cross_entropy"):
        raise SkipTest("this torch has no F.linear_cross_entropy")
    return -F.linear_cross_entropy(hidden, weight, targets, reduction="none")


def liger_grpo(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    advantages: Tensor,
    mask: Tensor,
    ref_logps: Tensor,
    beta: float,
) -> Tensor:
    """Liger's chunked GRPO loss, which is TRL's with `use_liger_kernel`; it runs on every device."""
    require("liger_kernel", gpu=False, device=hidden.device.type)
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    loss = LigerFusedLinearGRPOLoss(beta=beta, loss_type="grpo")
    return loss(hidden, weight, ids, mask, advantages, ref_per_token_logps=ref_logps)[0]


def sentence_transformers_cached(model: Any, pieces: int, temperature: float) -> Any:
    """sentence-transformers' GradCache loss over a model that returns its features."""
    require("sentence_transformers", gpu=False, device="cpu")
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    return CachedMultipleNegativesRankingLoss(model, scale=1 / temperature, mini_batch_size=pieces)
