"""The dispatcher library `elva`: where every operator's schema and back-ends are registered.

An operator calls `define` once and `implement` per back-end. The C++ kernels for CPUs register themselves when
`elva/_C.so` is loaded, which happens when this module is imported; where that file is missing or does not load,
the operators' PyTorch implementations answer and say so once, at their first use on a CPU.

An operator's precision is that of its inputs: autocast, which would round the products inside of it to half precision,
is off for every back-end, forward and backward (docs/architecture.md, "Mixed precision").

No operator has a forward-mode derivative, which PyTorch would take for 0: `register_autograd` makes it an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.autograd import forward_ad

F = TypeVar("F", bound=Callable[..., Any])

NAMESPACE = "elva"
AUTOCAST = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}
NATIVE_LIBRARY = Path(__file__).resolve().parents[1] / "_C.so"


class _Library(torch.library.Library):
    """The library, in which no derivative is taken of tensors with a tangent."""

    def impl(
        self, op_name: Any, fn: Callable[..., Any], dispatch_key: str = "", *args: Any, **options: Any
    ) -> None:
        kernel = _without_tangents(op_name, fn) if dispatch_key == "Autograd" else fn
        super().impl(op_name, kernel, dispatch_key, *args, **options)


def _without_tangents(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(kernel)
    def check_and_go_on(keyset: Any, *arguments: Any, **options: Any) -> Any:
        refuse_tangents(f"{NAMESPACE}::{name}", *arguments, *options.values())
        return kernel(keyset, *arguments, **options)

    return check_and_go_on


_library = _Library(NAMESPACE, "FRAGMENT")
_warned = False


def define(schema: str) -> None:
    """Add an operator, e.g. ``"rank_reward(Tensor query, ...) -> Tensor"``, to the namespace `elva`."""
    _library.define(schema, tags=torch.Tag.pt2_compliant_tag)
    name = schema.partition("(")[0]
    for device, key in AUTOCAST.items():
        _library.impl(name, _outside_of_autocast(name, device), key)


def refuse_tangents(name: str, *values: Any) -> None:
    """Make a forward-mode derivative (`torch.autograd.forward_ad`, `torch.func.jvp`) through `values` an error.

    Raises:
        NotImplementedError: a tensor among `values` has a tangent.
    """
    for value in values:
        if isinstance(value, torch.Tensor) and forward_ad.unpack_dual(value).tangent is not None:
            raise NotImplementedError(
                f"{name} has no forward-mode derivative: use reverse mode, or for an operator its _reference"
            )


def _outside_of_autocast(name: str, device: str) -> Callable[..., Any]:
    def call_again(*arguments: Any, **options: Any) -> Any:
        with torch.autocast(device, enabled=False):
            return getattr(torch.ops.elva, name).default(*arguments, **options)

    return call_again


def without_autocast(function: F) -> F:
    """`function`, which is no operator itself, with autocast off on the device of its first tensor."""

    @wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        tensors = (value for value in (*arguments, *options.values()) if isinstance(value, torch.Tensor))
        first = next(tensors, None)
        if first is None:
            return function(*arguments, **options)
        with torch.autocast(first.device.type, enabled=False):
            return function(*arguments, **options)

    return run  # type: ignore[return-value]


def in_autocast_dtype(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """torch.Tensors of one device in the dtype that autocast gives to products there; as they are where it is off."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors)


def implement(
    name: str, function: Callable[..., Any], dispatch_key: str = "CompositeExplicitAutograd"
) -> None:
    """Register `function` as the implementation of ``elva::name`` for a dispatch key.

    The default key is the fallback: it answers on every device that has no implementation of its own.
    """
    _library.impl(name, function, dispatch_key)


def register_fake(name: str, function: Callable[..., Any]) -> None:
    """Register the shape function of ``elva::name``, so that `torch.compile` keeps it in the graph."""
    torch.library.register_fake(f"{NAMESPACE}::{name}", function, lib=_library)


def register_autograd(name: str, backward: Callable[..., Any], setup_context: Callable[..., Any]) -> None:
    """Register the derivative of ``elva::name``."""
    torch.library.register_autograd(
        f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=_library
    )


def refuse_second_derivative(name: str) -> None:
    """Make a derivative of the gradient operator ``elva::name`` an error; PyTorch would take it for 0."""

    def refuse(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(
            f"elva::{name} has no derivative of its own: use the _reference function for second derivatives"
        )

    register_autograd(name, refuse, lambda ctx, inputs, output: None)


def native_available() -> bool:
    """True where the C++ kernels for CPUs were loaded."""
    return _native_problem is None


def triton_available() -> bool:
    """True where Triton is installed. Does not import it: only a first call on a GPU does."""
    return find_spec("triton") is not None


def warn_without_native() -> None:
    """Say once per process what is lost without the C++ kernels; silent where they are loaded."""
    global _warned
    if _warned or native_available():
        return
    _warned = True
    warnings.warn(
        f"elva's C++ kernels are not in use ({_native_problem}). Results are the same, but elva's operators run in "
        "plain PyTorch on CPUs: slower, and with every query-candidate product in memory. To build the kernels, "
        "reinstall elva with a C++ compiler and CMake at hand: pip install --no-build-isolation .",
        RuntimeWarning,
        stacklevel=2,
    )


def _load_native() -> str | None:
    """Load the C++ kernels; returns why that was impossible, or None."""
    if not NATIVE_LIBRARY.exists():
        return f"{NATIVE_LIBRARY.name} was not built"
    try:
        torch.ops.load_library(str(NATIVE_LIBRARY))
    except OSError as error:
        return f"{NATIVE_LIBRARY.name} does not load: {error}"
    return None


_native_problem = _load_native()
