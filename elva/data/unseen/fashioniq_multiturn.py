"""Multi-turn FashionIQ (Yuan and Lam, SIGIR 2021), val: several pictures, each with feedback, ask for the last one."""

from __future__ import annotations

from typing import Any

from elva.data.records import DataError
from elva.data.unseen.protocol import UnseenSet
from elva.data.unseen.row import Row
from elva.data.unseen.source import Source, field, listed, sentence
from elva.data.unseen.tiles import open_picture, tile
from elva.data.writer import IMAGE_FOLDER, MBEIRWriter
from elva.progress import track

CATEGORIES = ("dress", "shirt", "toptee")
INSTRUCTION = (
    "The pictures are turns of a search, from left to right. Find the garment that all the feedback asks for."
)


def _convert(source: Source, writer: MBEIRWriter) -> None:
    for number, category in enumerate(CATEGORIES):
        row = Row(writer, f"fashioniq_multiturn_{category}", 49 + number, 7, INSTRUCTION)
        file = f"image_splits/split.{category}.val.json"
        names = listed(source.json(file), file)
        dids = {}
        for place, name in enumerate(track(names, f"Linking {row.dataset}", total=len(names))):
            where = f"{file}: entry {place}"
            asin = sentence({"name": name}, "name", where)
            dids[asin] = row.candidate(image=row.link(source.picture("images", asin, where), where))
        _write_queries(source, writer, row, f"data/{category}.val.json", dids)


def _write_queries(source: Source, writer: MBEIRWriter, row: Row, file: str, dids: dict[str, str]) -> None:
    records = listed(source.json(file), file)
    for number, record in enumerate(track(records, f"Converting {row.dataset}", total=len(records))):
        where = f"{file}: record {number}"
        target, turns = _session(record, where)
        if target not in dids:
            raise DataError(f"{where}: target {target} is not in the category's image split")
        relative = f"{IMAGE_FOLDER}/{row.dataset}/turns/{number}.jpg"
        if not (writer.root / relative).is_file():
            pictures = [open_picture(source.picture("images", asin, where), where) for asin, _ in turns]
            writer.save_image(relative, tile(pictures, columns=len(pictures)))
        text = " ".join(f"Turn {place}: {feedback}." for place, (_, feedback) in enumerate(turns, start=1))
        row.query([dids[target]], text=text, image=relative)


def _session(record: Any, where: str) -> tuple[str, list[tuple[str, str]]]:
    """The target's ASIN, and (ASIN, feedback) of every turn."""
    try:
        target = record["target"][1]
        turns = [(asin, texts) for _, texts, asin in record["reference"]]
    except (TypeError, KeyError, IndexError, ValueError) as error:
        raise DataError(
            f"{where}: expected target [url, ASIN] and reference [[url, texts, ASIN], …]"
        ) from error
    if not turns:
        raise DataError(f"{where}: reference is empty, expected at least one turn")
    target = sentence({"target[1]": target}, "target[1]", where)
    return target, [_turn(asin, texts, f"{where}.reference[{n}]") for n, (asin, texts) in enumerate(turns)]


def _turn(asin: object, texts: object, where: str) -> tuple[str, str]:
    """The ASIN, and the feedback as one text."""
    feedback = [field({"text": text}, "text", str, where).strip() for text in listed(texts, where)]
    return sentence({"ASIN": asin}, "ASIN", where), " and ".join(feedback)


FASHIONIQ_MULTITURN = UnseenSet(
    "fashioniq-multiturn",
    tuple(f"fashioniq_multiturn_{category}" for category in CATEGORIES),
    ("R@5",),
    "Multi-turn FashionIQ needs data/ and image_splits/ (github.com/yfyuan01/MultiturnFashionRetrieval) and "
    "FashionIQ's pictures as images/ASIN.jpg (github.com/hongwang600/fashion-iq-metadata).",
    _convert,
)
