from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from elva import ops
from elva.cli.doctor import DTYPES, check_operator, run_checks
from elva.cli.main import app
from elva.ops.table import OPERATORS


def test_every_operator_is_right_here():
    checks = run_checks()
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    expected = {
        (operator, device, dtype)
        for operator in (
            "infonce",
            "linear_logprob",
            "rank_reward",
            "shared_prefix_attention",
            "similarity_topk",
            "tiered_rank",
        )
        for device in devices
        for dtype in DTYPES[device]
    }
    assert {(check.operator, check.device, check.dtype) for check in checks} == expected
    assert [check for check in checks if not check.accuracy.passes] == []


def test_it_says_what_is_missing_and_fails_on_a_wrong_operator(monkeypatch: pytest.MonkeyPatch):
    good = CliRunner().invoke(app, ["doctor"])
    assert good.exit_code == 0
    assert "torch" in good.output and torch.__version__ in good.output
    assert "similarity_topk" in good.output

    monkeypatch.setattr(ops, "infonce", lambda query, keys: ops.infonce_reference(query, keys) + 1)
    bad = CliRunner().invoke(app, ["doctor"])
    assert bad.exit_code == 1
    assert "wrong" in bad.output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name, operator in OPERATORS.items() if operator.differentiable])
def test_a_gradient_that_is_one_percent_wrong_is_seen(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype
):
    operator = OPERATORS[name]
    passes = type(operator).passes

    def wrong(self, function, arguments):
        found = passes(self, function, arguments)
        if function is operator.function:
            gradient = f"gradient of {operator.differentiable[0]}"
            found[gradient] = found[gradient] * 1.01
        return found

    assert check_operator(operator, "cpu", dtype).accuracy.passes
    monkeypatch.setattr(type(operator), "passes", wrong)
    check = check_operator(operator, "cpu", dtype)
    assert not check.accuracy.passes
    assert "gradient of" in check.accuracy.of
