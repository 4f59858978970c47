"""The page: one row a loss, paired tests against hard-negative InfoNCE, one plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from elva.evaluation.bootstrap import Interval
from elva.files import atomic_file

REFERENCE = "MNRL, hard negatives"
METRICS = {
    "r1": "R@1",
    "r5": "R@5",
    "r1_apart": "R@1, own edits apart",
    "accuracy": "accuracy",
    "grain_distance": "grain distance",
    "entailment": "entailment",
}
PAIRED = {"hits": "R@1", "apart": "R@1, own edits apart", "right": "accuracy"}
RESAMPLES = 10_000
Results = dict[str, list[dict[str, Any]]]


def write_report(
    path: Path,
    figures: Path,
    zero_shot: dict[str, Any],
    results: Results,
    settings: dict[str, dict[str, Any]],
    steps: int,
    batch: int,
) -> None:
    """JSON to ``figures``; Markdown between two marks of ``path`` (text around them stays), a ``.png`` beside it."""
    body = "\n".join(
        [
            f"{date.today().isoformat()}; {steps} steps of {batch} pairs, "
            f"{len(next(iter(results.values())))} seeds; torch {version('torch')}, "
            f"sentence-transformers {version('sentence-transformers')}.",
            "",
            *main_table(zero_shot, results, settings),
            "",
            *edit_table(zero_shot, results),
            "",
            *test_table(results),
            "",
            f"![R@1 against accuracy]({path.with_suffix('.png').name})",
        ]
    )
    with atomic_file(path.with_suffix(".png")) as temporary:
        draw(zero_shot, results, temporary)
    record = {"steps": steps, "batch": batch, "settings": settings, "zero_shot": brief(zero_shot)}
    record["results"] = {arm: [brief(run) for run in runs] for arm, runs in results.items()}
    with atomic_file(figures) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    insert(path, body)


def insert(path: Path, body: str) -> None:
    """Put ``body`` between the marks of the page, or make a page of it."""
    begin, end = "<!-- figures -->", "<!-- end of figures -->"
    before, after = "# Text grains\n\n", "\n"
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        if begin in text and end in text:
            before, after = text.split(begin)[0], text.split(end)[1]
    with atomic_file(path) as temporary:
        temporary.write_text(f"{before}{begin}\n{body}\n{end}{after}", encoding="utf-8")


def brief(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name not in (*PAIRED, "pictures")}


def spread(values: Sequence[float]) -> str:
    """Percent, mean ± standard deviation over seeds."""
    return f"{100 * fmean(values):.1f} ± {100 * stdev(values):.1f}"


def main_table(zero_shot: dict[str, Any], results: Results, settings: dict[str, dict[str, Any]]) -> list[str]:
    lines = [
        f"| loss | {' | '.join(METRICS.values())} | learning rate, τ |",
        "| --- |" + " ---: |" * (len(METRICS) + 1),
        f"| zero-shot | {' | '.join(f'{100 * zero_shot[name]:.1f}' for name in METRICS)} | – |",
    ]
    for arm, runs in results.items():
        cells = [spread([run[name] for run in runs]) for name in METRICS]
        chosen = f"{settings[arm]['learning_rate']:g}, {settings[arm]['temperature']:g}"
        lines.append(f"| {arm} | {' | '.join(cells)} | {chosen} |")
    return lines


def edit_table(zero_shot: dict[str, Any], results: Results) -> list[str]:
    edits = list(zero_shot["edits"])
    start = " | ".join(f"{100 * zero_shot['edits'][edit]:.1f}" for edit in edits)
    lines = [
        f"| accuracy by edit | {' | '.join(edits)} |",
        "| --- |" + " ---: |" * len(edits),
        f"| zero-shot | {start} |",
    ]
    for arm, runs in results.items():
        cells = [spread([run["edits"][edit] for run in runs]) for edit in edits]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return lines


def test_table(results: Results) -> list[str]:
    """Differences in points, their 95 % intervals, and how many seeds are ahead."""
    lines = [
        f"| minus {REFERENCE}, points | {' | '.join(PAIRED.values())} |",
        "| --- |" + " ---: |" * len(PAIRED),
    ]
    for arm, runs in results.items():
        if arm != REFERENCE:
            cells = [_points(runs, results[REFERENCE], name) for name in PAIRED]
            lines.append(f"| {arm} | {' | '.join(cells)} |")
    return lines


def gains(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    """[seeds, queries] differences of two losses that drew the same batches."""
    return np.array([run[name] for run in ours], float) - np.array([run[name] for run in theirs], float)


def difference(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], name: str) -> Interval:
    """Mean gain and its 95 % bootstrap interval, which resamples both the seeds and the pictures.

    Queries of one picture share their candidates, so that they are drawn together.
    """
    gain = gains(ours, theirs, name)
    pictures, place = np.unique(ours[0]["pictures"], return_inverse=True)
    sums = np.stack([np.bincount(place, row, len(pictures)) for row in gain])
    draw = np.random.default_rng(0)
    seeds, drawn = (
        draw.multinomial(count, np.full(count, 1 / count), RESAMPLES) for count in (len(gain), len(pictures))
    )
    means = ((seeds @ sums) * drawn).sum(1) / (drawn @ np.bincount(place)) / len(gain)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(gain.mean()), float(low), float(high))


def _points(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], name: str) -> str:
    interval = difference(ours, theirs, name)
    ahead = int((gains(ours, theirs, name).mean(1) > 0).sum())
    ends = f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f}"
    return f"{100 * interval.difference:+.1f} ({ends}), {ahead} of {len(ours)}"


def draw(zero_shot: dict[str, Any], results: Results, path: Path) -> None:
    """Every seed a dot, every loss a colour: retrieval against telling one grain apart."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    axes.scatter(
        [100 * zero_shot["r1"]], [100 * zero_shot["accuracy"]], marker="x", color="black", label="zero-shot"
    )
    for arm, runs in results.items():
        axes.scatter(
            [100 * run["r1"] for run in runs], [100 * run["accuracy"] for run in runs], s=18, label=arm
        )
    axes.set(xlabel="R@1 among all captions and negatives, %", ylabel="accuracy above its own negatives, %")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
    figure.savefig(path, format="png", dpi=110)
    pyplot.close(figure)
