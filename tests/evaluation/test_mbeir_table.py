"""The table of sixteen rows."""

from __future__ import annotations

import pytest

from elva.data.mbeir import TASK_MODALITIES
from elva.evaluation.mbeir_published import PUBLISHED
from elva.evaluation.mbeir_table import ROWS, latex, markdown, scores
from elva.evaluation.results import Results, TaskRow


def results(count: int) -> Results:
    rows = [
        TaskRow(dataset, task, 5, (index + 1) / 20, 0, 0, 0, 1, 1, 0, ["1:1"], [1])
        for index, (dataset, task) in enumerate(ROWS[:count])
    ]
    return Results("m", "d", "test", "local", "direct", "direct", "fixed", 0, None, 1.0, rows)


def test_sixteen_rows_and_their_mean():
    assert len(ROWS) == len(set(ROWS)) == 16
    assert all(task in TASK_MODALITIES for _, task in ROWS)
    assert scores(results(16))[:2] == [5.0, 10.0]
    assert scores(results(16))[-1] == pytest.approx(42.5)


def test_no_mean_of_some_rows():
    assert scores(results(15))[-2:] == [None, None]
    assert "| ours | 5.0 | 10.0 |" in markdown({"ours": results(15)})
    assert markdown({"ours": results(15)}).splitlines()[2].endswith("| – | – |")


def test_both_layouts_have_as_many_cells_in_every_row():
    for text, separator in ((markdown({"a": results(16)}), "|"), (latex({"a": results(16)}), "&")):
        lines = [line for line in text.splitlines() if separator in line]
        assert len({line.count(separator) for line in lines}) == 1
    assert "a & 5.0 & 10.0" in latex({"a": results(16)}) and "42.5 \\\\" in latex({"a": results(16)})


def test_published_rows_are_whole_and_of_the_same_pools():
    for pool, means in {"local": {"UniIR CLIP_SF": 50.6, "UniIR BLIP_FF": 46.8}, "global": {}}.items():
        found = results(16)
        found.pool = pool
        rows = {row.name: row for row in PUBLISHED[pool]}
        assert all(len(row.scores) in (0, 16) for row in rows.values())
        # the means that U-MARVEL's paper prints for these models
        assert {name: round(rows[name].mean, 1) for name in means} == means
        assert f"| {PUBLISHED[pool][-1].name} (" in markdown({"ours": found})
    assert "UniIR CLIP\\_SF & 42.6 & 77.9" in latex({"ours": found})
    assert "runs/my\\_model &" in latex({"runs/my_model": found})


def test_pools_are_not_mixed():
    other = results(16)
    other.pool = "global"
    with pytest.raises(ValueError, match="results are of global and local pools"):
        markdown({"a": results(16), "b": other})


def test_judgements_out_of_reach_stand_below_the_scores():
    found = results(3)
    found.rows[1].unreachable = 7
    assert markdown({"ours": found}).splitlines()[3].startswith("| unreachable judgements | 0 | 7 | 0 | – |")
