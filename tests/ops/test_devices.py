"""A tensor on another device is named in an error; mixed with the others it would make results of memory as it was."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from elva import losses, ops
from elva.ops import PrefixLayout

INDICES = torch.arange(4)
ROWS, TABLE = torch.eye(4), torch.ones(4, 4)
MASK = torch.ones(4, 4, dtype=torch.bool)
NEGATIVES = torch.ones(4, 4, 4)
PAIRS = {"query_ids": INDICES, "key_ids": INDICES}
TRIPLE = {"query": ROWS, "positive": ROWS, "negatives": NEGATIVES, "mask": MASK}
HEAD = {"trainable_rows": INDICES[:1], "row_values": ROWS[:1]}

CASES: dict[str, dict[str, Any]] = {
    "infonce": {
        **{"query": ROWS, "keys": ROWS, "labels": INDICES, "temperature": torch.tensor(1.0), "mask": MASK},
        **PAIRS,
        "positive_pairs": torch.zeros(1, 2, dtype=torch.int64),
    },
    "linear_logprob": {"hidden": ROWS, "weight": ROWS, "targets": INDICES, **HEAD},
    "rank_reward": {
        "query": TABLE[None],
        "positive": TABLE[None],
        "negatives": NEGATIVES[None],
        "mask": MASK[None],
    },
    "shared_prefix_attention": {
        **{name: torch.ones(4, 1, 4) for name in ("query", "key", "value")},
        "layout": PrefixLayout((2,), (2,), 1),
    },
    "tiered_rank": {"similarity": ROWS, "between": ROWS, "mask": MASK},
    "InfoNCELoss": {
        **{"query": ROWS, "keys": ROWS, "labels": INDICES, "negatives": ROWS, "mask": MASK},
        **PAIRS,
    },
    "ELVALoss": TRIPLE,
    "TieredRankingLoss": TRIPLE,
    "GRPOLoss": {
        **{"logps": TABLE, "rewards_or_advantages": TABLE[:1], "mask": MASK},
        **{"old_logps": TABLE, "ref_logps": TABLE},
    },
    "GRPOLoss.from_hidden": {
        **{"hidden": NEGATIVES, "weight": ROWS, "completion_ids": INDICES.expand(4, 4)},
        **{"rewards_or_advantages": TABLE[:1], "mask": MASK, "old_logps": TABLE, "ref_logps": TABLE},
        **HEAD,
    },
    "elva_reward": TRIPLE,
    "margin_reward": TRIPLE,
    "ranking_reward": TRIPLE,
}
ANYWHERE = {"similarity_topk", "CachedInfoNCELoss", "group_advantage"}
"""Keys come to the query, whatever encodes is the caller's, there is one tensor."""
STRAYS = [
    (name, argument)
    for name, arguments in CASES.items()
    for argument in [key for key, value in arguments.items() if isinstance(value, Tensor)][1:]
]


def function(name: str) -> Callable[..., Any]:
    holder, _, method = name.partition(".")
    found: Any = getattr(ops if hasattr(ops, holder) else losses, holder)
    found = found() if inspect.isclass(found) else found
    found = getattr(found, method) if method else found
    return found.forward if isinstance(found, torch.nn.Module) else found


def test_every_operator_and_loss_is_among_the_cases_with_all_its_tensors() -> None:
    operators = {name.removesuffix("_reference") for name in vars(ops) if name.endswith("_reference")}
    assert {name.partition(".")[0] for name in CASES} | ANYWHERE == operators | set(losses.__all__)
    for name, arguments in CASES.items():
        parameters = inspect.signature(function(name)).parameters.values()
        assert {p.name for p in parameters if "Tensor" in str(p.annotation)} <= set(arguments)
        function(name)(**arguments)


@pytest.mark.parametrize(("name", "argument"), STRAYS, ids=[".".join(pair) for pair in STRAYS])
def test_a_tensor_on_another_device_is_named_with_both(name: str, argument: str) -> None:
    arguments = {**CASES[name], argument: CASES[name][argument].to("meta")}
    first = next(iter(arguments))
    if name == "GRPOLoss.from_hidden" and argument in ("rewards_or_advantages", "old_logps", "ref_logps"):
        first = "logps"
    with pytest.raises(ValueError, match=f"^{argument} is on meta; expected the device of {first}, cpu$"):
        function(name)(**arguments)
    if hasattr(ops, f"{name}_reference"):
        with pytest.raises(ValueError, match=f"^{argument} is on meta"):
            function(f"{name}_reference")(**arguments)
