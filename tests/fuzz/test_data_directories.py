"""M-BEIR directories with faults planted at random: what `elva data check` accepts, every reader reads.

Case n of a run is the same in every run; `--fuzz-seconds` says how many there are.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from elva.data import Candidate, DataError, Grain, MBEIRDirectory, MBEIRWriter, Query
from elva.data.captions import CaptionedPicture, read_captions, write_captions
from elva.data.check import check
from elva.data.records import TASK_MODALITIES
from elva.evaluation.retrieval import evaluate
from elva.models import tiny
from elva.training.examples import TrainingData, caption_examples, corpus, triplet_examples

SECONDS = 10
LONGEST_LINE = 2000
TEXTS = (
    "a red ball",
    "two blue balls",
    "a ball on a box",
    "the box is green",
    "green and small",
    "small red box",
)


def build(root: Path) -> None:
    """Every task in every split, a multi-grain split, a set with pools of its own, captions."""
    with MBEIRWriter(root) as writer:
        for asked, answered in TASK_MODALITIES.values():
            writer.add_instruction(asked, answered, "scenes", 20, ["Find it.", "Which one is it?"])
        writer.add_instruction("text", "image", "scenes_multigrain", 21, ["Find the picture."])
        writer.add_instruction("image,text", "image", "genecis_change_object", 47, ["Find the picture."])
        for n in range(4):
            writer.save_image(f"mbeir_images/{n}.png", Image.effect_noise((30 + n, 32), 90))
        for split in ("train", "val", "test"):
            for task in TASK_MODALITIES:
                add(writer, split, "scenes", 20, task)
        add(writer, "test", "scenes_multigrain", 21, 0)
        add(writer, "test", "genecis_change_object", 47, 7)
    write_captions(root, [CaptionedPicture("mbeir_images/1.png", ("a ball", "a box"))])


def add(writer: MBEIRWriter, split: str, dataset: str, number: int, task: int) -> None:
    asked, answered = TASK_MODALITIES[task]
    for n in range(4):
        did = f"{number}:{task}{n}"
        image = f"mbeir_images/{n}.png"
        text = TEXTS[(n + task) % len(TEXTS)]
        grains = (Grain("colour", text[:1], 0, 1), Grain("thing", text[2:5], 2, 5)) if "text" in asked else ()
        negatives = tuple(f"{number}:{task}{m}" for m in range(4) if m != n)
        writer.add_query(
            split,
            dataset,
            Query(
                f"{number}:{task}{n}",
                text if "text" in asked else None,
                image if "image" in asked else None,
                asked,
                task,
                (did,),
                negatives,
                grains,
            ),
        )
        writer.add_candidate(
            split,
            dataset,
            task,
            Candidate(
                did,
                f"{text} {n}" if "text" in answered else None,
                image if "image" in answered else None,
                answered,
            ),
        )


class Reader:
    """An encoder that reads its inputs as the real one does, and answers at once."""

    def __init__(self) -> None:
        encoder = tiny.create(TEXTS)
        self.processor, self.config = encoder.processor, encoder.config

    def encode(self, inputs: list[Any], return_summaries: bool = False, **_: Any) -> Any:
        if inputs:
            self.processor(inputs)
        embeddings = torch.nn.functional.normalize(torch.randn(len(inputs), 8), dim=-1)
        return (embeddings, [""] * len(inputs)) if return_summaries else embeddings


VALUES: tuple[Callable[[random.Random], Any], ...] = (
    lambda draw: None,
    lambda draw: draw.choice([True, False, 0, 1, 7, -1, 5, 1e400, float("nan"), 0.0, 10**30]),
    lambda draw: draw.choice(
        ["", " ", '"', '""""', "\u200b", "\ud800", "a\udc80", "\x00", "a\rb", "\u2028", "?"]
    ),
    lambda draw: draw.choice(
        ["text", "image", "image,text", "text,image", "20:01", "20:00", "21:00", "20:99"]
    ),
    lambda draw: draw.choice(
        ["mbeir_images/2.png", "mbeir_images/none.png", "../a.png", "/dev/zero", "mbeir_images"]
    ),
    lambda draw: "x" * draw.choice([150, 255, 300, 5000, 100_000]),
    lambda draw: "9" * draw.choice([5, 20, 5000]) + ":1",
    lambda draw: json.loads("[" * (depth := draw.choice([1, 3, 49, 50, 51, 52, 300])) + "]" * depth),
    lambda draw: [draw.choice(["20:00", "20:01", "20:32", "20:99", "21:00", "47:71", 3, None, "\ud800"])],
    lambda draw: [{"key": "k", "value": "v", "start": draw.randint(-1, 9), "end": draw.randint(0, 12)}],
    lambda draw: {"a": draw.random()},
    lambda draw: "<|im_end|> [RET] <|image_pad|>" * draw.randint(1, 3),
)
BYTES = (
    b"\xff",
    b"\xef\xbb\xbf",
    b"\r",
    b"\n",
    b"\x00",
    b"\t",
    b'"',
    b"{",
    b"}",
    b"[",
    b"\\ud83d",
    b"\\",
    b"0",
    b" ",
)


def change_record(draw: random.Random, file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    index = draw.randrange(len(lines))
    record = json.loads(lines[index])
    key = draw.choice([*record, "grains", "new"])
    if draw.random() < 0.1:
        record.pop(key, None)
    else:
        record[key] = draw.choice(VALUES)(draw)
    lines[index] = json.dumps(record, ensure_ascii=draw.random() < 0.5 or "\\ud" in json.dumps(record))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def change_lines(draw: random.Random, file: Path) -> None:
    lines = file.read_bytes().splitlines(keepends=True) or [b""]
    index = draw.randrange(len(lines))
    lines[index : index + 1] = draw.choice([[], [lines[index]] * 2, [b"\n", lines[index]], lines[::-1]])
    file.write_bytes(b"".join(lines))


def change_bytes(draw: random.Random, file: Path) -> None:
    content = file.read_bytes()
    start = draw.randrange(len(content) + 1)
    file.write_bytes(content[:start] + draw.choice(BYTES) + content[start + draw.randint(0, 3) :])


def change_columns(draw: random.Random, file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    index = draw.randrange(len(lines))
    separator = "\t" if file.suffix == ".tsv" else " "
    columns = lines[index].split(separator)
    columns[draw.randrange(len(columns))] = draw.choice(
        ["0", "-1", "", "x", "20:01", "1.0", "9" * 5000, "text", "image"]
    )
    lines[index] = separator.join(columns)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def change_file(draw: random.Random, file: Path) -> None:
    content = file.read_bytes()
    kind = draw.choice(["none", "empty", "half", "folder", "pipe", "link", "blank", "renamed"])
    file.unlink()
    if kind == "renamed":
        file = file.with_name(
            re.sub(r"task\d", draw.choice(["task0", "task00", "task\u0661", "task"]), file.name)
        )
        file.write_bytes(content)
    elif kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "link":
        file.symlink_to(draw.choice([file.name, "/dev/null", "nowhere"]))
    elif kind != "none":
        file.write_bytes({"empty": b"", "half": content[: len(content) // 2], "blank": b"\n \r\n"}[kind])


def change_picture(draw: random.Random, root: Path) -> None:
    file = root / f"mbeir_images/{draw.randrange(4)}.png"
    mode = draw.choice(
        ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16", "I", "F", "CMYK", "LAB", "YCbCr", "HSV"]
    )
    size = draw.choice([(1, 1), (1, 200), (200, 1), (201, 1), (1, 3000), (7, 9), (600, 3), (64, 64)])
    suffix = draw.choice(["png", "tiff", "jpeg", "gif", "webp", "bmp", "ppm", "ico", "eps"])
    with contextlib.suppress(OSError, KeyError, ValueError):  # a mode that the format has not
        Image.new(mode, size).save(file, suffix)
    if draw.random() < 0.3:
        change_bytes(draw, file)


def mutate(draw: random.Random, root: Path) -> str:
    """One fault; what it was, for the message."""
    files = [
        file
        for folder in ("query", "cand_pool", "qrels", "instructions", "captions")
        for file in (root / folder).rglob("*.*")
    ]
    file = draw.choice(sorted(file for file in files if file.is_file()))
    operation = draw.choice(
        [change_lines, change_bytes, change_bytes, change_file, change_picture]
        + [change_record] * 6 * (file.suffix == ".jsonl")
        + [change_columns] * 3 * (file.suffix != ".jsonl")
    )
    with contextlib.suppress(ValueError, IndexError):  # an earlier fault left nothing to plant this one in
        operation(draw, root if operation is change_picture else file)
    return f"{operation.__name__} {file.relative_to(root)}"


def read_everything(root: Path, encoder: Any) -> None:
    """All that evaluation and training read of a directory."""
    directory = MBEIRDirectory(root)
    for split in ("train", "val", "test"):
        for task in directory.tasks(split):
            for query in directory.queries(split, *task):
                directory.instructions.choose(query, TASK_MODALITIES[query.task_id][1], "random", 1)
    for split in ("val", "test"):
        if directory.tasks(split):
            for pool in ("local", "global"):
                results = evaluate(encoder, root, pool=pool, split=split, query_mode="direct", check=False)
                results.to_json().encode()
    if (root / "query/union_train").exists():
        data = TrainingData(root)
        data.require_pictures()
        corpus(data)
        inputs = [data.query_item(query, random.Random(0)) for query in data.queries]
        inputs += [data.candidate_item(did) for query in data.queries for did in query.positives]
        inputs += [example.item for example in caption_examples(data)]
        assert all(example.captions for example in caption_examples(data))
        encoder.encode(inputs)
        triplet_examples(root, use_negatives=False)
    list(read_captions(root))


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_what_check_accepts_is_read(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    seconds = request.config.getoption("--fuzz-seconds", default=None) or SECONDS
    sound, root = tmp_path / "sound", tmp_path / "data"
    build(sound)
    encoder = Reader()
    assert list(check(sound)) == []
    read_everything(sound, encoder)
    accepted, case, end = 0, 0, time.monotonic() + seconds
    while time.monotonic() < end:
        case += 1
        shutil.copytree(sound, root)
        draw = random.Random(f"directory/{case}")
        faults = [mutate(draw, root) for _ in range(draw.choice([1, 1, 1, 2, 3]))]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                problems = [str(problem) for problem in check(root)]
                assert all(len(line) < LONGEST_LINE and len(line.splitlines()) == 1 for line in problems), (
                    problems
                )
                accepted += not problems
                if problems:
                    # one line for the user, never a bug's traceback
                    with contextlib.suppress(DataError, ValueError, OSError):
                        read_everything(root, encoder)
                else:
                    read_everything(root, encoder)
            except Exception as error:
                raise AssertionError(f"case {case}, {faults}, problems {problems}: {error!r}") from error
        shutil.rmtree(root)
    assert case >= 10 and accepted >= case // 20
    print(f"{case} directories, {accepted} of them accepted")
