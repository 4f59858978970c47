"""The directory's README.md: where the queries come from, who judged them, and how far that can be trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from elva.data.mrbench.judged import FOLDER
from elva.data.records import DataError
from elva.files import atomic_file
from elva.markdown import escaped, markdown_table

STATISTICS = f"{FOLDER}/statistics.json"
REVIEW = f"{FOLDER}/review.json"

_COLUMNS = (
    "task",
    "queries",
    "unreachable",
    "unreadable",
    "answered",
    "retried",
    "set aside",
    "fewer",
    "picked",
)


def write_datasheet(root: Path) -> None:
    """Write README.md from ``mrbench/statistics.json`` and, where people have looked, ``mrbench/review.json``.

    Raises DataError where these are not what a build and a review wrote, OSError where one cannot be read or written.
    """
    review = root / REVIEW
    if not (root / STATISTICS).is_file():
        raise DataError(f"no {STATISTICS}, expected a directory that `elva mrbench build` made")
    try:
        statistics = json.loads((root / STATISTICS).read_text(encoding="utf-8"))
        report = json.loads(review.read_text(encoding="utf-8"))["report"] if review.is_file() else None
        text = render(statistics, report)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{STATISTICS}: not what `elva mrbench build` wrote ({type(error).__name__}: {error})"
        ) from error
    with atomic_file(root / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")


def render(statistics: dict[str, Any], report: dict[str, Any] | None) -> str:
    tasks = statistics["tasks"]
    left_out = [name for name, row in tasks.items() if not row["picked"]]
    sections = [
        "# Multi-grain queries",
        f"Test queries of the M-BEIR directory {escaped(statistics['source'])} in which the judge "
        f"({escaped(statistics['judge'])}) found at least two grains: {statistics['per_task']} "
        f"of each task, drawn with seed {statistics['seed']}. The candidates are those of the tasks' whole local "
        "pools. Made by `elva mrbench build`; licences are the source's.",
        "## Queries",
        markdown_table(_COLUMNS, [_task_cells(name, row) for name, row in tasks.items()]),
        "*unreachable*: no right answer in the local pool. *unreadable*: nothing that this judge reads. *retried*: "
        "answered at the second or third attempt. *set aside*: no usable answer (`mrbench/set_aside.jsonl` says why). "
        "*fewer*: fewer than two grains. Queries that were not needed for equal numbers were not asked about.",
        _left_out(left_out, statistics),
        "## Grains",
        markdown_table(("kind", "grains"), [[kind, str(n)] for kind, n in statistics["kinds"].items()]),
        markdown_table(
            ("grains in a query", "queries"),
            [[n, str(c)] for n, c in statistics["queries_by_grains"].items()],
        ),
        "The grains of a query without text are those of a description of its picture (`of_picture` in "
        "`mrbench/judged.jsonl`): the judge's own or, where rules judged, its first right answer.",
        "## Agreement",
        _agreement(statistics, report),
        "## Checked by people",
        _review(report),
        "## Source files",
        markdown_table(
            ("task", "SHA-256 of its query file"), [[name, row["sha256"]] for name, row in tasks.items()]
        ),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _task_cells(name: str, row: dict[str, Any]) -> list[str]:
    return [name, *(str(row[column.replace(" ", "_")]) for column in _COLUMNS[1:])]


def _left_out(names: list[str], statistics: dict[str, Any]) -> str:
    lines = []
    if names:
        lines.append(
            f"Left out, because no query with two grains was found there: {escaped(', '.join(names))}."
        )
    if statistics["per_task"] < statistics["asked_per_task"]:
        lines.append(
            f"{statistics['asked_per_task']} queries a task were asked for; the smallest task has fewer."
        )
    return " ".join(lines)


def _agreement(statistics: dict[str, Any], report: dict[str, Any] | None) -> str:
    found = {
        "the rules": statistics["agreement_with_rules"],
        "the source's own grains": statistics["agreement_with_source"],
        "people": report["agreement"] if report else None,
    }
    rows = [
        [name, str(a["queries"]), *(_number(a[key]) for key in ("kappa", "span_f1", "kind_f1"))]
        for name, a in found.items()
        if a is not None
    ]
    if not rows:
        return "Measured against nothing so far."
    header = ("with", "texts", "kappa of ≥ 2 grains", "F1 of spans", "F1 of spans and kinds")
    return (
        f"{markdown_table(header, rows)}\n\nSpans count where both ends are equal. A dash: not defined, because both "
        "always say the same. The source's own grains may have other names for kinds. People saw more picked queries, "
        "and fewer of the others, than the judge."
    )


def _review(report: dict[str, Any] | None) -> str:
    return "Not yet; see `elva mrbench review`." if report is None else f"{report['sentence']}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
