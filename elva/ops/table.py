"""Every operator with a small example, for those who go through all of them: `elva doctor` and benchmarks.gpu."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from elva import ops
from elva.ops.shared_prefix_attention import PrefixLayout


@dataclass(frozen=True)
class Operator:
    """One operator.

    ``example(generator)`` draws small float32 arguments on the CPU, by name. ``differentiable`` names those that may
    receive a gradient (none: the operator has no derivative). ``outputs(result)`` are the results by name, ``graded``
    those that have a gradient.
    """

    name: str
    example: Callable[[torch.Generator], dict[str, Any]]
    differentiable: tuple[str, ...]
    outputs: Callable[[Any], dict[str, Tensor]]
    graded: tuple[str, ...] = ()

    @property
    def function(self) -> Callable[..., Any]:
        """The operator, looked up when it is asked for: what replaces it in a test is found too."""
        function: Callable[..., Any] = getattr(ops, self.name)
        return function

    @property
    def reference(self) -> Callable[..., Any]:
        reference: Callable[..., Any] = getattr(ops, f"{self.name}_reference")
        return reference

    def passes(
        self,
        function: Callable[..., Any],
        arguments: dict[str, Any],
        *,
        leaves: Sequence[str] | None = None,
        summed: bool = False,
    ) -> dict[str, Tensor]:
        """Results of one call by name, and ``"gradient of …"`` of every leaf.

        `leaves` names the arguments that need a gradient; by default all that may. The gradients are those of random
        weights times the graded outputs, weights that hang on the shapes alone; with `summed` of the plain sum.
        """
        wanted = self.differentiable if leaves is None else leaves
        given = {name: arguments[name] for name in wanted if isinstance(arguments.get(name), Tensor)}
        tracked = {name: value.detach().requires_grad_() for name, value in given.items()}
        with torch.set_grad_enabled(bool(tracked)):
            outputs = self.outputs(function(**{**arguments, **tracked}))
        found = {name: value.detach() for name, value in outputs.items()}
        if not tracked:
            return found
        weights = self.weights(found, summed)
        graded = {name: value for name, value in outputs.items() if name in weights and value.requires_grad}
        gradients = torch.autograd.grad(
            list(graded.values()),
            list(tracked.values()),
            [weights[name] for name in graded],
            allow_unused=True,
            materialize_grads=True,
        )
        for name, gradient in zip(tracked, gradients, strict=True):
            found[f"gradient of {name}"] = gradient.to_dense() if gradient.is_sparse else gradient
        return found

    def weights(self, results: dict[str, Tensor], summed: bool = False) -> dict[str, Tensor]:
        """The upstream gradients that `passes` takes, by the names of the graded outputs."""
        return {
            name: torch.ones_like(results[name]) if summed else _weights(results[name], place)
            for place, name in enumerate(self.graded)
        }


def converted(arguments: dict[str, Any], device: torch.device | str, dtype: torch.dtype) -> dict[str, Any]:
    """The arguments on a device, floating-point tensors in a dtype."""

    def convert(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(device, dtype if value.is_floating_point() else value.dtype)

    return {name: convert(value) for name, value in arguments.items()}


def _weights(value: Tensor, seed: int) -> Tensor:
    """Numbers that bfloat16 holds exactly, so that every dtype gets the same ones."""
    generator = torch.Generator(device=value.device).manual_seed(seed)
    drawn = torch.randn(value.shape, generator=generator, device=value.device)
    # −inf, as of an empty tier, has no slope.
    return torch.where(value.isfinite(), drawn.bfloat16().to(value.dtype), 0)


def _draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator)


def _attention_example(generator: torch.Generator) -> dict[str, Any]:
    layout = PrefixLayout((20, 9), (5, 1, 8, 3), 2)
    shapes = {"query": 4, "key": 2, "value": 2}
    drawn = {name: _draw(generator, layout.tokens, heads, 32) for name, heads in shapes.items()}
    return {**drawn, "layout": layout}


OPERATORS = {
    operator.name: operator
    for operator in (
        Operator(
            "infonce",
            lambda g: {"query": _draw(g, 16, 32), "keys": _draw(g, 64, 32)},
            ("query", "keys", "temperature"),
            lambda loss: {"loss": loss},
            ("loss",),
        ),
        Operator(
            "linear_logprob",
            lambda g: {
                "hidden": _draw(g, 16, 32),
                "weight": _draw(g, 64, 32) / 4,
                "targets": torch.arange(16),
            },
            ("hidden", "weight", "row_values"),
            lambda result: {"logprob": result.logprob, "entropy": result.entropy},
            ("logprob",),
        ),
        Operator(
            "rank_reward",
            lambda g: {
                "query": _draw(g, 2, 4, 32),
                "positive": _draw(g, 2, 4, 32),
                "negatives": _draw(g, 2, 1, 20, 32),
            },
            ("query", "positive", "negatives"),
            lambda result: {name: value for name, value in result._asdict().items() if value is not None},
            ("similarities", "margin", "ranking", "total"),
        ),
        Operator(
            "shared_prefix_attention",
            _attention_example,
            ("query", "key", "value"),
            lambda out: {"out": out},
            ("out",),
        ),
        Operator(
            "similarity_topk",
            lambda g: {"query": _draw(g, 16, 32), "keys": _draw(g, 64, 32), "k": 5},
            (),
            lambda result: result._asdict(),
        ),
        Operator(
            "tiered_rank",
            lambda g: {
                "similarity": 2 * torch.rand(8, 30, generator=g) - 1,
                "between": 2 * torch.rand(8, 30, generator=g) - 1,
            },
            ("similarity",),
            lambda result: result._asdict(),
            ("logsumexp",),
        ),
    )
}
