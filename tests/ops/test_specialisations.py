"""How often a GPU's first minutes go to Triton's compiler: forms of a kernel over shapes of all kinds."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch

from tests.ops.launches import recorded_specialisations

pytest.importorskip("triton", reason="Triton is not installed")

OPTIONS = (0.1, 0.5, True, 0.4, 0.6, math.e, False)
# of 1, a multiple of 16, neither: what Triton tells apart
SIZES = (1, 5, 16)


def launch_rank_reward() -> None:
    from elva.ops.rank_reward_triton import backward, forward

    for batch, rollouts, count, dim, shared in product(SIZES, SIZES, (0, *SIZES), (1, 6, 96), (False, True)):
        owners = 1 if shared else rollouts
        query, positive = torch.empty(batch, rollouts, dim), torch.empty(batch, owners, dim)
        negatives = torch.empty(batch, owners, count, dim)
        for mask in (None, torch.ones(batch, 1, count, dtype=torch.bool)):
            out = forward(query, positive, negatives, mask, *OPTIONS, None)
            backward(out[0], *out[2:5], query, positive, negatives, mask, out[0], *OPTIONS)


def launch_similarity_topk() -> None:
    from elva.ops.similarity_topk_triton import update

    for queries, pool, k, excluded in product(SIZES, (*SIZES, 8192, 9000), (1, 5, 10, 16), (0, *SIZES)):
        exclude = torch.zeros(queries, excluded, dtype=torch.int64) if excluded else None
        values, indices = torch.empty(queries, k), torch.zeros(queries, k, dtype=torch.int64)
        update(torch.ones(queries, 8), torch.ones(pool, 8), None, exclude, 0, True, False, values, indices)


def launch_tiered_rank() -> None:
    from elva.ops.tiered_rank_triton import backward, forward

    for rows, count, tiers in product(SIZES, (*SIZES, 100), SIZES):
        similarity = torch.empty(rows, count)
        logsumexp, _, tier = forward(similarity, similarity, None, None, 0.05, tiers, 1.0)
        backward(logsumexp, similarity, tier, logsumexp, 0.05)


def launch_infonce() -> None:
    from elva.ops.infonce_triton import reduce_, weigh_

    for rows, count, positives, excluded in product(SIZES, (*SIZES, 1000), SIZES, (0, *SIZES)):
        scores, labels = torch.empty(rows, count), torch.zeros(rows, positives, dtype=torch.int64)
        ids = torch.zeros(rows, excluded, dtype=torch.int32)
        cut = (
            torch.empty(rows),
            torch.empty(count),
            labels,
            None,
            ids,
            torch.zeros(count, dtype=torch.int32),
        )
        pull = torch.empty(rows, positives)
        reduce_(scores, *cut, torch.empty(rows), pull, torch.empty(count), torch.empty(count))
        weigh_(
            scores,
            scores,
            True,
            *cut,
            torch.empty(rows),
            torch.empty(rows),
            None,
            None,
            pull,
            torch.empty(rows),
        )


def launch_linear_logprob() -> None:
    from elva.ops.linear_logprob_triton import forward

    for tokens, vocabulary, rows in product(SIZES, (1, 300, 1000, 5000), (0, 1, 2)):
        given = torch.arange(min(rows, vocabulary))
        values = torch.zeros(len(given), 8)
        hidden, weight = torch.zeros(tokens, 8), torch.zeros(vocabulary, 8)
        forward(hidden, weight, torch.zeros(tokens, dtype=torch.int64), 1.0, True, given, values)


# Forms that differ in what pays: rows read 16 bytes at a time or not, a mask or none, widths of blocks.
LIMITS: dict[Callable[[], None], dict[str, int]] = {
    launch_rank_reward: {
        # short rows, and long ones that are aligned; with and without a mask
        "similarities_kernel": 4,
        "inverse_norms_kernel": 4,
        "candidate_gradients_kernel": 2,
        "query_gradients_kernel": 2,
        "rewards_kernel": 2,
        "weights_kernel": 2,
    },
    # tiles of 1, of a multiple of 16, and others
    launch_similarity_topk: {"merge_kernel": 3},
    launch_tiered_rank: {"ranks_kernel": 1, "logsumexp_kernel": 1, "similarity_gradients_kernel": 1},
    # the same of rows of scores; scores are reduced, or finished only
    launch_infonce: {"infonce_rows_kernel": 6, "infonce_columns_kernel": 3, "infonce_weigh_kernel": 3},
    launch_linear_logprob: {"advance_kernel": 2, "replace_kernel": 1},
}


@pytest.mark.parametrize("launch", LIMITS, ids=lambda launch: launch.__name__)
def test_few_forms_over_many_shapes(launch: Callable[[], None]) -> None:
    with recorded_specialisations() as found:
        launch()
    assert {kernel: len(forms) for kernel, forms in found.items()} == LIMITS[launch]
