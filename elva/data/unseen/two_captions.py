"""A picture and two captions, one of them wrong: SugarCrepe and CC-Neg."""

from __future__ import annotations

from typing import Any

from elva.data.records import DataError
from elva.data.unseen.protocol import UnseenSet
from elva.data.unseen.row import Row
from elva.data.unseen.source import Source, field, listed, sentence
from elva.data.writer import MBEIRWriter
from elva.progress import track

INSTRUCTION = "Find the caption that describes this picture."
EDITS = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
CCNEG_FILE = "ccneg_preprocessed.pt"
CCNEG_IMAGES = "ccneg_images/cc3m_subset_images_extracted_final"
CCNEG_SIZE = 40_000
"""The authors test on the last 40,000 and train on the others."""


def _convert_sugarcrepe(source: Source, writer: MBEIRWriter) -> None:
    for number, edit in enumerate(EDITS):
        row = Row(writer, f"sugarcrepe_{edit}", 52 + number, 3, INSTRUCTION)
        file = f"data/{edit}.json"
        records = source.json(file)
        if not isinstance(records, dict) or not records:
            raise DataError(f'{file}: expected an object {{"0": record, …}}, got {type(records).__name__}')
        for key, record in track(records.items(), f"Converting {row.dataset}", total=len(records)):
            where = f"{file}: record {key}"
            image = row.link(source.path(f"val2017/{field(record, 'filename', str, where)}", where), where)
            _add(row, image, sentence(record, "caption", where), sentence(record, "negative_caption", where))


def _convert_ccneg(source: Source, writer: MBEIRWriter) -> None:
    row = Row(writer, "ccneg", 59, 3, INSTRUCTION)
    data = _load(source)
    paths = listed(field(data, "image_paths", list, CCNEG_FILE), CCNEG_FILE)
    annotations = listed(field(data, "annotations", list, CCNEG_FILE), CCNEG_FILE)
    if len(paths) != len(annotations):
        raise DataError(f"{CCNEG_FILE}: {len(paths)} image_paths but {len(annotations)} annotations")
    first = max(0, len(paths) - CCNEG_SIZE)
    for number in track(range(first, len(paths)), "Converting ccneg", total=len(paths) - first):
        where = f"{CCNEG_FILE}: annotations[{number}]"
        caption = sentence(field(annotations[number], "json", dict, where), "caption", where)
        negated = sentence(field(annotations[number], "sop_data", dict, where), "negative-prompt", where)
        name = str(paths[number]).replace("\\", "/").rsplit("/", 1)[-1]
        _add(
            row,
            row.link(source.path(f"{CCNEG_IMAGES}/{name}", where), where),
            caption,
            negated.replace(",", ""),
        )


def _load(source: Source) -> Any:
    import pickle

    import torch

    try:
        return torch.load(source.path(CCNEG_FILE), map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(f"{CCNEG_FILE}: cannot be read: {error}") from error


def _add(row: Row, image: str, caption: str, wrong: str) -> None:
    row.query([row.candidate(text=caption)], image=image, negatives=[row.candidate(text=wrong)])


SUGARCREPE = UnseenSet(
    "sugarcrepe",
    tuple(f"sugarcrepe_{edit}" for edit in EDITS),
    ("accuracy",),
    "SugarCrepe needs data/*.json (github.com/RAIVNLab/sugar-crepe) and COCO's validation pictures of 2017 in val2017/ "
    "(cocodataset.org).",
    _convert_sugarcrepe,
    own_pools=True,
)
CCNEG = UnseenSet(
    "ccneg",
    ("ccneg",),
    ("accuracy",),
    f"CC-Neg needs {CCNEG_FILE} and the pictures of ccneg_images.tar.gz in {CCNEG_IMAGES}/ "
    "(github.com/jaisidhsingh/CoN-CLIP, folder ccneg_dataset).",
    _convert_ccneg,
    own_pools=True,
)
