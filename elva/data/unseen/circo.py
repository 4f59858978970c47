"""CIRCO (Baldrati et al., ICCV 2023): a picture and a change, several right answers in a large pool."""

from __future__ import annotations

from elva.data.records import DataError, described
from elva.data.unseen.protocol import UnseenSet
from elva.data.unseen.row import Row
from elva.data.unseen.source import Source, field, integers, listed, sentence
from elva.data.writer import MBEIRWriter
from elva.progress import track

ANNOTATIONS = "annotations/val.json"
POOL = "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json"
IMAGES = "COCO2017_unlabeled/unlabeled2017"


def _convert(source: Source, writer: MBEIRWriter) -> None:
    row = Row(
        writer, "circo_val", 43, 7, "Find a picture like this one, with the change that the text asks for."
    )
    pool = listed(field(source.json(POOL), "images", list, POOL), POOL)
    dids, places = {}, {}
    for number, record in enumerate(track(pool, "Linking CIRCO's pool", total=len(pool))):
        where = f"{POOL}: images[{number}]"
        identifier = field(record, "id", int, where)
        if identifier in dids:
            raise DataError(f"{where}: id {described(identifier)} stands twice, expected once")
        name = field(record, "file_name", str, where)
        places[identifier] = row.link(source.path(f"{IMAGES}/{name}", where), where)
        dids[identifier] = row.candidate(image=places[identifier])
    for number, record in enumerate(listed(source.json(ANNOTATIONS), ANNOTATIONS)):
        where = f"{ANNOTATIONS}: record {number}"
        reference = field(record, "reference_img_id", int, where)
        right = integers(record, "gt_img_ids", where)
        for identifier in (reference, *right):
            if identifier not in dids:
                raise DataError(f"{where}: picture {described(identifier)} is not in {POOL}")
        row.query(
            [dids[identifier] for identifier in dict.fromkeys(right)],
            text=sentence(record, "relative_caption", where),
            image=places[reference],
        )


CIRCO = UnseenSet(
    "circo",
    ("circo_val",),
    ("mAP@5",),
    f"CIRCO needs {ANNOTATIONS} (github.com/miccunifi/CIRCO) and COCO's unlabelled pictures of 2017 in {IMAGES}/ with "
    f"{POOL} (cocodataset.org). The answers of its test part are known to its server only: this is the val part.",
    _convert,
)
