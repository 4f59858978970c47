"""Cases of `linear_logprob`: frozen and trained heads, trained rows, many tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.cases import Case, Setting
from benchmarks.gpu.subject import Arguments, Change, Run, Shape, Subject, all_cases, memory


def draw(shape: Shape, generator: torch.Generator) -> Arguments:
    """Hidden states [T, H], a head [V, H] whose logits have a deviation of 2, targets [T]."""
    tokens, dim, vocabulary = shape
    device = generator.device
    return {
        "hidden": torch.randn(tokens, dim, generator=generator, device=device),
        "weight": 2 * torch.randn(vocabulary, dim, generator=generator, device=device) / dim**0.5,
        "targets": torch.randint(0, vocabulary, (tokens,), generator=generator, device=device),
    }


def cases(setting: Setting) -> Iterator[Case]:
    large = setting.device == "cuda"
    subject = Subject(
        "linear_logprob",
        draw,
        # Several tiles of the vocabulary on a GPU: elva/ops/linear_logprob_triton.py cuts at 8 M logits.
        shapes=[(3000, 256, 10_007), (1, 1, 1), (33, 300, 1025)]
        if large
        else [(33, 16, 300), (1, 1, 1), (5, 7, 257)],
        empty=[(0, 8, 9)],
        leaves=("hidden",),
        expanded=("hidden",),
    )
    trained = replace(subject, leaves=("hidden", "weight"))
    apart = replace(subject, leaves=("hidden", "row_values"))

    def special(dtype: torch.dtype) -> Iterator[tuple[str, Run]]:
        def check(change: Change, of: Subject = subject) -> Run:
            return partial(of.at, setting.device, dtype, change=change)

        yield "a trained head", check(lambda a: {}, trained)
        yield "trained rows, sparse", check(lambda a: {"trainable_rows": _rows(a)}, trained)
        yield "trained rows kept apart", check(_apart, apart)
        yield "temperature", check(lambda a: {"temperature": 0.7})
        yield "all logits one", check(lambda a: {"weight": torch.zeros_like(a["weight"])})
        yield "a certain token", check(_certain)

    yield from all_cases(subject, setting, special)
    yield subject.case("T·V > 2^31", torch.bfloat16, partial(_huge, subject, setting))


def _rows(arguments: Arguments) -> Tensor:
    """The first row, the last, one between and one that is a target."""
    vocabulary = arguments["weight"].shape[0]
    rows = {0, vocabulary - 1, vocabulary // 2, int(arguments["targets"][0])}
    return torch.tensor(sorted(rows, reverse=True), device=arguments["weight"].device)


def _apart(arguments: Arguments) -> Arguments:
    rows, weight = _rows(arguments), arguments["weight"].clone()
    values = weight[rows] + 0.5
    weight[rows] = 50.0  # of the rows that are replaced nothing may be left
    return {"trainable_rows": rows, "row_values": values, "weight": weight}


def _certain(arguments: Arguments) -> Arguments:
    """One token's logit is far above all others: probabilities of 0 and 1."""
    weight = arguments["weight"].clone()
    weight[3] = 8 * arguments["hidden"][0]
    return {"weight": weight}


def _huge(subject: Subject, setting: Setting) -> dict[str, Any]:
    """Every token by itself: some of them against all their logits."""
    tokens = 16_384
    with memory(setting, 3):
        arguments = subject.arguments((tokens, 64, 151_936), setting.device, torch.bfloat16)
        rows = torch.tensor([0, 1, tokens // 2, tokens - 2, tokens - 1], device=setting.device)
        return subject.check_part(
            arguments,
            lambda a: {"hidden": a["hidden"][rows], "weight": a["weight"], "targets": a["targets"][rows]},
            lambda value: value[rows],
        )
