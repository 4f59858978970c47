"""A few records of every unseen set in its authors' format, written by hand: `MAKERS[name](directory)`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

COLOURS = ((200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0))


def picture(path: Path, number: int = 0, size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, COLOURS[number % len(COLOURS)]).save(path)


def written(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def flickr30k(root: Path) -> None:
    def record(number: int, split: str) -> dict[str, Any]:
        picture(root / f"flickr30k-images/{number}.jpg", number)
        texts = [{"raw": f"Caption {i} of  picture {number} .", "imgid": number} for i in range(2)]
        return {"filename": f"{number}.jpg", "imgid": number, "split": split, "sentences": texts}

    images = [record(0, "train"), record(1, "test"), record(2, "test")]
    written(root / "dataset_flickr30k.json", {"dataset": "flickr30k", "images": images})


def sharegpt4v(root: Path) -> None:
    records = []
    for number in range(2):
        picture(root / f"sam/images/sa_{number}.jpg", number)
        turns = [
            {"from": "human", "value": "<image>\nDescribe it."},
            {"from": "gpt", "value": f"A long\ncaption {number}."},
        ]
        records.append({"id": f"sa_{number}", "image": f"sam/images/sa_{number}.jpg", "conversations": turns})
    written(root / "share-captioner_coco_lcs_sam_1246k_1107.json", records)


def urban1k(root: Path) -> None:
    for number in (1, 2, 10):
        picture(root / f"image/{number}.jpg", number)
        written(root / f"caption/{number}.txt", f"The street number {number}.\n")


def circo(root: Path) -> None:
    infos = []
    for number in (85932, 9761, 231, 7):
        name = f"{number:012d}.jpg"
        picture(root / "COCO2017_unlabeled/unlabeled2017" / name, number)
        infos.append({"id": number, "file_name": name, "height": 30, "width": 40})
    written(
        root / "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json", {"info": {}, "images": infos}
    )
    record = {
        "id": 0,
        "reference_img_id": 85932,
        "target_img_id": 9761,
        "relative_caption": "is seen from above",
        "shared_concept": "a bench",
        "gt_img_ids": [9761, 231],
        "semantic_aspects": ["viewpoint"],
    }
    written(root / "annotations/val.json", [record])


def genecis(root: Path) -> None:
    for number in range(4):
        picture(root / f"coco/val2017/{number:012d}.jpg", number)
        picture(root / f"visual_genome/{number}.jpg", number, (100, 80))
    things = [{"image_id": n, "instance_bbox": [10 * n, 5, 20, 30], "object_name": "cup"} for n in range(4)]
    scenes = [{"val_image_id": n} for n in range(4)]
    for task, samples in (("attribute", things), ("object", scenes)):
        for kind in ("focus", "change"):
            record = {
                "reference": samples[0],
                "target": samples[1],
                "gallery": samples[2:],
                "condition": "red",
            }
            written(root / f"genecis/{kind}_{task}.json", [record])


def visdial(root: Path) -> None:
    dialogs = []
    for number in (7, 12):
        picture(root / f"VisualDialog_val2018/VisualDialog_val2018_{number:012d}.jpg", number)
        turns = [
            {"question": 0, "answer": 1, "answer_options": [0, 1], "gt_index": 1},
            {"question": 1, "answer": 0},
        ]
        dialogs.append({"image_id": number, "caption": f"a man with {number} dogs", "dialog": turns})
    data = {
        "questions": ["is it sunny", "any trees?"],
        "answers": ["no, i can't see", "yes"],
        "dialogs": dialogs,
    }
    written(root / "visdial_1.0_val.json", {"version": "1.0", "split": "val", "data": data})


def fashioniq_multiturn(root: Path) -> None:
    for category in ("dress", "shirt", "toptee"):
        names = [f"B0{category}{number}" for number in range(4)]
        for number, name in enumerate(names):
            picture(root / f"images/{name}.{'png' if number else 'jpg'}", number, (60, 90))
        written(root / f"image_splits/split.{category}.val.json", names)
        turns = [
            [f"http://x/{name}.jpg", ["is darker", " is longer "], name] for name in names[:2]
        ]  # url, feedback, ASIN
        record = {"target": [f"http://x/{names[2]}.jpg", names[2]], "reference": turns}
        written(root / f"data/{category}.val.json", [record])


def sugarcrepe(root: Path) -> None:
    for edit in ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj"):
        picture(root / "val2017/000000544519.jpg")
        record = {
            "filename": "000000544519.jpg",
            "caption": "A girl with a green shirt. ",
            "negative_caption": "A girl, blue.",
        }
        written(root / f"data/{edit}.json", {"0": record})


def ccneg(root: Path) -> None:
    names = [f"{number}.jpg" for number in range(3)]
    annotations = []
    for number, name in enumerate(names):
        picture(root / "ccneg_images/cc3m_subset_images_extracted_final" / name, number)
        negated = f"a beach, not with {number} people"
        annotations.append(
            {
                "json": {"caption": f"{number} people"},
                "sop_data": {"negative-prompt": negated, "subject": "x"},
            }
        )
    data = {
        "image_paths": [f"/somebody/ccneg/{name}" for name in names],
        "annotations": annotations,
        "num_ops": {1: [0, 1, 2]},
    }
    torch.save(data, root / "ccneg_preprocessed.pt")


def video(path: Path, colours: list[tuple[int, int, int]]) -> None:
    """A clip with twenty frames of each colour."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=20)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for colour in colours:
            for _ in range(20):
                frame = av.VideoFrame.from_image(Image.new("RGB", (64, 48), colour))
                container.mux(stream.encode(frame))
        container.mux(stream.encode())


def msrvtt(root: Path) -> None:
    pytest.importorskip("av", reason="PyAV (the extra video) is not installed")
    for number in (7020, 7021):
        video(root / f"videos/all/video{number}.mp4", [COLOURS[0], COLOURS[2]])
    lines = [
        "key,vid_key,video_id,sentence",
        'ret0,msr7020,video7020,"a woman, on a couch"',
        "ret1,msr7021,video7021,a car",
    ]
    written(root / "MSRVTT_JSFUSION_test.csv", "\n".join(lines) + "\n")


def msvd(root: Path) -> None:
    pytest.importorskip("av", reason="PyAV (the extra video) is not installed")
    for name in ("mv89psg6zh4_33_46", "_O9kWD8nuRU_45_49"):
        video(root / f"YouTubeClips/{name}.avi", [COLOURS[1]])
    written(root / "test_list.txt", "mv89psg6zh4_33_46\n_O9kWD8nuRU_45_49\n")
    lines = [
        "# comment",
        "mv89psg6zh4_33_46 A bird in a sink.",
        "mv89psg6zh4_33_46 A bird bathes.",
        "_O9kWD8nuRU_45_49 A cat.",
        "other_0_1 A dog.",
    ]
    written(root / "AllVideoDescriptions.txt", "\n".join(lines) + "\n")


MAKERS: dict[str, Callable[[Path], None]] = {
    "flickr30k": flickr30k,
    "sharegpt4v": sharegpt4v,
    "urban1k": urban1k,
    "circo": circo,
    "genecis": genecis,
    "visdial": visdial,
    "fashioniq-multiturn": fashioniq_multiturn,
    "sugarcrepe": sugarcrepe,
    "ccneg": ccneg,
    "msrvtt": msrvtt,
    "msvd": msvd,
}
