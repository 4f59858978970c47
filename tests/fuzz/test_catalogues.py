"""Catalogues with anything in their fields: refused in one line, or turned into a directory without a fault.

Case n of a run is the same in every run; `--fuzz-seconds` says how many there are.
"""

from __future__ import annotations

import json
import random
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from elva.data import DataError, MBEIRDirectory
from elva.data.catalog import convert
from elva.data.check import check
from elva.data.wording import comparable
from elva.pictures import read_rgb

SECONDS = 10
LONGEST_LINE = 2000
KEYS = ("place", "colour", "tags")
PICTURES = 12
WORDS: dict[str, tuple[str, ...]] = {
    "place": ("café", "cafe\u0301", "CAFÉ", " café\u200b", "ca\u00adfé", "bar", "beer-garden", "beer_garden"),
    "colour": ("red", "Red", "re\u200dd", "blue", "nan", "None", "-", "null", "two\u00a0tone", "two tone"),
    "tags": ("a", "b", "c", "d"),
}
RARE: tuple[Callable[[random.Random], Any], ...] = (
    lambda draw: draw.choice([None, True, 0, 2.0, float("nan"), 1e400, -3]),
    lambda draw: draw.choice(
        ["", " ", '"', '""', "\u200b", "?", "\x00", "a\nb", "\u2028", "{a}", "%s", "\U0001f600"]
    ),
    lambda draw: draw.choice(["['red', 'black']", '["red"]', "{'a': 1}", "[sic]", "(1)", "('a',)"]),
    lambda draw: draw.choice([["red", "red"], ["red", None, "-"], [], [[]], [["red"]], {"a": 1}, [{}]]),
    lambda draw: "long " * draw.choice([3, 40, 4000]),
    lambda draw: draw.choice(["\ud800", ["a\udcff"]]),
    lambda draw: draw.choice(["0.png", "../0.png", "none.png", "/dev/zero", "items.jsonl", "0.png\x00"]),
)


def save_pictures(draw: random.Random, folder: Path) -> None:
    for n in range(2 * PICTURES):
        colour = (n * 9, draw.choice([0, 1]), 7)
        Image.new(draw.choice(["RGB", "RGBA"]), (5, 5), colour).save(folder / f"{n}.png")
    for _ in range(draw.choice([0, 0, 1, 3])):
        one, other = draw.sample(range(2 * PICTURES), 2)
        shutil.copyfile(folder / f"{one}.png", folder / f"{other}.png")


def record(draw: random.Random, number: int) -> dict[str, Any]:
    values: dict[str, Any] = {key: draw.choice(WORDS[key]) for key in KEYS[:2] if draw.random() < 0.9}
    values["tags"] = draw.sample(WORDS["tags"], draw.randint(0, 3))
    item: dict[str, Any] = {"id": number, "image": f"{number}.png", "attributes": values}
    if draw.random() < 0.7:
        item["text"] = draw.choice(
            ["Café chair. Old.", "Cafe\u0301 chair. Old.", f"Thing {number}.", "thing\u00a05"]
        )
    if draw.random() < 0.3:
        item["name"] = draw.choice(["Café chair", "cafe\u0301  chair", 42, "thing"])
    if draw.random() < 0.6:
        item["other"] = f"{number + PICTURES}.png"
    return item


def spoil(draw: random.Random, item: dict[str, Any]) -> None:
    """Something rare in one field."""
    target = draw.choice([item, item, item["attributes"]])
    key = draw.choice([*target, "text", "name"])
    target[key] = draw.choice(RARE)(draw)


def write(draw: random.Random, folder: Path) -> Path:
    save_pictures(draw, folder)
    items = [record(draw, number) for number in range(PICTURES)]
    for _ in range(draw.choice([0, 0, 1, 2])):
        item = draw.choice(items)
        if isinstance(item.get("attributes"), dict):
            spoil(draw, item)
    text = "\n".join(json.dumps(item, ensure_ascii=True) for item in items)
    if draw.random() < 0.05:
        text = json.dumps(items, indent=draw.choice([None, 1]))
    path = folder / "items.jsonl"
    path.write_bytes(draw.choice([b"", b"", b"\xef\xbb\xbf", b"\n"]) + text.encode())
    return path


def examine(out: Path) -> None:
    """The directory is sound, no picture or text stands twice in a pool, no right answer is a negative."""
    assert [str(problem) for problem in check(out)] == []
    directory = MBEIRDirectory(out)
    for split in ("val", "test"):
        for task in directory.tasks(split):
            pool = directory.pool(split, *task)
            contents = [
                (comparable(c.text or ""), read_rgb(directory.path(c.image)).tobytes() if c.image else None)
                for c in pool
            ]
            assert len(set(contents)) == len(contents), f"{task.name} has one candidate twice"
            own = dict(zip((c.did for c in pool), contents, strict=True))
            for query in directory.queries(split, *task):
                assert set(query.positives) <= set(own) and len(set(query.positives)) == len(query.positives)
                assert not set(query.positives) & set(query.negatives), query.qid
                if task.task_id == 4:
                    assert read_rgb(directory.path(query.image or "")).tobytes() not in {
                        c[1] for c in contents
                    }
                for grain in query.grains:
                    assert grain.value in (query.text or "")[grain.start : grain.end]


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_catalogues_are_refused_or_sound(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    seconds = request.config.getoption("--fuzz-seconds", default=None) or SECONDS
    converted, case, end = 0, 0, time.monotonic() + seconds
    while time.monotonic() < end:
        case += 1
        folder = tmp_path / str(case)
        folder.mkdir()
        draw = random.Random(f"catalogue/{case}")
        path = write(draw, folder)
        options: dict[str, Any] = {
            "alt_image_field": draw.choice([None, "other"]),
            "split_by": draw.choice(["combinations", "items", "items"]),
            "seed": case,
        }
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                convert(path, folder / "out", KEYS, **options)
        except DataError as error:
            line = str(error)
            assert len(line.splitlines()) == 1 and len(line) < LONGEST_LINE, f"case {case}: {line}"
            assert not (folder / "out").exists()
        except Exception as error:
            raise AssertionError(f"case {case}, {options}: {error!r}") from error
        else:
            converted += 1
            try:
                examine(folder / "out")
            except Exception as error:
                raise AssertionError(f"case {case}, {options}: {error!r}") from error
        shutil.rmtree(folder)
    assert case >= 10 and converted >= case // 5
    print(f"{case} catalogues, {converted} of them converted")
