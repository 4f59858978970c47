"""Evaluation: M-BEIR's retrieval protocol, the multi-grain split, grain distance, and the report."""

from __future__ import annotations

from elva.evaluation.bootstrap import compare, paired_bootstrap
from elva.evaluation.gallery import build_gallery
from elva.evaluation.grains import grain_distance, grains_named
from elva.evaluation.report import write_report
from elva.evaluation.results import Results
from elva.evaluation.retrieval import evaluate

__all__ = [
    "Results",
    "build_gallery",
    "compare",
    "evaluate",
    "grain_distance",
    "grains_named",
    "paired_bootstrap",
    "write_report",
]
