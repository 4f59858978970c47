"""Blocks of scores for the passes of `infonce`, and their comparison with the PyTorch passes in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from elva.ops.infonce_blocks import _reduce, _weigh


class Block(NamedTuple):
    products: Tensor
    cut: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


def block(
    seed: int, rows: int, count: int, positives: int, masked: bool, ids: bool, dtype: torch.dtype
) -> Block:
    """Random products with scales, ``positives`` labels a row (some -1 behind the first), a mask and ids."""
    generator = torch.Generator().manual_seed(seed)
    width = min(positives, count)
    labels = torch.stack([torch.randperm(count, generator=generator)[:width] for _ in range(rows)])
    labels[:, 1:][torch.rand(rows, width - 1, generator=generator) < 0.3] = -1
    mask = torch.rand(rows, count, generator=generator) < 0.7 if masked else None
    excluded = codes = None
    if ids:
        codes = torch.randint(-2, 6, (count,), generator=generator, dtype=torch.int32)
        codes[codes == -1] = -2
        excluded = torch.randint(-1, 6, (rows, 2), generator=generator, dtype=torch.int32)
    scales = (
        torch.rand(size, generator=generator, dtype=torch.float64).to(dtype) + 0.5 for size in (rows, count)
    )
    products = 5 * torch.randn(rows, count, generator=generator, dtype=torch.float64)
    return Block(products.to(dtype), (*scales, labels, mask, excluded, codes))


def compare_passes(
    reduce: Callable[..., None],
    weigh: Callable[..., None],
    problem: Block,
    columns: bool,
    device: str = "cpu",
    out_dtype: torch.dtype | None = None,
) -> None:
    """Both passes on poisoned outputs; errors below twice those of the PyTorch passes in the same dtype."""
    results = []
    for functions, dtype, place in (
        ((reduce, weigh), problem.products.dtype, device),
        ((_reduce, _weigh), problem.products.dtype, "cpu"),
        ((_reduce, _weigh), torch.float64, "cpu"),
    ):
        ours = functions[0] is reduce
        results.append(_run(*functions, problem, columns, dtype, place, out_dtype if ours else None))
    for name in results[0]:
        found, plain, exact = (result[name].double().cpu() for result in results)
        finite = exact.isfinite()
        assert torch.equal(found[~finite], exact[~finite]), name
        unit = torch.finfo(out_dtype if out_dtype and "gradient" in name else problem.products.dtype).eps
        # Scores reach 20 or so, and their rounding is the relative error of their exponentials.
        bound = 2 * (plain - exact)[finite].abs() + 40 * unit * (1 + exact[finite].abs())
        assert ((found - exact)[finite].abs() <= bound).all(), name


def _run(
    reduce: Callable[..., None],
    weigh: Callable[..., None],
    problem: Block,
    columns: bool,
    dtype: torch.dtype,
    device: str,
    out_dtype: torch.dtype | None,
) -> dict[str, Tensor]:
    def here(tensor: Tensor | None) -> Any:
        if tensor is None:
            return None
        return tensor.to(device, dtype if tensor.is_floating_point() else None)

    cut = tuple(map(here, problem.cut))
    scores = here(problem.products).clone()
    rows, count = scores.shape
    labels = problem.cut[2]
    row, positive = (scores.new_full(size, torch.nan) for size in ((rows,), labels.shape))
    # As if an earlier block had been there.
    highest = scores.new_full((count,), 0.25) if columns else None
    total = scores.new_full((count,), 1.5) if columns else None
    reduce(scores, *cut, row, positive, highest, total)
    found = {"scores": scores.clone(), "row": row, "positive": positive}
    if highest is not None and total is not None:
        found["column"] = highest + total.log()
    weights = scores.new_ones(rows) + torch.arange(rows, device=device, dtype=dtype)
    column = None if highest is None else (found["column"].clone(), scores.new_full((count,), 0.5))
    for raw in (False, True):
        values = here(problem.products).clone() if raw else scores
        out = values.new_full(values.shape, torch.nan, dtype=out_dtype or dtype)
        along = row.new_full((rows,), torch.nan)
        finite = torch.where(row.isfinite(), row, 0)
        pull = scores.new_full(labels.shape, -0.75) * (here(labels) >= 0)
        weigh(values, out, raw, *cut, finite, weights, *(column or (None, None)), pull, along)
        found |= {f"gradient, raw={raw}": out, f"along, raw={raw}": along}
    return found
