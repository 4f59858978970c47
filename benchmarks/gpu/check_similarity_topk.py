"""Cases of `similarity_topk`: values by the error rule, ids up to gaps between scores that the error may close."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.cases import Case, Setting
from benchmarks.gpu.subject import (
    Arguments,
    Change,
    Results,
    Run,
    Shape,
    Subject,
    all_cases,
    line,
    memory,
)
from elva.ops.accuracy import Accuracy, accuracy

K = 50


def draw(shape: Shape, generator: torch.Generator) -> Arguments:
    """Query [Q, D] and keys [M, D]."""
    queries, pool, dim = shape
    sizes = {"query": (queries, dim), "keys": (pool, dim)}
    return {
        name: torch.randn(size, generator=generator, device=generator.device) for name, size in sizes.items()
    }


class SimilarityTopk(Subject):
    """The operator, judged by its scores."""

    def judge(
        self, found: Results, arguments: Arguments, backward: bool = True, summed: bool = False
    ) -> Accuracy:
        """The nearest to its bound of values and of what the ids miss of the best possible scores.

        Raises:
            AssertionError: an id twice, one that is not allowed, values out of order, or the wrong ends.
        """
        values, ids = found["values"].double(), found["indices"]
        k = values.shape[1]
        scores = allowed_scores(arguments, torch.float64)
        plain = allowed_scores(arguments, values_dtype(arguments))
        best = scores.topk(min(k, scores.shape[1]), dim=1).values
        best = torch.cat([best, best.new_full((len(best), k - best.shape[1]), -math.inf)], 1)
        filled = best > -math.inf
        if not torch.equal(ids >= 0, filled):
            raise AssertionError("a row ends too early or too late")
        ordered = ids.masked_fill(~filled, -1).sort(1).values
        if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
            raise AssertionError("an id stands twice in a row")
        # A difference of two ends of −inf is no number, and no comparison finds it.
        if (values.diff(dim=1) > 0).any():
            raise AssertionError("values are not descending")
        end = scores.new_full((len(scores), 1), -math.inf)  # id −1 is the last column
        place = torch.where(ids < 0, scores.shape[1], ids)
        own, of_plain = (torch.cat([x.double(), end], 1).gather(1, place) for x in (scores, plain))
        if (own == -math.inf)[filled].any():
            raise AssertionError("an id that is not allowed")
        single = found["values"].dtype
        parts = {
            "values": accuracy(found["values"], of_plain.to(single), own),
            # The score of what was found in the place of the best: both may be wrong by the error of a score.
            "scores behind the ids": accuracy(own.to(single), of_plain.to(single), best),
        }
        name, worst = max(parts.items(), key=lambda item: item[1].share)
        return worst._replace(of=f"{name}, {worst.of}")


def values_dtype(arguments: Arguments) -> torch.dtype:
    return torch.promote_types(arguments["query"].dtype, torch.float32)


def allowed_scores(arguments: Arguments, dtype: torch.dtype) -> Tensor:
    """[Q, M] scores in plain PyTorch; −inf where a key may not be found."""
    query, keys = arguments["query"].to(dtype), arguments["keys"].to(dtype)
    if arguments.get("similarity") == "cosine":
        query, keys = (torch.nn.functional.normalize(x, dim=1, eps=1e-30) for x in (query, keys))
    scores = query @ keys.T
    bad = scores.isnan()
    ceiling = arguments.get("ceiling")
    if ceiling is not None:
        exact = scores if dtype == torch.float64 else allowed_scores(arguments, torch.float64)
        limit = torch.as_tensor(ceiling, device=query.device).double().expand(len(query))
        bad |= (exact > limit[:, None]) | (exact == -math.inf)
    exclude = arguments.get("exclude")
    if exclude is not None:
        place = torch.where(exclude < 0, keys.shape[0], exclude)
        hit = torch.zeros(len(query), keys.shape[0] + 1, dtype=torch.bool, device=query.device)
        bad |= hit.scatter(1, place, True)[:, :-1]
    return scores.masked_fill(bad, -math.inf)


def cases(setting: Setting) -> Iterator[Case]:
    large = setting.device == "cuda"

    def with_k(k: int) -> Callable[[Shape, torch.Generator], Arguments]:
        return lambda shape, generator: {**draw(shape, generator), "k": k}

    subject = SimilarityTopk(
        "similarity_topk",
        with_k(K if large else 7),
        # Two blocks of queries and three tiles of keys on a GPU.
        shapes=[(1030, 20_000, 64), (1, 1, 1), (33, 8193, 300)]
        if large
        else [(9, 300, 16), (1, 1, 1), (3, 65, 7)],
        empty=[(0, 9, 8), (3, 0, 8)],
        expanded=("query",),
    )

    def special(dtype: torch.dtype) -> Iterator[tuple[str, Run]]:
        def check(change: Change) -> Run:
            return partial(subject.at, setting.device, dtype, change=change)

        yield "cosine", check(lambda a: {"similarity": "cosine"})
        yield "a ceiling", check(_ceiling)
        yield "a ceiling a query", check(_ceilings)
        yield "excluded ids", check(_excluded)
        yield "cosine, ceilings and exclusions", check(_everything)
        yield "the largest k", check(lambda a: {"k": 1024 if large else 300})
        yield "fewer keys than k", check(lambda a: {"keys": a["keys"][:5]})
        yield "k of one", check(lambda a: {"k": 1})
        yield "NaN in keys", check(_with_nan)
        yield "ties", partial(_ties, subject, setting, dtype)
        yield "a stream of blocks", partial(_blocks, subject, setting, dtype, "blocks")
        yield "keys in the host's memory", partial(_blocks, subject, setting, dtype, "host")

    yield from all_cases(subject, setting, special)
    yield subject.case("Q·M > 2^31", torch.bfloat16, partial(_huge, subject, setting))


def _ceiling(arguments: Arguments) -> Arguments:
    """In the widest gap among the highest scores of all, so that rounding decides nothing."""
    scores = allowed_scores(arguments, torch.float64)
    top = scores.flatten().topk(min(200, scores.numel())).values
    place = 5 + int((top[5:-1] - top[6:]).argmax())
    return {"ceiling": float((top[place] + top[place + 1]) / 2)}


def _ceilings(arguments: Arguments) -> Arguments:
    """For every query half way between its 20th (or last) and the next score."""
    scores = allowed_scores(arguments, torch.float64).sort(dim=1, descending=True).values
    place = min(20, scores.shape[1] - 2)
    return {"ceiling": ((scores[:, place] + scores[:, place + 1]) / 2).to(values_dtype(arguments))}


def _excluded(arguments: Arguments) -> Arguments:
    """The best key of every query, another one, and nothing."""
    best = allowed_scores(arguments, torch.float64).argmax(1)
    other = (best + 1) % arguments["keys"].shape[0]
    return {"exclude": torch.stack([other, torch.full_like(best, -1), best], 1)}


def _everything(arguments: Arguments) -> Arguments:
    cosine = {**arguments, "similarity": "cosine"}
    return {"similarity": "cosine", **_ceilings(cosine), **_excluded(cosine)}


def _with_nan(arguments: Arguments) -> Arguments:
    keys = arguments["keys"].clone()
    keys[::3, 0] = math.nan
    return {"keys": keys}


def _ties(subject: Subject, setting: Setting, dtype: torch.dtype) -> dict[str, Any]:
    """Equal scores stand in the order of their numbers, through all tiles."""
    count = 20_000 if setting.device == "cuda" else 500
    keys = torch.ones(count, 4, device=setting.device, dtype=dtype)
    keys[count - 100 :] = 2
    query = torch.ones(3, 4, device=setting.device, dtype=dtype)
    ids = subject.operator.function(query=query, keys=keys, k=102).indices
    expected = torch.tensor([*range(count - 100, count), 0, 1], device=setting.device).expand(3, -1)
    return {"error": float((ids - expected).abs().max()), "bound": 0.0, "of": "ids"}


def _blocks(subject: Subject, setting: Setting, dtype: torch.dtype, how: str) -> dict[str, Any]:
    arguments = subject.arguments(subject.shapes[0], setting.device, dtype)
    keys = arguments["keys"]
    streamed = iter(keys.split(len(keys) // 7)) if how == "blocks" else keys.cpu()
    found = subject.passes(subject.operator.function, {**arguments, "keys": streamed})
    return line(subject.judge(found, arguments))


def _huge(subject: Subject, setting: Setting) -> dict[str, Any]:
    """Every query by itself: some of them against all their scores."""
    with memory(setting, 4):
        arguments = subject.arguments((1100, 2_000_000, 16), setting.device, torch.bfloat16)
        rows = torch.tensor([0, 1, 1023, 1024, 1099], device=setting.device)
        return subject.check_part(
            arguments,
            lambda a: {**a, "query": a["query"][rows]},
            lambda value: value[rows],
        )
