"""The gallery's search: the first answers, with ties against the right ones."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elva.evaluation.gallery import SHOWN, _search


def all_answers(scores: list[float], right: set[int]) -> list[int]:
    """By score, equal ones with the right ones last, then by number."""
    return sorted(range(len(scores)), key=lambda index: (-scores[index], index in right, index))


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 12).flatmap(
        lambda count: st.lists(
            st.tuples(
                st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0]), min_size=count, max_size=count),
                st.lists(st.integers(0, count - 1), max_size=4),
            ),
            min_size=1,
            max_size=3,
        )
    )
)
def test_search_against_a_plain_sort(rows: list[tuple[list[float], list[int]]]) -> None:
    scores, positives = [row[0] for row in rows], [row[1] for row in rows]
    # Candidate j is the unit vector j, so that the query itself is its row of scores.
    found = _search(torch.tensor(scores), torch.eye(len(scores[0])), positives)
    for row, (answers, right, rank) in enumerate(found):
        assert right == set(positives[row])
        expected = all_answers(scores[row], right)
        assert answers == expected[:SHOWN]
        places = [place for place, number in enumerate(expected, 1) if number in right]
        assert rank == (places[0] if places else 0)
