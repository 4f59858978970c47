"""M-BEIR in miniature: its sixteen rows with 200 candidates each, its ids and its unreachable judgements."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from elva.data.mbeir import TASK_MODALITIES, Candidate, Query
from elva.data.writer import MBEIRWriter
from elva.evaluation.mbeir_table import ROWS

DATASET_IDS = {
    "visualnews": 0,
    "fashion200k": 1,
    "webqa": 2,
    "edis": 3,
    "nights": 4,
    "oven": 5,
    "infoseek": 6,
    "fashioniq": 7,
    "cirr": 8,
    "mscoco": 9,
}
CANDIDATES, QUERIES = 200, 20
UNREACHABLE = {("oven", 6): QUERIES}
"""As in M-BEIR, answers to OVEN's queries also stand in InfoSeek's pool, which OVEN's own does not hold."""
WORDS = [[f"{sound}{vowel}" for vowel in "aeiou"] for sound in "bdgk"]


def build(root: Path) -> Path:
    with MBEIRWriter(root) as writer:
        for number in range(CANDIDATES):
            writer.save_image(picture(number), Image.new("RGB", (24, 24), colour(number)))
        for dataset, task in ROWS:
            asked, answered = TASK_MODALITIES[task]
            prompts = [f"{verb} the {dataset} {answered}." for verb in ("Find", "Show", "Get", "Name")]
            writer.add_instruction(asked, answered, dataset, DATASET_IDS[dataset], prompts)
            for number in range(CANDIDATES):
                writer.add_candidate("test", dataset, task, candidate(dataset, task, number))
            for number in range(QUERIES):
                writer.add_query("test", dataset, query(dataset, task, number))
    return root


def candidate(dataset: str, task: int, number: int) -> Candidate:
    modality = TASK_MODALITIES[task][1]
    image = picture(number) if "image" in modality else None
    return Candidate(
        did(dataset, task, number), text(number) if "text" in modality else None, image, modality
    )


def query(dataset: str, task: int, number: int) -> Query:
    modality = TASK_MODALITIES[task][0]
    positives = [did(dataset, task, number), did(dataset, task, number + QUERIES)]
    if (dataset, task) in UNREACHABLE:
        positives.append(did("infoseek", task, number))
    return Query(
        f"{DATASET_IDS[dataset]}:{task * 1000 + number}",
        text(number) if "text" in modality else None,
        picture(number) if "image" in modality else None,
        modality,
        task,
        tuple(positives),
    )


def did(dataset: str, task: int, number: int) -> str:
    return f"{DATASET_IDS[dataset]}:{task * 1000 + number}"


def picture(number: int) -> str:
    return f"mbeir_images/{number}.png"


def colour(number: int) -> tuple[int, int, int]:
    return number % 6 * 50, number // 6 % 6 * 50, number // 36 * 40


def text(number: int) -> str:
    return " ".join(WORDS[place][number // 5**place % 5] for place in range(4))
