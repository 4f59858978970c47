"""Every unseen set from a few records in its authors' format, to M-BEIR's layout and its check."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from elva.data.check import check
from elva.data.mbeir import Candidate, DataError, MBEIRDirectory, Query
from elva.data.unseen import SETS, convert_unseen, unseen_set_of
from elva.data.unseen.genecis import crop
from elva.data.unseen.source import Source
from tests.data.unseen_sources import COLOURS, MAKERS, flickr30k, msrvtt, picture, urban1k, video, written


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def converted(name: str, source: Path) -> MBEIRDirectory:
    MAKERS[name](source)
    out = source.parent / "out"
    convert_unseen(name, source, out)
    assert [str(problem) for problem in check(out)] == []
    return MBEIRDirectory(out)


def rows(directory: MBEIRDirectory, dataset: str, task: int) -> tuple[list[Query], dict[str, Candidate]]:
    pool = directory.pool("test", dataset, task)
    return directory.queries("test", dataset, task), {candidate.did: candidate for candidate in pool}


def test_every_set_is_tested() -> None:
    assert MAKERS.keys() == SETS.keys()


@pytest.mark.parametrize("name", SETS)
def test_rows_are_those_that_the_set_names(name: str, source: Path) -> None:
    directory = converted(name, source)
    assert {task.dataset for task in directory.tasks("test")} == set(SETS[name].datasets)
    for task in directory.tasks("test"):
        assert unseen_set_of(task.dataset) is SETS[name]
        for query in directory.queries("test", *task):
            assert bool(query.negatives) == SETS[name].own_pools


@pytest.mark.parametrize("name", SETS)
def test_what_is_missing_is_named_with_its_origin(name: str, source: Path) -> None:
    with pytest.raises(DataError, match="not there") as caught:
        convert_unseen(name, source, source.parent / "out")
    assert SETS[name].download in str(caught.value)
    assert not list((source.parent / "out").rglob("*.jsonl"))


def test_flickr30k(source: Path) -> None:
    directory = converted("flickr30k", source)
    asked, pictures = rows(directory, "flickr30k", 0)
    assert [query.text for query in asked][:2] == ["Caption 0 of picture 1 .", "Caption 1 of picture 1 ."]
    assert pictures[asked[1].positives[0]].image == "mbeir_images/flickr30k/1.jpg"
    shown, captions = rows(directory, "flickr30k", 3)
    assert len(shown) == 2 and len(captions) == 4
    assert [captions[did].text for did in shown[1].positives] == [query.text for query in asked[2:]]


def test_sharegpt4v_and_urban1k(source: Path) -> None:
    asked, pictures = rows(converted("sharegpt4v", source), "sharegpt4v", 0)
    assert pictures[asked[1].positives[0]].image == "mbeir_images/sharegpt4v/sam_images_sa_1.jpg"
    assert [query.text for query in asked] == ["A long caption 0.", "A long caption 1."]
    other = source.parent / "urban"
    other.mkdir()
    urban1k(other)
    (other / "caption/._1.txt").write_bytes(b"\0\5\x16\7 of macOS")
    convert_unseen("urban1k", other, source.parent / "urban_out")
    asked, pictures = rows(MBEIRDirectory(source.parent / "urban_out"), "urban1k", 0)
    assert [(query.text, pictures[query.positives[0]].image) for query in asked] == [
        (f"The street number {n}.", f"mbeir_images/urban1k/{n}.jpg") for n in (1, 2, 10)
    ]


def test_circo_has_several_right_answers(source: Path) -> None:
    (query,), pool = rows(converted("circo", source), "circo_val", 7)
    assert query.text == "is seen from above" and query.image is not None and "85932" in query.image
    assert [pool[did].image for did in query.positives] == [
        f"mbeir_images/circo_val/{number:012d}.jpg" for number in (9761, 231)
    ]
    assert len(pool) == 4


def test_genecis_crops_things_and_keeps_galleries_apart(source: Path) -> None:
    directory = converted("genecis", source)
    (query,), pool = rows(directory, "genecis_change_object", 7)
    assert query.text == "red" and len(query.negatives) == 2 and len(pool) == 3
    (query,), pool = rows(directory, "genecis_focus_attribute", 7)
    with Image.open(directory.path(pool[query.positives[0]].image or "")) as cropped:
        # the box [10, 5, 20, 30] widened: from (0, 0) to (34, 51), then padded to a square
        assert cropped.size == (51, 51)
        assert cropped.getpixel((0, 25)) == (0, 0, 0) and cropped.getpixel((25, 25)) != (0, 0, 0)


def test_a_crop_stays_inside_the_picture() -> None:
    square = crop(Image.new("RGB", (100, 80), (255, 255, 255)), [90, 70, 10, 10])
    # left = 90 - 7, right = min(100, 83 + 17); top = 63, bottom = 80
    assert square.size == (17, 17)


def test_visdial_is_one_text(source: Path) -> None:
    (query, _), pool = rows(converted("visdial", source), "visdial", 0)
    assert query.text == "a man with 7 dogs. is it sunny? yes. any trees? no, i can't see."
    assert pool[query.positives[0]].image == "mbeir_images/visdial/VisualDialog_val2018_000000000007.jpg"


def test_turns_are_tiled_from_left_to_right(source: Path) -> None:
    directory = converted("fashioniq-multiturn", source)
    (query,), pool = rows(directory, "fashioniq_multiturn_shirt", 7)
    assert query.text == "Turn 1: is darker and is longer. Turn 2: is darker and is longer."
    assert (
        len(pool) == 4
        and pool[query.positives[0]].image == "mbeir_images/fashioniq_multiturn_shirt/B0shirt2.png"
    )
    with Image.open(directory.path(query.image or "")) as tiled:
        assert tiled.size == (120, 90)
        left, right = tiled.getpixel((30, 45)), tiled.getpixel((90, 45))
    assert left[0] > 150 > left[1] and right[1] > 150 > right[0]


def test_two_captions_are_a_pool(source: Path) -> None:
    (query,), pool = rows(converted("sugarcrepe", source), "sugarcrepe_swap_att", 3)
    assert pool[query.positives[0]].text == "A girl with a green shirt."
    assert [pool[did].text for did in query.negatives] == ["A girl, blue."]


def test_ccneg_drops_commas_and_takes_the_end(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elva.data.unseen.two_captions.CCNEG_SIZE", 2)
    queries, pool = rows(converted("ccneg", source), "ccneg", 3)
    assert [pool[query.positives[0]].text for query in queries] == ["1 people", "2 people"]
    assert pool[queries[0].negatives[0]].text == "a beach not with 1 people"


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("owned",)


def test_ccneg_runs_nothing_that_the_file_asks_for(
    source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"image_paths": _Evil()}, source / "ccneg_preprocessed.pt")
    with pytest.raises(DataError, match="cannot be read"):
        convert_unseen("ccneg", source, tmp_path / "out")
    assert not (tmp_path / "owned").exists()


def test_a_video_is_eight_frames_in_order(source: Path) -> None:
    directory = converted("msrvtt", source)
    queries, pool = rows(directory, "msrvtt", 0)
    assert [query.text for query in queries] == ["a woman, on a couch", "a car"]
    with Image.open(directory.path(pool[queries[0].positives[0]].image or "")) as tiled:
        assert tiled.size == (4 * 64, 2 * 48)
        first, last = tiled.getpixel((3 * 64 + 32, 24)), tiled.getpixel((32, 72))
    # the first half is red, the second blue: four frames each
    assert first[0] > 150 > first[2] and last[2] > 150 > last[0]


def test_msvd_has_every_description_of_the_list(source: Path) -> None:
    queries, pool = rows(converted("msvd", source), "msvd", 0)
    assert [query.text for query in queries] == ["A bird in a sink.", "A bird bathes.", "A cat."]
    assert len(pool) == 2 and queries[0].positives == queries[1].positives


@pytest.mark.parametrize(
    ("name", "file", "broken", "message"),
    [
        ("flickr30k", "dataset_flickr30k.json", "[", "malformed JSON"),
        (
            "flickr30k",
            "dataset_flickr30k.json",
            {"images": [{"split": "test"}]},
            r"images\[0\]: sentences is null",
        ),
        ("urban1k", "caption/1.txt", "", "its first line is empty"),
        (
            "circo",
            "annotations/val.json",
            [{"reference_img_id": 1, "gt_img_ids": [2]}],
            "record 0: picture 1 is not in",
        ),
        (
            "genecis",
            "genecis/focus_object.json",
            [{"target": {"val_image_id": "7"}}],
            'val_image_id is "7", expected int',
        ),
        (
            "genecis",
            "genecis/focus_attribute.json",
            '[{"target": {"image_id": 1, "instance_bbox": [0, 0, NaN, 5]}}]',
            r"record 0\.target: instance_bbox is \[0, 0, nan, 5\], expected \[left, top",
        ),
        ("visdial", "visdial_1.0_val.json", {"data": {"dialogs": [{"image_id": True}]}}, "image_id is true"),
        (
            "fashioniq-multiturn",
            "data/dress.val.json",
            [{"target": ["B1"]}],
            r"record 0: expected target \[url, ASIN\]",
        ),
        ("circo", "annotations/val.json", "\0[\0]", "the file is UTF-16 text, expected UTF-8 text"),
        ("sugarcrepe", "data/add_att.json", [], "expected an object"),
        ("sugarcrepe", "data/add_att.json", '{"0": {}, "0": {}}', "the key '0' stands twice in one object"),
        ("msrvtt", "MSRVTT_JSFUSION_test.csv", "a,b\n1,2\n", "video_id is null"),
        (
            "msvd",
            "AllVideoDescriptions.txt",
            "mv89psg6zh4_33_46 A bird.\n",
            "no description of _O9kWD8nuRU_45_49",
        ),
    ],
)
def test_a_faulty_record_is_named_with_its_file(
    name: str, file: str, broken: Any, message: str, source: Path
) -> None:
    MAKERS[name](source)
    written(source / file, broken)
    with pytest.raises(DataError, match=message) as caught:
        convert_unseen(name, source, source.parent / "out")
    assert file in str(caught.value)
    assert not list((source.parent / "out").rglob("*.jsonl"))


def test_an_unreadable_video_is_named(source: Path) -> None:
    msrvtt(source)
    written(source / "videos/all/video7021.mp4", "no video")
    with pytest.raises(DataError, match=r"video7021\.mp4: cannot be read as a video"):
        convert_unseen("msrvtt", source, source.parent / "out")
    # what was sampled before is kept, and the same call goes on
    video(source / "videos/all/video7021.mp4", [COLOURS[1]])
    first = source.parent / "out/mbeir_images/msrvtt/video7020.jpg"
    before = first.stat().st_mtime_ns
    convert_unseen("msrvtt", source, source.parent / "out")
    assert first.stat().st_mtime_ns == before


def test_pictures_of_one_name_are_not_confused(source: Path) -> None:
    flickr30k(source)
    record = json.loads((source / "dataset_flickr30k.json").read_text())
    picture(source / "flickr30k-images/other/1.jpg", 3)
    record["images"][2]["filename"] = "other/1.jpg"
    written(source / "dataset_flickr30k.json", record)
    with pytest.raises(DataError, match=r"other/1\.jpg: .* has the same name"):
        convert_unseen("flickr30k", source, source.parent / "out")


def test_unknown_names_and_places(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no set 'coco', expected one of flickr30k"):
        convert_unseen("coco", tmp_path, tmp_path / "out")
    with pytest.raises(NotADirectoryError, match="Flickr30k needs"):
        convert_unseen("flickr30k", tmp_path / "nowhere", tmp_path / "out")


def test_sugarcrepes_texts_on_real_captions(source: Path, shared_data: Path) -> None:
    """coco_grains holds SugarCrepe's edits of COCO's captions: written back in its format, they come out the same."""
    path = shared_data / "coco_grains/test.jsonl"
    real: dict[str, list[tuple[str, str, str]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        name = f"{record['image_id']:012d}.jpg"
        for negative in record["negatives"]:
            real.setdefault(negative["edit"], []).append((name, record["caption"], negative["text"]))
    for edit in SETS["sugarcrepe"].datasets:
        edit = edit.removeprefix("sugarcrepe_")
        texts = [
            dict(zip(("filename", "caption", "negative_caption"), each, strict=True)) for each in real[edit]
        ]
        written(source / f"data/{edit}.json", {str(number): text for number, text in enumerate(texts)})
        for name, _, _ in real[edit]:
            if not (source / "val2017" / name).exists():
                picture(source / "val2017" / name)
    convert_unseen("sugarcrepe", source, source.parent / "out")
    directory = MBEIRDirectory(source.parent / "out")
    for edit, expected in real.items():
        queries, pool = rows(directory, f"sugarcrepe_{edit}", 3)
        found = [
            (Path(query.image or "").name, pool[query.positives[0]].text, pool[query.negatives[0]].text)
            for query in queries
        ]
        assert found == [(name, *(" ".join(text.split()) for text in pair)) for name, *pair in expected]


def test_names_that_lead_out_of_the_source_are_refused(source: Path) -> None:
    flickr30k(source)
    (source.parent / "secret.jpg").write_text("secret")
    (file,) = [path for path in source.rglob("*.json") if "filename" in path.read_text()]
    file.write_text(re.sub(r'("filename": )"[^"]*"', r'\1"../../secret.jpg"', file.read_text()))
    with pytest.raises(DataError, match="path leaves the directory, expected one inside"):
        convert_unseen("flickr30k", source, source.parent / "out")
    assert not list(source.parent.glob("out/**/*secret*"))


def test_absolute_names_in_a_source_are_refused(source: Path) -> None:
    (source.parent / "secret.jpg").write_text("secret")
    reader = Source(source, "")
    for read in (
        lambda: reader.path(str(source.parent / "secret.jpg")),
        lambda: reader.picture("images", str(source.parent / "secret"), "record 0"),
    ):
        with pytest.raises(DataError, match=r"secret\.jpg: path leaves the directory"):
            read()


def test_crops_of_neighbouring_numbers_have_files_of_their_own(source: Path) -> None:
    MAKERS["genecis"](source)
    numbers = dict(zip(range(4), range(2370806, 2370810), strict=True))
    for old, new in numbers.items():
        (source / f"visual_genome/{old}.jpg").rename(source / f"visual_genome/{new}.jpg")
    for kind in ("focus", "change"):
        file = source / f"genecis/{kind}_attribute.json"
        records = json.loads(file.read_text())
        for record in records:
            for sample in (record["reference"], record["target"], *record["gallery"]):
                sample |= {"image_id": numbers[sample["image_id"]], "instance_bbox": [10, 5, 20, 30]}
        file.write_text(json.dumps(records))
    convert_unseen("genecis", source, source.parent / "out")
    crops = {path.name for path in (source.parent / "out").rglob("*_10_5_20_30.png")}
    assert crops == {f"{number}_10_5_20_30.png" for number in numbers.values()}
