"""The worked examples in the docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
import sys

import pytest
import torch

MODULES = [
    "losses.elva",
    "losses.grpo",
    "losses.infonce",
    "losses.rewards",
    "losses.tiered_rank",
    "ops.infonce",
    "ops.linear_logprob",
    "ops.similarity_topk",
    "ops.tiered_rank",
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    importlib.import_module(f"elva.{name}")
    # elva.ops.infonce names the function as an attribute; the module itself is only in sys.modules.
    result = doctest.testmod(sys.modules[f"elva.{name}"], extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
