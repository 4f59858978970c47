"""The demo's outputs: results.json, a Markdown table, and the HTML report."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from elva.demo import summary
from elva.demo.pipeline import DemoRun
from elva.evaluation.gallery import build_gallery
from elva.evaluation.report import write_report
from elva.files import atomic_file
from elva.markdown import escaped
from elva.models.encoder import MultimodalEncoder


def write_demo_report(out: Path, root: Path, runs: Sequence[DemoRun], settings: dict[str, Any]) -> Path:
    """Write ``results.json``, ``results.md`` and ``report.html`` into ``out``; returns the report's path.

    Plots and gallery show the first seed, the table all of them.
    """
    first, arm = runs[0], summary.arm_name(runs)
    found = summary.differences(runs, arm)
    _write(out / "results.md", markdown(root, runs, settings))
    record = {
        "settings": settings,
        "seeds": [run.seed for run in runs],
        "figures": {
            name: {
                "columns": summary.SUMMARY_COLUMNS,
                "by_seed": [summary.figures(run.results[name]) for run in runs],
            }
            for name in first.results
        },
        "arms": [{name: asdict(cost) for name, cost in run.arms.items()} for run in runs],
        "differences": [d._asdict() | {"interval": d.interval._asdict()} for d in found],
    }
    _write(out / "results.json", json.dumps(record, indent=1))
    gallery = build_gallery(MultimodalEncoder.from_pretrained(first.models[arm]), root, seed=first.seed)
    report = out / "report.html"
    write_report(
        report,
        f"ELVA on {root.name}",
        first.results,
        histories=first.histories,
        gallery=gallery,
        notes=f"{len(runs)} seed(s); the plots and the gallery show seed {first.seed}",
        intervals=found,
    )
    return report


def markdown(root: Path, runs: Sequence[DemoRun], settings: dict[str, Any]) -> str:
    """Table, differences, hit rate by number of grains, machine and settings: what a results page quotes."""
    queries = runs[0].results[summary.STAGE_2].multigrain
    sections = [
        f"{len(runs)} seed(s), {len(queries.qids) if queries else 0} multi-grain test queries in {escaped(root.name)}; "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}.\n",
        summary.markdown(runs),
        "\n".join(
            f"* {line}"
            for line in summary.difference_lines(summary.differences(runs, summary.arm_name(runs)))
        ),
        "Multi-grain hit@1 (%) by number of grains:\n\n" + summary.by_grains_markdown(runs),
        "Settings:\n\n```json\n" + json.dumps(settings, indent=1) + "\n```\n",
    ]
    return "\n\n".join(sections)


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
