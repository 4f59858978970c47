"""How an evaluation hands queries and candidates to the encoder, and what it demands of the data first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from elva.data.check import check
from elva.data.instructions import clean, query_text
from elva.data.mbeir import (
    INSTRUCTIONS,
    TASK_MODALITIES,
    Candidate,
    DataError,
    MBEIRDirectory,
    Query,
    Task,
    global_pool_file,
    qrels_file,
    query_file,
)

if TYPE_CHECKING:
    from elva.models.encoder import MultimodalEncoder

Item = dict[str, Any]

SHOWN_PROBLEMS = 5
UNREACHABLE = "unreachable qrels"
AVERAGE = "average"


def require_sound(directory: MBEIRDirectory, tasks: Sequence[Task], split: str, pool: str = "local") -> None:
    """Raise DataError for problems (``elva.data.check``) of what an evaluation reads: how many, and the first five.

    Unreachable qrels do not stop an evaluation: M-BEIR's own OVEN and InfoSeek have them. They are counted in
    ``TaskRow.unreachable`` instead. Nor does what is wrong with other splits, other tasks or a pool not searched.
    """
    found = check(directory.root, _files_read(directory, tasks, split, pool))
    problems = [str(problem) for problem in found if not problem.message.startswith(UNREACHABLE)]
    if problems:
        noun = "problem" if len(problems) == 1 else "problems"
        advice = (
            f"{directory.root} has {len(problems)} {noun} in what this evaluation reads; "
            f"`elva data check {directory.root}` lists all, --no-check (check=False) evaluates all the same"
        )
        shown = problems[:SHOWN_PROBLEMS]
        more = [f"… and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
        raise DataError("\n".join([advice, *shown, *more]))


def _files_read(directory: MBEIRDirectory, tasks: Sequence[Task], split: str, pool: str) -> set[str]:
    """Relative to the root; local pools always, as multi-grain splits and the report's gallery search them."""
    files = {INSTRUCTIONS} | ({global_pool_file(split)} if pool == "global" else set())
    for task in tasks:
        files |= {query_file(split, *task), directory.local_pool_file(split, *task)}
        if split != "train":
            files.add(qrels_file(split, *task))
    return files


def parse_instructions(instructions: str) -> tuple[str, int]:
    """The (policy, seed) of ``Instructions.choose``; of the first wording for ``average``. ValueError otherwise."""
    policy, _, seed = instructions.partition(":")
    if instructions in ("fixed", AVERAGE):
        return "fixed", 0
    if policy == "random" and seed.isascii() and seed.isdigit():
        return "random", int(seed)
    raise ValueError(
        f"instructions must be 'fixed', 'random:SEED' (a whole number) or 'average', got {instructions!r}"
    )


class Inputs:
    """Turns records into encoder inputs: instruction + text in UniIR's cleaning, and the picture's path."""

    def __init__(self, directory: MBEIRDirectory, instructions: str = "fixed") -> None:
        self.directory = directory
        self._policy, self._seed = parse_instructions(instructions)
        self._averages = instructions == AVERAGE

    def wordings(self, queries: Sequence[Query]) -> list[int | None]:
        """The wordings to measure with: their numbers from 0 for ``average``, else the policy's own (None)."""
        if not self._averages:
            return [None]
        return list(range(max((len(self._prompts(query)) for query in queries), default=1)))

    def query(self, query: Query, wording: int | None = None) -> Item:
        """With the policy's instruction, or with wording number ``wording``; a query with fewer begins again."""
        if wording is not None:
            prompts = self._prompts(query)
            instruction = prompts[wording % len(prompts)]
        else:
            instruction = self.directory.instructions.choose(
                query, TASK_MODALITIES[query.task_id][1], policy=self._policy, seed=self._seed
            )
        return self._item(query_text(instruction, query.text), query.image)

    def _prompts(self, query: Query) -> list[str]:
        modality = TASK_MODALITIES[query.task_id][1]
        return self.directory.instructions.prompts(query.dataset_id, query.modality, modality)

    def candidate(self, candidate: Candidate) -> Item:
        return self._item(clean(candidate.text) or None, candidate.image)

    def _item(self, text: str | None, image: str | None) -> Item:
        return {"text": text, "image": str(self.directory.path(image)) if image else None}


class CandidateEmbeddings:
    """Embeddings of candidates, each encoded once however many pools and tasks it stands in."""

    def __init__(
        self, encoder: MultimodalEncoder, inputs: Inputs, mode: str = "direct", batch_size: int = 64
    ) -> None:
        self._encoder, self._inputs, self._mode, self._batch_size = encoder, inputs, mode, batch_size
        self._rows: dict[tuple[str, str | None, str | None], int] = {}
        self._embeddings: Tensor | None = None

    def __call__(self, pool: Sequence[Candidate]) -> Tensor:
        """``[len(pool), D]`` float32, in the pool's order. Raises DataError on an empty pool."""
        if not pool:
            raise DataError("a candidate pool is empty; run `elva data check` on the directory")
        new = {key: candidate for candidate in pool if (key := _identity(candidate)) not in self._rows}
        if new:
            items = [self._inputs.candidate(candidate) for candidate in new.values()]
            added = self._encoder.encode(
                items, mode=self._mode, batch_size=self._batch_size, show_progress=True
            ).float()
            self._rows.update(zip(new, range(len(self._rows), len(self._rows) + len(new)), strict=True))
            self._embeddings = added if self._embeddings is None else torch.cat([self._embeddings, added])
        assert self._embeddings is not None
        rows = [self._rows[_identity(candidate)] for candidate in pool]
        return self._embeddings if rows == list(range(len(self._rows))) else self._embeddings[rows]


def _identity(candidate: Candidate) -> tuple[str, str | None, str | None]:
    # A did alone could stand for two things in the pools of two tasks; then both are encoded.
    return candidate.did, candidate.text, candidate.image
