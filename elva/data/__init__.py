"""Data: the M-BEIR format, its checker, and the sources that produce it."""

from __future__ import annotations

from elva.data.instructions import Instructions, clean, query_text
from elva.data.mbeir import MBEIRDirectory
from elva.data.records import MODALITIES, TASK_MODALITIES, Candidate, DataError, Grain, Query, Task
from elva.data.writer import MBEIRWriter

__all__ = [
    "MODALITIES",
    "TASK_MODALITIES",
    "Candidate",
    "DataError",
    "Grain",
    "Instructions",
    "MBEIRDirectory",
    "MBEIRWriter",
    "Query",
    "Task",
    "clean",
    "query_text",
]
