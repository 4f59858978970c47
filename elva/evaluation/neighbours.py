"""The picture of the paper's Figure 4: one query among its positives, hard and easy negatives, in two dimensions."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from elva.data.mbeir import MBEIRDirectory
from elva.data.records import Task
from elva.evaluation.inputs import CandidateEmbeddings, Inputs
from elva.evaluation.results import Results
from elva.evaluation.retrieval import positions, relevant_dids
from elva.ops import similarity_topk

if TYPE_CHECKING:
    from elva.models.encoder import MultimodalEncoder

NEGATIVES = 30
GROUPS = ("query", "positive", "hard negative", "easy negative")


@dataclass(frozen=True)
class Neighbours:
    """Points of ``GROUPS`` on the two first principal components of all of them.

    ``explained`` is these components' share of the variance.
    Hard negatives are the nearest candidates that are no right answer, easy ones are drawn from the others.
    ``similarity`` is each group's mean cosine to the query.
    """

    qid: str
    task: str
    text: str | None
    points: dict[str, list[list[float]]]
    similarity: dict[str, float]
    explained: float


def neighbours(
    encoder: MultimodalEncoder,
    directory: MBEIRDirectory,
    results: Results,
    inputs: Inputs,
    candidates: CandidateEmbeddings,
    seed: int = 0,
) -> Neighbours | None:
    """One query drawn with ``seed``, in its local pool; with a text of its own where there is such a query.

    None where no query has a right answer and another candidate in its pool.
    """
    drawn = random.Random(seed)
    ranked = [
        (Task(row.dataset, row.task_id), qid)
        for row in results.rows
        for qid, rank in zip(row.qids, row.ranks, strict=True)
        if rank > 0
    ]
    if not ranked:
        return None
    known = {
        (task, query.qid): query
        for task in {task for task, _ in ranked}
        for query in directory.queries(results.split, *task)
    }
    task, qid = drawn.choice([pair for pair in ranked if known[pair].text] or ranked)
    query = known[task, qid]
    pool = directory.pool(results.split, *task)
    right = positions(relevant_dids(directory, results.split, task, [query]), pool)[0][0]
    if not right or len(right) == len(pool):
        return None
    keys = candidates(pool).float().cpu()
    embedded = encoder.encode([inputs.query(query)], mode=results.query_mode).float().cpu()
    hard = [
        n for n in similarity_topk(embedded, keys, NEGATIVES, exclude=[right]).indices[0].tolist() if n >= 0
    ]
    rest = sorted(set(range(len(pool))) - set(right) - set(hard))
    easy = drawn.sample(rest, min(NEGATIVES, len(rest)))
    groups = dict(zip(GROUPS, (embedded, keys[right], keys[hard], keys[easy]), strict=True))
    points, explained = principal_components(torch.cat(list(groups.values())))
    split = points.split([len(group) for group in groups.values()])
    return Neighbours(
        qid=qid,
        task=f"{task.dataset}_task{task.task_id}",
        text=query.text,
        points={name: part.tolist() for name, part in zip(groups, split, strict=True)},
        similarity={
            name: float((g @ embedded[0]).mean()) for name, g in groups.items() if len(g) and name != "query"
        },
        explained=explained,
    )


def principal_components(embeddings: Tensor) -> tuple[Tensor, float]:
    """``[n, D]`` float on its two first principal components, ``[n, 2]``, and their share of the variance in [0, 1].

    Signs are fixed (the largest coordinate of each component is positive), so that one input gives one picture.
    """
    centred = embeddings.double() - embeddings.double().mean(0)
    left, scale, _ = torch.linalg.svd(centred, full_matrices=False)
    points = torch.zeros(len(embeddings), 2, dtype=torch.float64)
    kept = (left * scale)[:, :2]
    largest = kept.gather(0, kept.abs().argmax(0, keepdim=True))
    points[:, : kept.shape[1]] = kept * torch.where(largest < 0, -1.0, 1.0)
    total = float((scale**2).sum())
    return points, float((scale[:2] ** 2).sum()) / total if total else 0.0


def draw_neighbours(found: Neighbours, path: Path) -> None:
    """Write the picture as PNG to ``path``."""
    from matplotlib.figure import Figure

    from elva.evaluation.plots import LIGHT

    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    axes = figure.subplots()
    styles: dict[str, dict[str, Any]] = {
        "easy negative": {"marker": "o", "s": 26, "color": LIGHT.arms[6], "alpha": 0.6},
        "hard negative": {"marker": "s", "s": 34, "color": LIGHT.arms[1]},
        "positive": {"marker": "^", "s": 90, "color": LIGHT.arms[2]},
        "query": {"marker": "*", "s": 220, "color": LIGHT.arms[0]},
    }
    for name, style in styles.items():
        points = found.points[name]
        if points:
            cosine = f" (cosine {found.similarity[name]:.2f})" if name in found.similarity else ""
            axes.scatter(*zip(*points, strict=True), label=name + cosine, linewidths=0, **style)
    title = found.text if found.text and len(found.text) <= 80 else found.qid
    axes.set_title(title, fontsize=10, color=LIGHT.ink, parse_math=False)
    axes.set_xlabel(
        f"two principal components, {100 * found.explained:.0f} % of the variance", color=LIGHT.ink
    )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(LIGHT.rule)
    axes.legend(frameon=False, fontsize=9, labelcolor=LIGHT.ink)
    figure.savefig(path, format="png", dpi=120, metadata={"Software": None})
