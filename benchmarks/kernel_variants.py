"""How every Triton kernel is called, for compiling it without a GPU: argument types and constants.

Pointers are to float32, other arguments int32, unless said otherwise here.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

MODULES = ("infonce", "linear_logprob", "rank_reward", "rewards", "similarity_topk", "tiered_rank")
HALF = "*bf16"


@dataclass(frozen=True)
class Variant:
    """One specialisation of a kernel. ``spill_budget``: bytes of registers that may go to memory, a thread."""

    types: dict[str, str] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    warps: int = 4
    spill_budget: int = 0


_VECTORS = {
    "query_ptr": HALF,
    "positive_ptr": HALF,
    "negatives_ptr": HALF,
    "candidates_ptr": HALF,
    "vectors_ptr": HALF,
}
_REWARD_SCALARS = dict.fromkeys(("delta", "gamma", "alpha", "epsilon", "inverse_log_base"), "fp32")
_REWARD = Variant(
    {"mask_ptr": "*u8", "rank_ptr": "*i64", **_REWARD_SCALARS},
    {"HAS_MASK": True, "NORMALIZE": True, "CLAMP": True, "BLOCK": 64},
)
_TIERS = {"rank_ptr": "*i64", "tier_ptr": "*i64", "mask_ptr": "*u8", "ceiling": "fp32", "scale": "fp32"}

_CUT = {
    "labels_ptr": "*i64",
    "mask_ptr": "*u8",
    "excluded_ptr": "*i32",
    "key_codes_ptr": "*i32",
}

VARIANTS: dict[str, Variant] = {
    "advance_kernel": Variant(
        {"targets_ptr": "*i64", "probabilities_ptr": HALF, "scale": "fp32"}, {"BLOCK": 1024}
    ),
    "candidate_gradients_kernel": Variant(
        {**_VECTORS, "grad_ptr": HALF}, {"ALIGNED": True, "BLOCK_R": 8, "BLOCK_D": 128}
    ),
    "infonce_columns_kernel": Variant({}, {"BLOCK_R": 32, "BLOCK_C": 64}),
    "infonce_rows_kernel": Variant(_CUT, {"HAS_MASK": True, "HAS_IDS": True, "REDUCE": True, "BLOCK": 1024}),
    "infonce_weigh_kernel": Variant(
        {"out_ptr": HALF, "labels_ptr": "*i64"}, {"HAS_COLUMNS": True, "BLOCK": 1024}, warps=8
    ),
    "inverse_norms_kernel": Variant(
        {**_VECTORS, "mask_ptr": "*u8"}, {"HAS_MASK": True, "ALIGNED": True, "BLOCK_R": 16, "BLOCK_D": 256}
    ),
    "query_gradients_kernel": Variant(
        {**_VECTORS, "grad_ptr": HALF}, {"ALIGNED": True, "BLOCK_C": 16, "BLOCK_D": 256}
    ),
    "similarities_kernel": Variant(
        {**_VECTORS, "mask_ptr": "*u8"}, {"HAS_MASK": True, "ALIGNED": True, "BLOCK_C": 16, "BLOCK_D": 256}
    ),
    "replace_kernel": Variant({"rows_ptr": "*i64", "matrix_ptr": HALF}),
    "rewards_kernel": Variant(
        _REWARD.types,
        {**_REWARD.constants, "GROUPED": True, "SCALE": True, "BLOCK_G": 8},
        spill_budget=16,  # what the loop over rollouts keeps besides; without it, nothing
    ),
    "weights_kernel": _REWARD,
    "merge_kernel": Variant(
        {"indices_ptr": "*i64", "exclude_ptr": "*i64"},
        {"COSINE": True, "HAS_CEILING": True, "K": 128, "CHUNK": 1024},
        warps=8,
    ),
    "ranks_kernel": Variant(_TIERS, {"HAS_MASK": True, "HAS_EDGES": False, "BLOCK": 64}),
    "logsumexp_kernel": Variant(_TIERS, {"BLOCK": 256}),
    "similarity_gradients_kernel": Variant(_TIERS, {"BLOCK": 256}),
}


def kernels() -> dict[str, Any]:
    """Every kernel of ``kernels/triton`` by name."""
    found: dict[str, Any] = {}
    for module in MODULES:
        members = vars(importlib.import_module(f"elva.kernels.{module}"))
        found |= {name: kernel for name, kernel in members.items() if name.endswith("_kernel")}
    return found


def signature(kernel: Any, variant: Variant) -> dict[str, str]:
    """Triton's type of every argument."""
    types = {}
    for name in kernel.arg_names:
        if name in variant.constants:
            types[name] = "constexpr"
        else:
            types[name] = variant.types.get(name, "*fp32" if name.endswith("_ptr") else "i32")
    return types
