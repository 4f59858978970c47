"""Faults in the authors' files of the unseen sets: one line that names the file and the entry."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from elva.data.mbeir import DataError
from elva.data.unseen import convert_unseen
from elva.data.unseen.source import Source
from tests.data.unseen_sources import MAKERS, written

VALUES = [
    math.inf,
    math.nan,
    10**400,
    -(10**400),
    1e300,
    "7",
    "",
    None,
    True,
    [[1]],
    [],
    {},
    "x" * 300,
    "a\0b",
]
"""What stands in no annotation file: as an id, an index, a side, a name or a text."""

CIRCO_POOL = "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json"
PLACES = [
    ("circo", "annotations/val.json", (0, "reference_img_id")),
    ("circo", "annotations/val.json", (0, "gt_img_ids")),
    ("circo", "annotations/val.json", (0, "gt_img_ids", 0)),
    ("circo", CIRCO_POOL, ("images", 0, "file_name")),
    ("genecis", "genecis/focus_attribute.json", (0, "target")),
    ("genecis", "genecis/focus_attribute.json", (0, "gallery", 0)),
    ("genecis", "genecis/focus_attribute.json", (0, "target", "image_id")),
    ("genecis", "genecis/focus_attribute.json", (0, "target", "instance_bbox")),
    ("genecis", "genecis/focus_attribute.json", (0, "target", "instance_bbox", 0)),
    ("genecis", "genecis/focus_attribute.json", (0, "target", "instance_bbox", 2)),
    ("genecis", "genecis/focus_object.json", (0, "reference", "val_image_id")),
    ("fashioniq-multiturn", "image_splits/split.dress.val.json", (1,)),
    ("fashioniq-multiturn", "data/dress.val.json", (0, "target")),
    ("fashioniq-multiturn", "data/dress.val.json", (0, "target", 1)),
    ("fashioniq-multiturn", "data/dress.val.json", (0, "reference", 1)),
    ("fashioniq-multiturn", "data/dress.val.json", (0, "reference", 1, 1)),
    ("fashioniq-multiturn", "data/dress.val.json", (0, "reference", 1, 2)),
    ("visdial", "visdial_1.0_val.json", ("data", "dialogs", 0, "image_id")),
    ("visdial", "visdial_1.0_val.json", ("data", "dialogs", 0, "dialog", 0, "answer")),
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def put(file: Path, place: tuple[int | str, ...], value: Any) -> None:
    whole = json.loads(file.read_text(encoding="utf-8"))
    record = whole
    for step in place[:-1]:
        record = record[step]
    record[place[-1]] = value
    written(file, whole)


@pytest.mark.parametrize(("name", "file", "place"), PLACES)
def test_a_value_that_cannot_be_is_named_with_file_and_entry(
    name: str, file: str, place: tuple[int | str, ...], source: Path
) -> None:
    MAKERS[name](source)
    sound = (source / file).read_text(encoding="utf-8")
    for value in VALUES:
        (source / file).write_text(sound, encoding="utf-8")
        put(source / file, place, value)
        with pytest.raises(DataError) as caught:
            convert_unseen(name, source, source.parent / "out")
        message = str(caught.value)
        assert message.startswith(f"{file}: "), message
        entry = next(step for step in place if isinstance(step, int))
        assert f"entry {entry}" in message or f"record {entry}" in message or f"[{entry}]" in message, message
        assert len(message.splitlines()) == 1 and len(message) < 1000


FIRST_PICTURES = [
    ("flickr30k", "flickr30k-images/1.jpg", "dataset_flickr30k.json: images[1]"),
    ("sharegpt4v", "sam/images/sa_0.jpg", "share-captioner_coco_lcs_sam_1246k_1107.json: record 0"),
    ("urban1k", "image/1.jpg", "caption/1.txt"),
    ("circo", "COCO2017_unlabeled/unlabeled2017/000000085932.jpg", f"{CIRCO_POOL}: images[0]"),
    ("genecis", "coco/val2017/000000000001.jpg", "genecis/focus_object.json: record 0.target"),
    ("genecis", "visual_genome/1.jpg", "genecis/focus_attribute.json: record 0.target"),
    (
        "visdial",
        "VisualDialog_val2018/VisualDialog_val2018_000000000007.jpg",
        "visdial_1.0_val.json: dialogs[0]",
    ),
    ("fashioniq-multiturn", "images/B0dress0.jpg", "image_splits/split.dress.val.json: entry 0"),
    ("sugarcrepe", "val2017/000000544519.jpg", "data/add_att.json: record 0"),
    (
        "ccneg",
        "ccneg_images/cc3m_subset_images_extracted_final/0.jpg",
        "ccneg_preprocessed.pt: annotations[0]",
    ),
]


@pytest.mark.parametrize(("name", "file", "where"), FIRST_PICTURES)
def test_every_picture_is_opened_before_it_is_linked(name: str, file: str, where: str, source: Path) -> None:
    MAKERS[name](source)
    whole = (source / file).read_bytes()
    for content in (b"no picture", whole[: len(whole) // 2], b""):
        (source / file).write_bytes(content)
        with pytest.raises(DataError) as caught:
            convert_unseen(name, source, source.parent / "out")
        assert str(caught.value).startswith(f"{where}: {source / file}: cannot be read as a picture: ")
    (source / file).unlink()
    (source / file).mkdir()
    with pytest.raises(DataError, match=r"a picture|not there"):
        convert_unseen(name, source, source.parent / "out")


@pytest.mark.parametrize("box", [[300, 5, 20, 30], [10, -90, 20, 30]])
def test_a_box_outside_of_its_picture_is_named(box: list[int], source: Path) -> None:
    MAKERS["genecis"](source)
    put(source / "genecis/focus_attribute.json", (0, "target", "instance_bbox"), box)
    with pytest.raises(
        DataError, match=r"record 0\.target: instance_bbox is .*, outside of the picture of 100 × 80"
    ):
        convert_unseen("genecis", source, source.parent / "out")


def test_one_id_for_two_pictures_is_refused(source: Path) -> None:
    MAKERS["circo"](source)
    put(source / CIRCO_POOL, ("images", 1, "id"), 85932)
    with pytest.raises(DataError, match=r"images\[1\]: id 85932 stands twice"):
        convert_unseen("circo", source, source.parent / "out")


def test_a_picture_whose_new_name_is_too_long(source: Path) -> None:
    MAKERS["sharegpt4v"](source)
    name = "/".join(["x" * 100] * 3) + ".jpg"
    (source / name).parent.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(source / name)
    put(source / "share-captioner_coco_lcs_sam_1246k_1107.json", (0, "image"), name)
    with pytest.raises(
        DataError, match=r"record 0: mbeir_images/sharegpt4v/x*.*: cannot be written: File name too long"
    ):
        convert_unseen("sharegpt4v", source, source.parent / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n" + "x" * 131_073 + ",2\n", "a.csv:3: malformed csv: field larger than field limit"),
        ("a,b\n1,2\n1,a woman, on a couch\n", "a.csv:3: 3 columns, expected 2"),
        ("a,b,a\n1,2,3\n", "a.csv:1: header is ['a', 'b', 'a'], expected each column once"),
    ],
)
def test_a_faulty_csv_line_is_named(content: str, message: str, source: Path) -> None:
    written(source / "a.csv", content)
    with pytest.raises(DataError) as caught:
        list(Source(source, "").csv("a.csv"))
    assert str(caught.value).startswith(message)
