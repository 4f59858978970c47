"""The final states of a forward that runs through a wrapper (DDP, FSDP, PEFT, accelerate's mixed precision)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def final_states(base_model: Any, wrapper: nn.Module, **inputs: Any) -> Tensor:
    """States [n, L, H] after the final norm, from ``wrapper``'s forward around ``base_model``.

    They stand in the place of the logits. `output_hidden_states` would keep every layer's, which accelerate's mixed
    precision copies to float32 (2.9 GB at 16,384 tokens of a 2B model); and taken past the wrapper's output they would
    go unnoticed by FSDP, which prepares its backward at the output's tensors.
    """
    kept: list[Tensor] = []

    def keep(module: nn.Module, arguments: Any, output: Any) -> None:
        kept.append(output.last_hidden_state)

    def hand_over(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        return kept.pop()

    hooks = (
        base_model.model.register_forward_hook(keep),
        base_model.get_output_embeddings().register_forward_hook(hand_over),
    )
    try:
        return wrapper(**inputs, logits_to_keep=1).logits
    finally:
        for hook in hooks:
            hook.remove()


def require_finite(embeddings: Tensor) -> None:
    """FloatingPointError naming the inputs of ``embeddings [n, H]`` that have NaN or infinity in them."""
    wrong = (~embeddings.isfinite().all(-1)).nonzero().flatten().tolist()
    if wrong:
        raise FloatingPointError(
            f"inputs[{wrong[0]}]: its embedding is not finite, nor are those of {len(wrong) - 1} other inputs of "
            f"{len(embeddings)}; the weights hold NaN, or dtype is too narrow for them"
        )
