"""Back-ends are registered where they exist, and their absence is said once."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from elva.ops import library

OPERATORS = [
    "elva::infonce_reduce_",
    "elva::infonce_weigh_",
    "elva::rank_reward",
    "elva::rank_reward_backward",
]

# The library file is there or not, but does not load: as with another torch, or without a compiler.
WITHOUT_NATIVE = """
import warnings
import torch

def refuse(path):
    raise OSError("undefined symbol")

torch.ops.load_library = refuse
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import elva.ops
    print(len(caught))
    query = torch.randn(1, 1, 4)
    for _ in range(2):
        elva.ops.rank_reward(query, query, query[:, :, None])
for warning in caught:
    print(warning.category.__name__, warning.message)
"""


@pytest.mark.parametrize("operator", OPERATORS)
def test_native_kernels_are_registered(operator: str) -> None:
    if not library.NATIVE_LIBRARY.exists():
        pytest.skip("elva/_C.so was not built: run `make build` with a C++ compiler")
    assert library.native_available()
    assert torch._C._dispatch_has_kernel_for_dispatch_key(operator, "CPU")


@pytest.mark.parametrize("operator", OPERATORS)
def test_triton_kernels_are_registered(operator: str) -> None:
    registered = torch._C._dispatch_has_kernel_for_dispatch_key(operator, "CUDA")
    assert registered == library.triton_available()


def test_one_warning_at_the_first_use_without_native_kernels() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NATIVE],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=library.NATIVE_LIBRARY.parents[1],
    )
    assert done.returncode == 0, done.stderr
    at_import, *warnings = done.stdout.splitlines()
    assert at_import == "0"
    (warning,) = warnings
    assert warning.startswith("RuntimeWarning elva's C++ kernels are not in use")
    assert "slower" in warning


def test_no_warning_where_the_kernels_are_loaded(recwarn: pytest.WarningsRecorder) -> None:
    if not library.native_available():
        pytest.skip("elva/_C.so was not built: run `make build` with a C++ compiler")
    library.warn_without_native()
    assert len(recwarn) == 0
