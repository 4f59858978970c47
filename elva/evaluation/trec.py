"""Run files and judgements as trec_eval, Pyserini and ranx read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

from elva.files import atomic_file
from elva.ops import similarity_topk

DEPTH = 100


def write_run(
    path: Path, tag: str, qids: Sequence[str], queries: Tensor, dids: Sequence[str], candidates: Tensor
) -> None:
    """The ``DEPTH`` best candidates of every query by inner product: ``qid Q0 did rank score tag``.

    Equal scores stand in the pool's order; tools that sort again by score may order them otherwise.
    """
    found = similarity_topk(queries, candidates, min(DEPTH, len(dids)), similarity="dot")
    name = "_".join(tag.split()) or "elva"
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for qid, indices, values in zip(qids, found.indices.tolist(), found.values.tolist(), strict=True):
            for rank, (index, value) in enumerate(zip(indices, values, strict=True), start=1):
                file.write(f"{qid} Q0 {dids[index]} {rank} {value:.9g} {name}\n")


def write_qrels(path: Path, qids: Iterable[str], relevant: Iterable[Sequence[str]]) -> None:
    """Right answers in four columns (M-BEIR's own files have five): ``qid 0 did 1``."""
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for qid, dids in zip(qids, relevant, strict=True):
            file.writelines(f"{qid} 0 {did} 1\n" for did in dids)
