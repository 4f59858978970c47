"""The pairs of Triton and NumPy on which the tests in Triton's interpreter are skipped."""

from __future__ import annotations

import pytest

from tests.ops.conftest import interpreter_fault


@pytest.mark.parametrize(
    ("triton", "numpy", "fails"),
    [
        ("3.6.0", "2.4.0", True),
        ("3.6.0", "2.5.2", True),
        ("3.6.0+git1", "2.10.1", True),
        ("3.6.0", "2.3.5", False),
        ("3.7.1", "2.5.2", False),
        ("3.10.0", "2.4.6", False),
        ("4.0.0", "3.0.0", False),
    ],
)
def test_pairs_that_fail_are_named(triton: str, numpy: str, fails: bool) -> None:
    reason = interpreter_fault(triton, numpy)
    assert (reason is not None) is fails
    if reason is not None:
        assert triton in reason and numpy in reason
