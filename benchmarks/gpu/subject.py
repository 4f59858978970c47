"""An operator under check: how its arguments are drawn, and the cases that every operator has."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor

from benchmarks.gpu.cases import Case, Setting
from elva.ops.accuracy import Accuracy, least_accurate
from elva.ops.table import OPERATORS, Operator, converted

DTYPES = (torch.bfloat16, torch.float32, torch.float16)
"""The one that matters most first."""
Arguments = dict[str, Any]
Shape = tuple[int, ...]
Results = dict[str, Tensor]
Run = Callable[[], dict[str, Any]]
Change = Callable[[Arguments], Arguments]
WAIT_CYCLES = 40_000_000
"""Of a device's clock, about 20 ms: a kernel on a wrong stream has read its inputs long before."""


@dataclass(frozen=True)
class Subject:
    """``draw(shape, generator)`` gives float32 arguments on the generator's device; ``shapes`` are those of the ragged
    cases, the first that of all others; ``leaves`` need a gradient (None: all that may), ``graded`` results have one
    (likewise); ``plain`` is plain PyTorch (by default the operator's reference). ``aligned_only``: no views that begin
    between two addresses that a kernel can load from; ``follows_autocast``: inputs are taken in its dtype;
    ``expanded`` arguments may repeat one row without holding it often."""

    name: str
    draw: Callable[[Shape, torch.Generator], Arguments]
    shapes: Sequence[Shape]
    empty: Sequence[Shape]
    leaves: Sequence[str] | None = None
    graded: tuple[str, ...] | None = None
    plain: Callable[..., Any] | None = None
    aligned_only: bool = False
    follows_autocast: bool = False
    expanded: Sequence[str] = field(default_factory=tuple)

    @property
    def operator(self) -> Operator:
        operator = OPERATORS[self.name]
        return operator if self.graded is None else replace(operator, graded=self.graded)

    def arguments(self, shape: Shape, device: str, dtype: torch.dtype) -> Arguments:
        """Fresh numbers, the same for every call, made on the device."""
        generator = torch.Generator(device=device).manual_seed(sum(shape))
        return converted(self.draw(shape, generator), device, dtype)

    def passes(
        self, function: Callable[..., Any], arguments: Arguments, backward: bool = True, summed: bool = False
    ) -> Results:
        return self.operator.passes(
            function, arguments, leaves=self.leaves if backward else (), summed=summed
        )

    def judge(
        self, found: Results, arguments: Arguments, backward: bool = True, summed: bool = False
    ) -> Accuracy:
        """Against float64, with the error of plain PyTorch beside it."""
        plain = self.passes(self.plain or self.operator.reference, arguments, backward, summed)
        doubled = converted(arguments, device_of(arguments), torch.float64)
        exact = self.passes(self.operator.reference, doubled, backward, summed)
        return least_accurate(found, plain, exact)

    def check(self, arguments: Arguments, backward: bool = True) -> dict[str, Any]:
        """The line of a case: error, bound and of what."""
        return line(self.judge(self.passes(self.operator.function, arguments, backward), arguments, backward))

    def check_part(
        self, arguments: Arguments, part: Change, pick: Callable[[Tensor], Tensor]
    ) -> dict[str, Any]:
        """Run on all arguments, judge a part by itself: ``part`` of the arguments belongs to ``pick`` of the results.

        Empties `arguments`, which may be most of the memory.
        """
        results = self.passes(self.operator.function, arguments, summed=True)
        found = {name: pick(value).clone() for name, value in results.items()}
        kept = {
            name: value.clone() if isinstance(value, Tensor) else value
            for name, value in part(arguments).items()
        }
        results.clear()
        arguments.clear()
        return line(self.judge(found, kept, summed=True))

    def at(
        self,
        device: str,
        dtype: torch.dtype,
        *,
        shape: Shape | None = None,
        change: Change | None = None,
        backward: bool = True,
    ) -> dict[str, Any]:
        """A check of a shape (default: the first) after ``change``, which gives arguments to replace or add."""
        arguments = self.arguments(shape or self.shapes[0], device, dtype)
        if change is not None:
            arguments = {**arguments, **change(arguments)}
        return self.check(arguments, backward)

    def case(self, name: str, dtype: torch.dtype, run: Run) -> Case:
        return Case({"operator": self.name, "case": name, "dtype": dtype_name(dtype)}, run)


def line(accuracy: Accuracy) -> dict[str, Any]:
    return {"error": accuracy.error, "bound": accuracy.bound, "of": accuracy.of}


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def device_of(arguments: Arguments) -> torch.device:
    """Where the first tensor lies."""
    return next(value.device for value in arguments.values() if isinstance(value, Tensor))


Special = Callable[[torch.dtype], Iterator[tuple[str, Run]]]


def all_cases(subject: Subject, setting: Setting, special: Special) -> Iterator[Case]:
    """The plain shape in every dtype, then the operator's own cases, then shapes, strides, streams and devices.

    ``special(dtype)`` yields names and runs of the operator's own cases.
    """
    both = "forward and backward" if subject.operator.differentiable else "forward"

    def check(name: str, dtype: torch.dtype, **how: Any) -> Case:
        return subject.case(name, dtype, partial(subject.at, setting.device, dtype, **how))

    for dtype in DTYPES:
        yield check(both, dtype)
    if subject.operator.differentiable:
        for dtype in DTYPES:
            yield check("forward without a gradient", dtype, backward=False)
    for dtype in DTYPES:
        for name, run in special(dtype):
            yield subject.case(name, dtype, run)
    for dtype in DTYPES:
        for kind, shapes in (("ragged", subject.shapes[1:]), ("empty", subject.empty)):
            for shape in shapes:
                yield check(f"{kind}, {' x '.join(map(str, shape))}", dtype, shape=shape)
        for name, change in strides(subject).items():
            yield check(f"strides, {name}", dtype, change=change)
    others: dict[str, tuple[torch.dtype, Callable[[Subject, Setting], dict[str, Any]]]] = {
        "autocast": (torch.float32, under_autocast),
        "a second stream": (torch.bfloat16, on_a_second_stream),
        "a second device": (torch.bfloat16, on_a_second_device),
    }
    for name, (dtype, function) in others.items():
        yield subject.case(name, dtype, partial(function, subject, setting))


def strides(subject: Subject) -> dict[str, Change]:
    """Ways to lay the same numbers out in memory."""

    def every(change: Callable[[Tensor], Tensor]) -> Change:
        def apply(arguments: Arguments) -> Arguments:
            changed = {
                name: change(value)
                for name, value in arguments.items()
                if isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= 2
            }
            return {**arguments, **changed}

        return apply

    def expand(arguments: Arguments) -> Arguments:
        changed = {name: arguments[name][:1].expand_as(arguments[name]) for name in subject.expanded}
        return {**arguments, **changed}

    ways = {
        "transposed": every(lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2)),
        "every second column": every(lambda x: x.repeat_interleave(2, dim=-1)[..., ::2]),
    }
    if not subject.aligned_only:
        ways["off by one element"] = every(lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x))
    if subject.expanded:
        ways["expanded"] = expand
    return ways


def under_autocast(subject: Subject, setting: Setting) -> dict[str, Any]:
    """An operator's precision is that of its inputs, whatever autocast would make of them; or it is autocast's."""
    arguments = subject.arguments(subject.shapes[0], setting.device, torch.float32)
    function = subject.operator.function

    def inside(**given: Any) -> Any:
        with torch.autocast(setting.device, torch.bfloat16):
            return function(**given)

    found = subject.passes(inside, arguments)
    if subject.follows_autocast:
        found = converted(found, setting.device, torch.bfloat16)
        arguments = converted(arguments, setting.device, torch.bfloat16)
    return line(subject.judge(found, arguments))


def on_a_second_stream(subject: Subject, setting: Setting) -> dict[str, Any]:
    """Inputs arrive late on a stream of their own, and the operator runs there: whoever does not wait reads NaN."""
    if setting.device != "cuda":
        raise SkipTest("needs a GPU")
    arguments = subject.arguments(subject.shapes[0], setting.device, torch.bfloat16)
    late = {
        name: torch.full_like(value, torch.nan if value.is_floating_point() else 0)
        if isinstance(value, Tensor)
        else value
        for name, value in arguments.items()
    }
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(WAIT_CYCLES)
        for name, value in arguments.items():
            if isinstance(value, Tensor):
                late[name].copy_(value)
        found = subject.passes(subject.operator.function, late)
    torch.cuda.current_stream().wait_stream(stream)
    return line(subject.judge(found, arguments))


def on_a_second_device(subject: Subject, setting: Setting) -> dict[str, Any]:
    """Tensors on a device that is not the current one."""
    if setting.device != "cuda" or torch.cuda.device_count() < 2:
        raise SkipTest("needs a second GPU")
    return subject.at("cuda:1", torch.bfloat16)


@contextmanager
def memory(setting: Setting, gigabytes: float) -> Iterator[None]:
    """Much of the device's memory, for one case at a time; skips where less is free."""
    if setting.device != "cuda":
        raise SkipTest("needs a GPU: on a CPU it takes minutes")
    with Path(setting.lock).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # let go when the file is closed, however that happens
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0] / 1e9
        if free < 1.1 * gigabytes:
            raise SkipTest(f"needs {1.1 * gigabytes:.0f} GB, and {free:.0f} GB are free")
        try:
            yield
        finally:
            torch.cuda.empty_cache()
