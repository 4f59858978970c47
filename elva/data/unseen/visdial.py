"""VisDial v1.0 (Das et al., CVPR 2017), val: a caption and a dialogue of ten turns ask for their picture."""

from __future__ import annotations

from typing import Any

from elva.data.records import DataError, described
from elva.data.unseen.protocol import UnseenSet
from elva.data.unseen.row import Row
from elva.data.unseen.source import Source, field, listed, sentence
from elva.data.writer import MBEIRWriter
from elva.progress import track

FILE = "visdial_1.0_val.json"
IMAGES = "VisualDialog_val2018"


def _convert(source: Source, writer: MBEIRWriter) -> None:
    row = Row(writer, "visdial", 48, 0, "Find the picture that this dialogue is about.")
    data = field(source.json(FILE), "data", dict, FILE)
    dialogs = listed(field(data, "dialogs", list, FILE), FILE)
    for number, dialog in enumerate(track(dialogs, "Converting visdial", total=len(dialogs))):
        where = f"{FILE}: dialogs[{number}]"
        name = f"VisualDialog_val2018_{field(dialog, 'image_id', int, where):012d}.jpg"
        did = row.candidate(image=row.link(source.path(f"{IMAGES}/{name}", where), where))
        row.query([did], text=_dialogue(dialog, data, where))


def _dialogue(dialog: Any, data: dict[str, Any], where: str) -> str:
    parts = [sentence(dialog, "caption", where)]
    for number, turn in enumerate(field(dialog, "dialog", list, where)):
        here = f"{where}.dialog[{number}]"
        question = _looked_up(turn, "question", data, here)
        parts.append(f"{question.rstrip('?')}? {_looked_up(turn, 'answer', data, here)}")
    return ". ".join(part.rstrip(".") for part in parts) + "."


def _looked_up(turn: Any, key: str, data: dict[str, Any], where: str) -> str:
    number, texts = field(turn, key, int, where), field(data, f"{key}s", list, FILE)
    if not 0 <= number < len(texts):
        raise DataError(
            f"{where}: {key} is {described(number)}, expected 0..{len(texts) - 1} ({key}s of the file)"
        )
    return sentence({key: texts[number]}, key, where)


VISDIAL = UnseenSet(
    "visdial",
    ("visdial",),
    ("R@1",),
    f"VisDial needs {FILE} and the pictures in {IMAGES}/ (visualdialog.org/data, v1.0 val).",
    _convert,
)
