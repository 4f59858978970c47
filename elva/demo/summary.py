"""What the demo says: one table, the paired intervals, and the same over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

from elva.demo.pipeline import STAGE_2, DemoRun
from elva.evaluation.bootstrap import Difference, paired_bootstrap
from elva.evaluation.results import SUMMARY_COLUMNS, Results
from elva.markdown import markdown_table

COST_COLUMNS = ("encoded items", "queries", "seconds")


def figures(results: Results) -> list[float | None]:
    """One model's line, in the order of ``SUMMARY_COLUMNS``; rates in percent."""
    grains = results.multigrain
    mean = results.mean_hit_rate
    return [
        None if mean is None else 100 * mean,
        None if grains is None else 100 * grains.hit_rate(1),
        None if grains is None else 100 * grains.hit_rate(5),
        None if grains is None else grains.grain_distance,
        None if grains is None or grains.grains_named is None else 100 * grains.grains_named,
    ]


def table(runs: Sequence[DemoRun]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Header and rows: stage 2 and every arm; `mean ± std` over seeds where there are several."""
    header = ("", *SUMMARY_COLUMNS, *COST_COLUMNS)
    rows = []
    for name in runs[0].results:
        by_seed = [figures(run.results[name]) for run in runs]
        cells = [
            _spread([line[column] for line in by_seed], column) for column in range(len(SUMMARY_COLUMNS))
        ]
        rows.append([name, *cells, *_costs(runs, name)])
    return header, rows


def differences(runs: Sequence[DemoRun], arm: str) -> list[Difference]:
    """``arm`` minus every other row on multi-grain hit@1 and hit@5: paired bootstrap over queries, seeds pooled."""
    found = []
    for other in runs[0].results:
        if other == arm:
            continue
        for k in (1, 5):
            ours = [hit for run in runs for hit in _hits(run.results[arm], k)]
            theirs = [hit for run in runs for hit in _hits(run.results[other], k)]
            if ours:
                found.append(Difference(arm, other, f"multi-grain hit@{k}", paired_bootstrap(ours, theirs)))
    return found


def difference_lines(found: Sequence[Difference]) -> list[str]:
    return [
        f"{d.name} − {d.reference}, {d.metric}: {100 * d.interval.difference:+.1f} points "
        f"(95% interval {100 * d.interval.low:+.1f} to {100 * d.interval.high:+.1f})"
        for d in found
    ]


def markdown(runs: Sequence[DemoRun]) -> str:
    """The table as Markdown."""
    return markdown_table(*table(runs)) + "\n"


def by_grains_markdown(runs: Sequence[DemoRun]) -> str:
    """Multi-grain hit@1 (%) by number of grains, mean over seeds."""
    names = list(runs[0].results)
    counts = sorted(
        {count for run in runs for r in run.results.values() if r.multigrain for count in r.multigrain.grains}
    )
    lines = []
    for name in names:
        cells = []
        for count in counts:
            values = [
                r.by_grains()[count]["hit_at_1"]
                for run in runs
                if (r := run.results[name].multigrain) is not None and count in r.grains
            ]
            cells.append(f"{100 * fmean(values):.1f}" if values else "–")
        lines.append([name, *cells])
    return markdown_table(("", *(f"{count} grains" for count in counts)), lines) + "\n"


def arm_name(runs: Sequence[DemoRun]) -> str:
    """The row that the others are compared with: ELVA's, which stands last."""
    return list(runs[0].results)[-1]


def _hits(results: Results, k: int) -> list[int]:
    return results.multigrain.hits(k) if results.multigrain is not None else []


def _spread(values: list[float | None], column: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    digits = 3 if SUMMARY_COLUMNS[column] == "grain distance" else 1
    mean = f"{fmean(known):.{digits}f}"
    return f"{mean} ± {stdev(known):.{digits}f}" if len(known) > 1 else mean


def _costs(runs: Sequence[DemoRun], name: str) -> list[str]:
    if name == STAGE_2:
        return ["–", "–", "–"]
    arms = [run.arms[name] for run in runs]
    return [
        f"{fmean(arm.encoded_items for arm in arms):,.0f}",
        f"{fmean(arm.queries for arm in arms):,.0f}",
        f"{fmean(arm.seconds for arm in arms):,.0f}",
    ]
