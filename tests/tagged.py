"""A device that is not there: tensors that carry its tag, say that they are on it, and refuse to meet untagged ones.

What would fail on the first GPU for a tensor left on the CPU fails here, on the CPU:

    with tagged_device():
        model = tagged_module(model)             # as model.to("cuda")
        x = torch.randn(3, device="cuda")        # tagged
        x + torch.ones(3)                        # RuntimeError: Expected all tensors to be on the same device

Only what Python calls is watched: the inside of an operator, and of a backward, runs on the CPU as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("cuda", 0)
HERE = torch.device("cpu")


class Tagged(torch.Tensor):
    """A CPU tensor that counts as one of `DEVICE`."""


Generator = torch.Generator


def _is_tagged(value: Any) -> bool:
    return isinstance(value, Tagged)


def _named_device(value: Any) -> torch.device | None:
    """The device that an argument names: "cuda", torch.device("cpu"), …"""
    if isinstance(value, torch.device):
        return value
    if isinstance(value, str) and value.split(":")[0] in ("cuda", "cpu"):
        return torch.device(value)
    return None


def _tag(result: Any) -> Any:
    # Another alias of a tensor that is tagged already would be no leaf any more.
    plain = lambda x: isinstance(x, torch.Tensor) and not _is_tagged(x)  # noqa: E731
    return tree_map(lambda x: x.as_subclass(Tagged) if plain(x) else x, result)


def _untag(result: Any) -> Any:
    return tree_map(lambda x: x.as_subclass(torch.Tensor) if _is_tagged(x) else x, result)


MOVES = (torch.Tensor.to, torch.Tensor.cuda, torch.Tensor.cpu)
# A CUDA tensor takes numbers, and indices, from the CPU; and a copy is what moves.
MEET = (torch.Tensor.copy_, torch.Tensor.__getitem__, torch.Tensor.__setitem__, torch.Tensor.set_)


class _TaggedDevice(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.generators: list[Generator] = []

    def generator(self) -> type[Generator]:
        """What stands in the place of torch.Generator."""

        class Made(Generator):
            def __new__(cls, device: Any = HERE) -> Generator:
                made = Generator()
                if torch.device(device).type == "cuda":
                    known.append(made)
                return made

        known = self.generators
        return Made

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.device:
            return function(*args, **kwargs)
        if function == torch.Tensor.device.__get__:
            return DEVICE if _is_tagged(args[0]) else function(*args)
        if function == torch.Tensor.is_cuda.__get__:
            return _is_tagged(args[0])
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        tagged = any(map(_is_tagged, tensors))
        self._check(function, tensors, tagged, kwargs)
        target = self._target(function, args, kwargs)
        if target is not None:
            args = tuple(HERE if _named_device(x) is not None else x for x in args)
            kwargs = {name: HERE if _named_device(x) is not None else x for name, x in kwargs.items()}
            if function is torch.Tensor.cuda:
                function, args = torch.Tensor.clone, args[:1]
            tagged = target.type == "cuda"
        result = function(*args, **kwargs)
        if function in (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.item):
            return result
        return _tag(result) if tagged else _untag(result)

    def _target(self, function: Any, args: Any, kwargs: Any) -> torch.device | None:
        """Where the result is to be; None: where the arguments are."""
        if function is torch.Tensor.cpu:
            return HERE
        if function is torch.Tensor.cuda:
            return DEVICE
        named = [_named_device(x) for x in (*args, *kwargs.values())]
        if function is torch.Tensor.to:
            others = [DEVICE if _is_tagged(x) else HERE for x in args[1:] if isinstance(x, torch.Tensor)]
            named += others
        return next((device for device in named if device is not None), None)

    def _check(self, function: Any, tensors: list[torch.Tensor], tagged: bool, kwargs: Any) -> None:
        if not tagged or function in MOVES or function in MEET:
            return
        strangers = [x for x in tensors if not _is_tagged(x) and torch.Tensor.dim(x) > 0]
        if strangers:
            raise RuntimeError(
                f"Expected all tensors to be on the same device: {getattr(function, '__name__', function)} was given "
                f"tensors on {DEVICE} and one of shape {list(strangers[0].shape)} on the CPU"
            )
        generator = kwargs.get("generator")
        known = [made._cdata for made in self.generators]
        if isinstance(generator, Generator) and generator._cdata not in known:
            raise RuntimeError(f"Expected a {DEVICE} device type for generator but found cpu")


@contextmanager
def tagged_device() -> Iterator[torch.device]:
    """Inside, `DEVICE` is there."""
    mode = _TaggedDevice()
    with patch.object(torch, "Generator", mode.generator()), mode:
        yield DEVICE


def tagged_module(module: nn.Module) -> nn.Module:
    """`module` with tagged parameters and buffers, in place; ties between parameters stay."""
    known: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in known:
                tagged = nn.Parameter(parameter.detach().as_subclass(Tagged), parameter.requires_grad)
                known[id(parameter)] = known[id(tagged)] = tagged
            part._parameters[name] = known[id(parameter)]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.as_subclass(Tagged)
    return module
