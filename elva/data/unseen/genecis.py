"""GeneCIS (Vaze et al., CVPR 2023): a picture and a word, searched in a small pool of each query's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image

from elva.data.records import DataError, described
from elva.data.unseen.protocol import UnseenSet
from elva.data.unseen.row import Row
from elva.data.unseen.source import Source, field, listed, sentence
from elva.data.unseen.tiles import open_picture
from elva.data.writer import IMAGE_FOLDER, MBEIRWriter
from elva.progress import track

TASKS = {
    "focus_attribute": "Find a picture of a thing that shares the named attribute with this one.",
    "change_attribute": "Find a picture of the same kind of thing, but with the named attribute.",
    "focus_object": "Find a picture of a scene like this one that shares the named object with it.",
    "change_object": "Find a picture of a scene like this one with the named object added.",
}
DILATION = 0.7
LONGEST_SIDE = 1e6
Place = Callable[[Any, str], str]


def _convert(source: Source, writer: MBEIRWriter) -> None:
    for number, (task, instruction) in enumerate(TASKS.items()):
        row = Row(writer, f"genecis_{task}", 44 + number, 7, instruction)
        place = _object_place(source, row) if task.endswith("object") else _crop_place(source, row, writer)
        _write_task(source, row, f"genecis/{task}.json", place)


def _write_task(source: Source, row: Row, file: str, place: Place) -> None:
    records = listed(source.json(file), file)
    dids: dict[str, str] = {}

    def candidate(sample: Any, where: str) -> str:
        image = place(sample, where)
        if image not in dids:
            dids[image] = row.candidate(image=image)
        return dids[image]

    for number, record in enumerate(track(records, f"Converting {row.dataset}", total=len(records))):
        where = f"{file}: record {number}"
        target = candidate(field(record, "target", dict, where), f"{where}.target")
        gallery = listed(field(record, "gallery", list, where), f"{where}.gallery")
        others = [candidate(sample, f"{where}.gallery[{i}]") for i, sample in enumerate(gallery)]
        row.query(
            [target],
            text=sentence(record, "condition", where),
            image=place(field(record, "reference", dict, where), f"{where}.reference"),
            negatives=[did for did in dict.fromkeys(others) if did != target],
        )


def _object_place(source: Source, row: Row) -> Place:
    def place(sample: Any, where: str) -> str:
        name = f"{field(sample, 'val_image_id', int, where):012d}.jpg"
        return row.link(source.path(f"coco/val2017/{name}", where), where)

    return place


def _crop_place(source: Source, row: Row, writer: MBEIRWriter) -> Place:
    def place(sample: Any, where: str) -> str:
        identifier = field(sample, "image_id", int, where)
        box = field(sample, "instance_bbox", list, where)
        if len(box) != 4 or not all(map(_is_side, box)) or min(box[2:]) <= 0:
            raise DataError(
                f"{where}: instance_bbox is {described(box)}, expected [left, top, width, height]"
            )
        path = source.path(f"visual_genome/{identifier}.jpg", where)
        name = "_".join([str(identifier), *(f"{side:.12g}" for side in box)])
        relative = f"{IMAGE_FOLDER}/{row.dataset}/{name}.png"
        if not (writer.root / relative).is_file():
            picture = open_picture(path, where)
            if not _touches(picture, box):
                size = f"{picture.width} × {picture.height} pixels"
                raise DataError(f"{where}: instance_bbox is {box}, outside of the picture of {size}")
            writer.save_image(relative, crop(picture, box))
        return relative

    return place


def _is_side(value: object) -> bool:
    """Whether a value is a number of pixels; also false for NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LONGEST_SIDE


def _touches(picture: Image.Image, box: list[float]) -> bool:
    """Whether the widened box has pixels of the picture."""
    left, top, width, height = box
    across = -(1 + DILATION) * width < left - DILATION * width < picture.width
    return across and -(1 + DILATION) * height < top - DILATION * height < picture.height


def crop(picture: Image.Image, box: list[float]) -> Image.Image:
    """The box, widened by ``DILATION`` and padded to a square with black, as the authors' evaluation does."""
    left, top, width, height = box
    left, top = max(0.0, left - DILATION * width), max(0.0, top - DILATION * height)
    right = min(picture.width, left + (1 + DILATION) * width)
    bottom = min(picture.height, top + (1 + DILATION) * height)
    inner = picture.crop(
        (round(left), round(top), max(round(right), round(left) + 1), max(round(bottom), round(top) + 1))
    )
    side = max(inner.size)
    square = Image.new("RGB", (side, side))
    square.paste(inner, ((side - inner.width) // 2, (side - inner.height) // 2))
    return square


GENECIS = UnseenSet(
    "genecis",
    tuple(f"genecis_{task}" for task in TASKS),
    ("R@1",),
    "GeneCIS needs genecis/*.json (github.com/facebookresearch/genecis), COCO's validation pictures of 2017 in "
    "coco/val2017/ (cocodataset.org) and Visual Genome's pictures in visual_genome/ "
    "(homes.cs.washington.edu/~ranjay/visualgenome).",
    _convert,
    own_pools=True,
)
