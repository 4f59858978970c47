"""Pictures with captions, searched both ways: Flickr30k, ShareGPT4V, Urban-1k."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from elva.data.records import DataError
from elva.data.unseen.protocol import UnseenSet
from elva.data.unseen.row import Row
from elva.data.unseen.source import Source, field, listed, sentence
from elva.data.writer import MBEIRWriter
from elva.progress import track

TO_IMAGE = "Find the picture that this caption describes."
TO_TEXT = "Find a caption that describes this picture."
SHAREGPT4V_FILE = "share-captioner_coco_lcs_sam_1246k_1107.json"
SHAREGPT4V_SIZE = 1000
"""Long-CLIP tests on the first thousand records and trains on the others."""


class Pair(NamedTuple):
    """A picture, its name in the new directory, its captions; ``where`` the record of it stands."""

    picture: Path
    name: str
    captions: list[str]
    where: str


def write_pairs(writer: MBEIRWriter, dataset: str, dataset_id: int, pairs: Iterable[Pair]) -> None:
    """Both directions: every caption asks for its picture, every picture for any of its captions."""
    to_image = Row(writer, dataset, dataset_id, 0, TO_IMAGE)
    to_text = Row(writer, dataset, dataset_id, 3, TO_TEXT)
    pairs = list(pairs)
    for picture, name, captions, where in track(pairs, f"Converting {dataset}", total=len(pairs)):
        image = to_image.link(picture, where, name)
        did = to_image.candidate(image=image)
        for caption in captions:
            to_image.query([did], text=caption)
        to_text.query([to_text.candidate(text=caption) for caption in captions], image=image)


def _flickr30k(source: Source) -> Iterator[Pair]:
    file = "dataset_flickr30k.json"
    for number, record in enumerate(listed(field(source.json(file), "images", list, file), file)):
        where = f"{file}: images[{number}]"
        if field(record, "split", str, where) != "test":
            continue
        sentences = listed(field(record, "sentences", list, where), where)
        captions = [sentence(each, "raw", f"{where}.sentences[{i}]") for i, each in enumerate(sentences)]
        name = field(record, "filename", str, where)
        yield Pair(source.path(f"flickr30k-images/{name}", where), name, captions, where)


def _sharegpt4v(source: Source) -> Iterator[Pair]:
    records = listed(source.json(SHAREGPT4V_FILE), SHAREGPT4V_FILE)
    for number, record in enumerate(records[:SHAREGPT4V_SIZE]):
        where = f"{SHAREGPT4V_FILE}: record {number}"
        turns = listed(field(record, "conversations", list, where), where)
        if len(turns) < 2:
            raise DataError(f"{where}: conversations has one turn, expected a question and its caption")
        name = field(record, "image", str, where)
        captions = [sentence(turns[1], "value", f"{where}.conversations[1]")]
        yield Pair(source.path(name, where), name.replace("/", "_"), captions, where)


def _urban1k(source: Source) -> Iterator[Pair]:
    files = [file for file in source.path("caption").glob("*.txt") if not file.name.startswith(".")]
    for file in sorted(files, key=lambda path: (len(path.stem), path.stem)):
        relative = f"caption/{file.name}"
        caption = {"its first line": source.text(relative).split("\n")[0]}
        picture = f"{file.stem}.jpg"
        captions = [sentence(caption, "its first line", relative)]
        yield Pair(source.path(f"image/{picture}", relative), picture, captions, relative)


FLICKR30K = UnseenSet(
    "flickr30k",
    ("flickr30k",),
    ("R@1",),
    "Flickr30k needs Karpathy's dataset_flickr30k.json (caption_datasets.zip, "
    "cs.stanford.edu/people/karpathy/deepimagesent) and the pictures in flickr30k-images/ "
    "(shannon.cs.illinois.edu/DenotationGraph).",
    lambda source, writer: write_pairs(writer, "flickr30k", 40, _flickr30k(source)),
)
SHAREGPT4V = UnseenSet(
    "sharegpt4v",
    ("sharegpt4v",),
    ("R@1",),
    f"ShareGPT4V needs {SHAREGPT4V_FILE} (huggingface.co/datasets/Lin-Chen/ShareGPT4V) and beside it the folders that "
    "it names (sam/images/… of SA-1B, coco/…, llava/…); only the first thousand records are used, as Long-CLIP does.",
    lambda source, writer: write_pairs(writer, "sharegpt4v", 41, _sharegpt4v(source)),
)
URBAN1K = UnseenSet(
    "urban1k",
    ("urban1k",),
    ("R@1",),
    "Urban-1k needs the folders image/ and caption/ of Urban1k.zip (huggingface.co/datasets/BeichenZhang/Urban1k).",
    lambda source, writer: write_pairs(writer, "urban1k", 42, _urban1k(source)),
)
