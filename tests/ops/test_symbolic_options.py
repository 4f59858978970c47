"""torch.compile may make a symbol of any number that a call gives: every option of every operator stays traceable."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from elva.ops.table import OPERATORS

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "infonce": [{"temperature": 0.5}, {"temperature": 0.7}],
    "linear_logprob": [{"temperature": 0.5}, {"temperature": 0.7}],
    "rank_reward": [
        {"alpha": 0.1, "epsilon": 0.2, "delta": 0.3, "gamma": 0.4, "log_base": 2.5},
        {"alpha": 0.2, "epsilon": 0.3, "delta": 0.4, "gamma": 0.5, "log_base": 3.5},
    ],
    "shared_prefix_attention": [{"scale": 0.3}, {"scale": 0.4}],
    "similarity_topk": [{"k": 3, "ceiling": 0.3}, {"k": 4, "ceiling": 0.4}],
    "tiered_rank": [
        {"temperature": 0.1, "num_tiers": 3, "false_negative_threshold": 0.3},
        {"temperature": 0.2, "num_tiers": 4, "false_negative_threshold": 0.4},
        {"temperature": 0.3, "tier_edges": (0.5, 0.2)},
    ],
}


def test_every_operator_is_here() -> None:
    assert set(OPTIONS) == set(OPERATORS)


@pytest.mark.parametrize("name", OPTIONS)
def test_symbolic_options_compile_into_one_graph(name: str) -> None:
    operator = OPERATORS[name]
    arguments = operator.example(torch.Generator().manual_seed(0))
    compiled = torch.compile(operator.function, fullgraph=True, dynamic=True, backend="eager")
    for options in OPTIONS[name]:
        found = operator.outputs(compiled(**{**arguments, **options}))
        expected = operator.outputs(operator.function(**{**arguments, **options}))
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value)
