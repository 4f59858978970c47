"""Cohen's kappa and span F1, against values worked out by hand."""

from __future__ import annotations

import pytest

from elva.data.mrbench.agreement import agreement, cohens_kappa
from elva.data.records import Grain


def test_kappa_of_a_textbook_table() -> None:
    # 20 both yes, 15 both no, 5 and 10 mixed: observed 0.7, expected 0.5
    verdicts = [(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10 + [(False, False)] * 15
    assert cohens_kappa(verdicts) == pytest.approx(0.4)
    assert cohens_kappa([(True, False), (False, True)]) == pytest.approx(-1)
    assert cohens_kappa([(True, True)] * 3) is None


def test_spans_count_where_both_ends_are_equal() -> None:
    car, red, wrong = (
        Grain("entity", "car", 6, 9),
        Grain("attribute", "red", 2, 5),
        Grain("entity", "red", 2, 5),
    )
    found = agreement([((car, red), (car, wrong)), ((car,), ())])
    assert found is not None
    assert (found.queries, found.span_f1, found.kind_f1) == (2, 4 / 5, 2 / 5)
    # the verdicts are (yes, yes) and (no, no)
    assert found.kappa == 1
    assert agreement([]) is None
    empty = agreement([((), ())])
    assert empty is not None
    assert (empty.kappa, empty.span_f1) == (None, None)
