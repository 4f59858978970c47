from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from elva.cli.doctor import run_checks
from elva.cli.main import app


def test_every_operator_is_right_here():
    checks = run_checks()
    assert {check.operator for check in checks} == {
        "infonce",
        "linear_logprob",
        "rank_reward",
        "similarity_topk",
        "tiered_rank",
    }
    assert all(check.passes for check in checks)


def test_it_says_what_is_missing_and_fails_on_a_wrong_operator(monkeypatch: pytest.MonkeyPatch):
    good = CliRunner().invoke(app, ["doctor"])
    assert good.exit_code == 0
    assert "torch" in good.output and torch.__version__ in good.output
    assert "similarity_topk" in good.output

    from elva import ops

    monkeypatch.setattr(ops, "infonce", lambda q, k: ops.infonce_reference(q, k) + 1)
    bad = CliRunner().invoke(app, ["doctor"])
    assert bad.exit_code == 1
    assert "wrong" in bad.output
