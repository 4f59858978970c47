"""Counts how often Triton would compile: launches are recorded instead of run, so that no GPU is needed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch


@contextmanager
def recorded_specialisations(
    target: tuple[str, int | str, int] = ("cuda", 90, 32),
) -> Iterator[dict[str, set[str]]]:
    """For every kernel that is launched inside, the set of keys under which Triton would keep a compiled form.

    A key holds types, constants, and what Triton reads off values (an integer of 1 or a multiple of 16, an aligned
    pointer) unless the kernel says `do_not_specialize`. The kernels do not run: outputs stay as they were.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend
    from triton.runtime.jit import JITFunction, create_function_from_signature

    backend = make_backend(GPUTarget(*target))
    found: dict[str, set[str]] = defaultdict(set)

    def record(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        _, specialisation, others = bind(*arguments, **options)
        found[kernel.__name__].add(f"{specialisation} {sorted(others.items())}")

    with patch.object(JITFunction, "run", record):
        yield found
