"""The instructions that precede M-BEIR's queries, chosen reproducibly, and UniIR's cleaning of texts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from elva.data.lines import numbered_lines
from elva.data.records import MAX_DIGITS, MODALITIES, DataError, Query, described, is_dataset_id

POLICIES = ("fixed", "random")
COLUMNS = (
    "query_modality",
    "cand_modality",
    "dataset_name",
    "dataset_id",
    "prompt_1",
    "prompt_2",
    "prompt_3",
    "prompt_4",
)


class InstructionRow(NamedTuple):
    """One line of ``query_instructions.tsv``: one to four wordings of one instruction."""

    query_modality: str
    cand_modality: str
    dataset_name: str
    dataset_id: int
    prompts: tuple[str, ...]


class Instructions:
    """Instructions by dataset id, query modality and candidate modality.

    Raises DataError when two rows share all three.
    """

    def __init__(self, rows: Iterable[InstructionRow]) -> None:
        self.rows = tuple(rows)
        self._prompts: dict[tuple[int, str, str], list[str]] = {}
        for row in self.rows:
            key = (row.dataset_id, row.query_modality, row.cand_modality)
            if key in self._prompts:
                raise DataError(
                    f"two instructions for dataset {row.dataset_id}, "
                    f"{row.query_modality} -> {row.cand_modality}; expected one row"
                )
            self._prompts[key] = list(row.prompts)

    @classmethod
    def read(cls, path: str | Path, shown: str | None = None) -> Instructions:
        """Read a tab-separated file with the header ``COLUMNS``; ``shown`` is its name in messages."""
        shown = str(path) if shown is None else shown
        rows = []
        try:
            for number, row in numbered_rows(Path(path)):
                if isinstance(row, ValueError):
                    raise DataError(f"{shown}:{number}: -: {row}") from row
                rows.append(row)
        except OSError as error:
            raise DataError(f"{shown}: cannot be read: {error.strerror}") from error
        return cls(rows)

    def prompts(self, dataset_id: int, query_modality: str, cand_modality: str) -> list[str]:
        """All wordings, prompt_1 first; DataError when there is no row."""
        try:
            return self._prompts[dataset_id, query_modality, cand_modality]
        except KeyError:
            raise DataError(
                f"no instruction for dataset {dataset_id}, {query_modality} -> {cand_modality}; "
                "expected a row in instructions/query_instructions.tsv"
            ) from None

    def choose(self, query: Query, cand_modality: str, policy: str = "fixed", seed: int = 0) -> str:
        """One wording for a query: prompt_1 (``fixed``), or one drawn by (seed, qid) alone (``random``).

        UniIR draws without a seed, even in evaluation; here the same seed gives the same wording everywhere.
        """
        if policy not in POLICIES:
            raise ValueError(f"policy is {policy!r}, expected one of {', '.join(POLICIES)}")
        try:
            prompts = self.prompts(query.dataset_id, query.modality, cand_modality)
        except DataError as error:
            raise DataError(f"{query.qid}: {error}") from None
        if policy == "fixed":
            return prompts[0]
        digest = hashlib.blake2b(f"{seed}/{query.qid}".encode(), digest_size=8).digest()
        return prompts[int.from_bytes(digest, "big") % len(prompts)]


def clean(text: str | None) -> str:
    """UniIR's cleaning: strip, strip double quotes, capitalise the first letter, end the sentence."""
    cleaned = (text or "").replace("\r", "").strip().strip('"')
    if not cleaned:
        return ""
    cleaned = cleaned[0].upper() + cleaned[1:]
    return cleaned if cleaned[-1] in ".?!" else f"{cleaned}."


def query_text(instruction: str, text: str | None) -> str:
    """The text of a query as UniIR writes it: cleaned instruction, space, the query's text; all cleaned."""
    return clean(f"{clean(instruction)} {text or ''}")


def numbered_rows(path: Path) -> Iterator[tuple[int, InstructionRow | ValueError]]:
    """The rows below the header with their lines; for a line that is none, what is wrong with it. Raises OSError."""
    number, header = 0, False
    for number, line in numbered_lines(path):
        try:
            text = line.decode("utf-8")
            if header:
                yield number, parse_row(text)
            else:
                header = True
                check_header(text)
        except ValueError as error:
            yield number, error
    if not header:
        yield max(number, 1), ValueError(f"header is absent, expected {', '.join(COLUMNS)}")


def check_header(line: str) -> None:
    """ValueError when a line is not the header of ``query_instructions.tsv``."""
    header = line.rstrip("\r\n").split("\t")
    if tuple(header[:5]) != COLUMNS[:5]:
        raise ValueError(f"header is {described(header)}, expected {', '.join(COLUMNS)}")


def parse_row(line: str) -> InstructionRow:
    """One tab-separated line; ValueError when a column is missing or wrong."""
    fields = [field.strip() for field in line.split("\t")]
    if len(fields) < 5:
        raise ValueError(f"{len(fields)} columns, expected {len(COLUMNS)}: {', '.join(COLUMNS)}")
    query_modality, cand_modality, name, number, *prompts = fields
    for column, modality in zip(COLUMNS, (query_modality, cand_modality), strict=False):
        if modality not in MODALITIES:
            raise ValueError(f"{column} is {described(modality)}, expected one of {MODALITIES}")
    if not is_dataset_id(number):
        raise ValueError(
            f"dataset_id is {described(number)}, expected a number of at most {MAX_DIGITS} digits"
        )
    wordings = tuple(prompt for prompt in prompts if prompt)
    if not wordings:
        raise ValueError("no prompt, expected at least prompt_1")
    return InstructionRow(query_modality, cand_modality, name, int(number), wordings)
