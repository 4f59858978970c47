"""One self-contained HTML file that a person can read without network, server or scripts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from elva.evaluation.bootstrap import Difference, compare
from elva.evaluation.cards import gallery_section
from elva.evaluation.gallery import GalleryItem
from elva.evaluation.plots import (
    History,
    Picture,
    grain_distance_by_key,
    hit_rate_by_grains,
    learning_curves,
)
from elva.evaluation.results import SUMMARY_COLUMNS, TASK_COLUMNS, Results, percent, summary_cells, task_cells
from elva.evaluation.style import CSS
from elva.files import atomic_file

_MEANINGS = (
    "share of queries with a right answer among the first K (K = 10 for Fashion200K and FashionIQ, else 5), "
    "averaged over the task rows",
    "share of multi-grain queries whose first answer is right; each pool holds candidates that break one grain only",
    "the same among the first five answers",
    "mean cosine distance between a query and itself without one grain; near 0 the model does not see the grain",
    "share of a query's grains that the generated summary names, as whole words",
)


def write_report(
    path: str | Path,
    title: str,
    rows: Mapping[str, Results],
    histories: Mapping[str, History] | None = None,
    gallery: Sequence[GalleryItem] | None = None,
    notes: str | Sequence[str] | None = None,
    intervals: Sequence[Difference] | None = None,
) -> None:
    """Write ``render_report`` to ``path``, whole or not at all."""
    page = render_report(title, rows, histories, gallery, notes, intervals)
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def render_report(
    title: str,
    rows: Mapping[str, Results],
    histories: Mapping[str, History] | None = None,
    gallery: Sequence[GalleryItem] | None = None,
    notes: str | Sequence[str] | None = None,
    intervals: Sequence[Difference] | None = None,
) -> str:
    """The report as HTML: table, intervals, plots, gallery, all numbers; everything given is escaped.

    Args:
        title: heading of the page.
        rows: results by the name of the model or arm, in the order of the table.
        histories: learning curves by name; each entry has ``step`` and metrics.
        gallery: what ``build_gallery`` returns.
        notes: paragraphs of plain text below the title (settings, machine, what to make of it).
        intervals: differences to show; by default every row against the first.

    Raises:
        ValueError: ``rows`` is empty.
    """
    if not rows:
        raise ValueError("rows must hold the results of at least one model, got none")
    paragraphs = [notes] if isinstance(notes, str) else list(notes or ())
    intervals = compare(rows) if intervals is None else intervals
    sections = [
        f"<h1>{escape(title)}</h1>",
        _lead(next(iter(rows.values()))),
        *[f"<p>{escape(paragraph)}</p>" for paragraph in paragraphs],
        _summary(rows),
        _forest(intervals),
        _plots(rows, histories or {}),
        gallery_section(gallery or ()),
        _tasks(rows),
    ]
    body = "\n".join(section for section in sections if section)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n<body><main>\n{body}\n"
        "<footer>Made by elva. Ties count against the right answer; ranks are exact.</footer></main></body></html>\n"
    )


def _lead(results: Results) -> str:
    facts = [
        results.directory,
        f"{results.split} split",
        f"{results.pool} pools",
        f"queries {results.query_mode}",
        f"candidates {results.candidate_mode}",
        f"instructions {results.instructions}",
        f"{sum(row.num_queries for row in results.rows):,} queries",
    ]
    return f'<p class="lead">{"".join(f"<span>{escape(fact)}</span>" for fact in facts)}</p>'


def _summary(rows: Mapping[str, Results]) -> str:
    cells = {name: summary_cells(results) for name, results in rows.items()}
    numbers = {name: [_number(cell) for cell in line] for name, line in cells.items()}
    best = [max(column) if len(rows) > 1 else None for column in zip(*numbers.values(), strict=True)]
    # Percentages fill their cell out of 100; the distance is drawn relative to the largest one.
    largest = max((line[3] for line in numbers.values()), default=0) or 1
    full = [100, 100, 100, largest, 100]
    body = ""
    for name, line in cells.items():
        body += f'<tr><th scope="row">{escape(name)}</th>'
        for cell, number, top, whole in zip(line, numbers[name], best, full, strict=True):
            width = max(0.0, min(1.0, number / whole))
            mark = " best" if top is not None and number == top and number >= 0 else ""
            body += f'<td class="value{mark}"><i style="width:calc({width:.3f}*(100% - 32px))"></i>'
            body += f"<span>{escape(cell)}</span></td>"
        body += "</tr>"
    meanings = "".join(
        f"<dt>{escape(column)}</dt><dd>{escape(meaning)}</dd>"
        for column, meaning in zip(SUMMARY_COLUMNS, _MEANINGS, strict=True)
    )
    return (
        f'<h2>At a glance</h2><div class="card scroll"><table>{_head(("model", *SUMMARY_COLUMNS))}'
        f'<tbody>{body}</tbody></table></div><dl class="columns">{meanings}</dl>'
    )


def _number(cell: str) -> float:
    return -1.0 if cell == "–" else float(cell)


def _head(columns: Sequence[str]) -> str:
    return (
        "<thead><tr>"
        + "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
        + "</tr></thead>"
    )


def _forest(intervals: Sequence[Difference]) -> str:
    if not intervals:
        return ""
    reach = math.ceil(max(max(abs(d.interval.low), abs(d.interval.high)) for d in intervals) * 105) or 1
    body = ""
    for name, reference, metric, (difference, low, high) in intervals:
        sure = ' class="sure"' if low > 0 or high < 0 else ""
        x, left, right = (f"{50 + 50 * 100 * value / reach:.2f}%" for value in (difference, low, high))
        body += (
            f'<tr{sure}><th scope="row">{escape(name)} − {escape(reference)}</th><td>{escape(metric)}</td>'
            f"<td>{_signed(difference)}</td><td>{_signed(low)} to {_signed(high)}</td>"
            f'<td><svg aria-hidden="true"><line class="axis" stroke="currentColor" x1="50%" x2="50%" y1="0" y2="26"/>'
            f'<line class="range" stroke="currentColor" x1="{left}" x2="{right}" y1="13" y2="13"/>'
            f'<circle cx="{x}" cy="13" r="5"/></svg>'
            "</td></tr>"
        )
    columns = ("difference", "metric", "points", "95% interval", f"−{reach} … 0 … +{reach} points")
    return (
        "<h2>Is it more than luck?</h2><p>Paired bootstrap over the same queries, 10,000 resamples. Coloured where "
        "the interval leaves zero out. It covers the choice of queries, not the choice of training seed.</p>"
        f'<div class="card scroll"><table class="forest">{_head(columns)}<tbody>{body}</tbody></table></div>'
    )


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _plots(rows: Mapping[str, Results], histories: Mapping[str, History]) -> str:
    found = [
        (
            "Hit rate by number of grains",
            hit_rate_by_grains(rows),
            "A model that reads only the dominant grain does worse with every grain added. Bands: 95% (Wilson).",
        ),
        (
            "Grain distance",
            grain_distance_by_key(rows),
            "How far the embedding moves when one grain of this kind is taken out of the query. Bars at zero are "
            "blind spots.",
        ),
        (
            "Learning curves",
            learning_curves(histories, [*rows, *histories]),
            "As logged during training, against the optimizer step.",
        ),
    ]
    return "".join(
        f"<h2>{escape(heading)}</h2>{_figure(picture, caption)}"
        for heading, picture, caption in found
        if picture
    )


def _figure(picture: Picture, caption: str) -> str:
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{escape(picture.dark)}">'
        f'<img src="{escape(picture.light)}" alt="{escape(picture.alt)}"></picture>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _tasks(rows: Mapping[str, Results]) -> str:
    """Every number: task rows and hit rates by number of grains, one folded table a model."""
    tables = ""
    for number, (name, results) in enumerate(rows.items()):
        lines = "".join(_line(task_cells(row)) for row in results.rows)
        mean = results.mean_hit_rate
        foot = "" if mean is None else _line(["mean", "", percent(mean), *[""] * (len(TASK_COLUMNS) - 3)])
        grains = "" if results.multigrain is None else _grains_table(results)
        tables += (
            f"<details{'' if number else ' open'}><summary>{escape(name)}</summary>"
            f'<div class="card scroll"><table>{_head(TASK_COLUMNS)}<tbody>{lines}</tbody><tfoot>{foot}</tfoot></table>'
            f"</div>{grains}</details>"
        )
    return (
        "<h2>All numbers</h2><p>Recall, MRR and nDCG count the right answers that are in the pool; “unreachable” "
        f"counts those that are not. Multi-grain rows are not part of the mean.</p>{tables}"
    )


def _grains_table(results: Results) -> str:
    assert results.multigrain is not None
    lines = "".join(
        _line([str(count), f"{row['queries']:.0f}", percent(row["hit_at_1"]), percent(row["hit_at_5"])])
        for count, row in results.multigrain.by_grains().items()
    )
    head = _head(("grains in the query", "queries", "hit@1 (%)", "hit@5 (%)"))
    return f'<p></p><div class="card scroll"><table>{head}<tbody>{lines}</tbody></table></div>'


def _line(cells: Sequence[str]) -> str:
    first, *rest = cells
    return (
        f'<tr><th scope="row">{escape(first)}</th>' + "".join(f"<td>{escape(c)}</td>" for c in rest) + "</tr>"
    )
