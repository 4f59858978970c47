"""From a catalogue to an M-BEIR directory."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from elva.data.catalog.context import (
    DATASET,
    DATASET_ID,
    MULTI_GRAIN,
    MULTI_GRAIN_ID,
    Context,
    Part,
    TaskData,
    image_path,
)
from elva.data.catalog.items import Catalog, read_catalog
from elva.data.catalog.multigrain import multi_grain_test
from elva.data.catalog.prompts import PROMPTS
from elva.data.catalog.sentences import Vocabulary
from elva.data.catalog.splits import SPLIT_BY, split_items
from elva.data.catalog.tasks import by_attributes, by_change
from elva.data.catalog.texts import image_to_image, image_to_text, question_to_text, text_to_text
from elva.data.wording import comparable
from elva.data.writer import MBEIRWriter
from elva.files import atomic_directory

SUMMARY = "catalog.json"


def convert(
    items: Path,
    out: Path,
    grains: Sequence[str],
    image_field: str = "image",
    alt_image_field: str | None = None,
    text_field: str = "text",
    split_by: str = "combinations",
    seed: int = 0,
) -> None:
    """Write the M-BEIR directory ``out`` from a catalogue: datasets ``catalog`` (30) and ``catalog_multigrain`` (31).

    ``items`` is a JSON-lines file of pictures with attributes; picture paths are relative to it. ``grains`` are the
    attributes' keys, in the order in which the questions go through them. ``pos_cand_list`` names every candidate
    of the query's local pool (in training: of the task's candidates) that satisfies it, ``neg_cand_list`` some that
    miss exactly one grain. ``split_by`` is ``"combinations"`` (no set of grain values of a test item occurs in
    training, each single value does) or ``"items"``. ``out/catalog.json`` counts what was made, and what was
    left out (copies of pictures) or read as missing ("nan"); a warning says so too. The same arguments give the same
    files.

    The multi-grain test borrows training pictures as distractors. They stand in the global test pool too, where
    they may satisfy ordinary queries whose positives come from their own pool: evaluate locally.

    Raises ValueError for wrong arguments, DataError for a catalogue that cannot be used (naming file and line), and
    FileExistsError where ``out`` holds something; ``out`` appears whole or not at all.
    """
    if isinstance(grains, str) or not grains or len(set(map(comparable, grains))) < len(grains):
        raise ValueError(f"grains is {grains!r}, expected a list of at least one attribute key, each once")
    if split_by not in SPLIT_BY:
        raise ValueError(f"split_by is {split_by!r}, expected one of {', '.join(SPLIT_BY)}")
    with atomic_directory(out) as root:
        catalog = read_catalog(Path(items), grains, image_field, alt_image_field, text_field)
        _warn(Path(items), catalog)
        parts = [Part(split, part) for split, part in split_items(catalog.items, split_by, seed).items()]
        with MBEIRWriter(root) as writer:
            summary = _write_tasks(
                writer, catalog, parts, grains, seed, second_pictures=alt_image_field is not None
            )
            _write_instructions(writer)
        _copy_images(catalog, root)
        (root / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


def _write_tasks(
    writer: MBEIRWriter,
    catalog: Catalog,
    parts: Sequence[Part],
    grains: Sequence[str],
    seed: int,
    second_pictures: bool,
) -> dict[str, Any]:
    context = Context(Vocabulary(catalog.items, grains, catalog.list_keys), seed)
    summary: dict[str, Any] = {"left_out": catalog.left_out, "read_as_missing": catalog.missing}
    summary |= {
        part.split: {"items": len(part.items), "combinations": len({item.grains for item in part.items})}
        for part in parts
    }
    for part in parts:
        for task in _tasks(context, part, second_pictures):
            _write(writer, part.split, task)
            summary[part.split][f"{task.dataset} task{task.task_id}"] = _counts(task)
    train, _, test = parts
    multi_grain = multi_grain_test(context, train, test)
    _write(writer, test.split, multi_grain.data)
    summary["test"][f"{MULTI_GRAIN} task0"] = _counts(multi_grain.data) | {"by_grains": multi_grain.counts}
    return summary


def _tasks(context: Context, part: Part, second_pictures: bool) -> list[TaskData]:
    tasks = [
        by_attributes(context, part, 0),
        text_to_text(context, part),
        by_attributes(context, part, 2),
        image_to_text(context, part),
        image_to_image(context, part, second_pictures),
        question_to_text(context, part),
        by_change(context, part, 7),
        by_change(context, part, 8),
    ]
    # A small catalogue has no pair of items for some tasks; a pool without queries would be no task.
    return [task for task in tasks if task.queries]


def _write(writer: MBEIRWriter, split: str, task: TaskData) -> None:
    for candidate in task.pool:
        writer.add_candidate(split, task.dataset, task.task_id, candidate)
    for query in task.queries:
        writer.add_query(split, task.dataset, query)


def _write_instructions(writer: MBEIRWriter) -> None:
    for (query_modality, candidate_modality), prompts in PROMPTS.items():
        writer.add_instruction(query_modality, candidate_modality, DATASET, DATASET_ID, prompts)
    writer.add_instruction("text", "image", MULTI_GRAIN, MULTI_GRAIN_ID, PROMPTS["text", "image"])


def _copy_images(catalog: Catalog, root: Path) -> None:
    for item in catalog.items:
        for relative in filter(None, (item.image, item.alt_image)):
            target = root / image_path(relative)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(catalog.folder / relative, target)


def _warn(path: Path, catalog: Catalog) -> None:
    """Say what the directory will lack."""
    for kind, count in catalog.left_out.items():
        warnings.warn(f"{path}: {kind} left out, copies of pictures of the catalogue: {count}", stacklevel=3)
    for key, counts in catalog.missing.items():
        for text, count in counts.items():
            warnings.warn(f"{path}: {key}: {text!r} read as no value: {count} times", stacklevel=3)


def _counts(task: TaskData) -> dict[str, int]:
    return {"queries": len(task.queries), "pool": len(task.pool)}
