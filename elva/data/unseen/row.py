"""Write one row of the layout: numbered queries and candidates of one data set and task."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from elva.data.records import TASK_MODALITIES, Candidate, DataError, Query, shortened
from elva.data.unseen.source import LONGEST_NAME
from elva.data.unseen.tiles import open_picture
from elva.data.writer import IMAGE_FOLDER, MBEIRWriter
from elva.files import link_or_copy

SPLIT = "test"
_TASK_STEP = 10_000_000


class Row:
    """A data set and task; the instruction is the same for all of its queries."""

    def __init__(
        self, writer: MBEIRWriter, dataset: str, dataset_id: int, task_id: int, instruction: str
    ) -> None:
        self._writer, self.dataset, self.task_id = writer, dataset, task_id
        self._id, self._queries, self._candidates = dataset_id, 0, 0
        self._pictures: dict[str, Path] = {}
        self._asked, self._answered = TASK_MODALITIES[task_id]
        writer.add_instruction(self._asked, self._answered, dataset, dataset_id, [instruction])

    def link(self, picture: Path, where: str, name: str | None = None) -> str:
        """The picture's place below the new directory, as ``name`` (its own name by default).

        DataError, beginning with ``where`` (the record that names it), for a file that is no whole picture, and where
        another picture has that name already.
        """
        relative = f"{IMAGE_FOLDER}/{self.dataset}/{Path(name or picture.name).name}"
        known = self._pictures.get(relative)
        if known is None:
            open_picture(picture, where)
            try:
                link_or_copy(picture, self._writer.root / relative)
            except OSError as error:
                shown = shortened(relative, LONGEST_NAME)
                raise DataError(f"{where}: {shown}: cannot be written: {error.strerror}") from error
            self._pictures[relative] = picture
        elif known != picture:
            raise DataError(f"{where}: {picture}: {known} has the same name, expected different ones")
        return relative

    def candidate(self, text: str | None = None, image: str | None = None) -> str:
        """Add a candidate; its did."""
        did = self._identifier(self._candidates)
        self._candidates += 1
        self._writer.add_candidate(
            SPLIT, self.dataset, self.task_id, Candidate(did, text, image, self._answered)
        )
        return did

    def query(
        self,
        positives: Iterable[str],
        text: str | None = None,
        image: str | None = None,
        negatives: Iterable[str] = (),
    ) -> None:
        """Add a query; ``negatives`` are the rest of its own pool where it has one."""
        qid = self._identifier(self._queries)
        self._queries += 1
        query = Query(qid, text, image, self._asked, self.task_id, tuple(positives), tuple(negatives))
        self._writer.add_query(SPLIT, self.dataset, query)

    def _identifier(self, number: int) -> str:
        return f"{self._id}:{self.task_id * _TASK_STEP + number}"
