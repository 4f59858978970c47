"""What the check let pass and what stopped it: the rules that it shares with the readers, and their limits."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from elva.data import DataError, MBEIRDirectory
from elva.data.captions import read_captions
from elva.data.check import check
from elva.pictures import read_rgb
from tests.data.faulty import INSTRUCTIONS, POOL, QRELS, QUERIES, append, build, change


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("sound") / "data")


@pytest.fixture
def root(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "data"))


CAPTIONS = "captions/train.jsonl"


def write_captions(root: Path, *lines: object) -> None:
    (root / CAPTIONS).parent.mkdir()
    (root / CAPTIONS).write_text("".join(json.dumps(line) + "\n" for line in lines))


def as_unseen(root: Path, dataset: str) -> None:
    """Give the test files of the task the name of another data set."""
    for relative in (QUERIES, POOL, QRELS):
        (root / relative).rename(root / relative.replace("_scenes_", f"_{dataset}_"))


def qrels(root: Path, relevance: int) -> None:
    (root / QRELS).write_text("".join(f"20:{n} 0 20:{n} {relevance if n == 2 else 1} 0\n" for n in range(6)))


LATE_FAULTS: dict[str, tuple[Callable[[Path], object], str, int, str, str]] = {
    "half a surrogate pair in a text": (
        lambda r: change(r, QUERIES, 1, query_txt="ball \ud800"),
        *(QUERIES, 1, "-", "malformed text: \\ud800 is half a surrogate pair"),
    ),
    "half a surrogate pair in an id": (
        lambda r: change(r, POOL, 1, did="20:\udc00"),
        *(POOL, 1, "-", "malformed text: \\udc00 is half a surrogate pair"),
    ),
    "half a surrogate pair in a key": (
        lambda r: append(r, POOL, b'{"\\ud800": 1}\n'),
        *(POOL, 7, "-", "malformed text: \\ud800 is half a surrogate pair"),
    ),
    "sides beyond 200 : 1": (
        lambda r: Image.new("RGB", (402, 2)).save(r / "mbeir_images/1.png"),
        *("cand_pool/global/mbeir_union_test_cand_pool.jsonl", 2, "20:1"),
        "broken image: mbeir_images/1.png: picture of 402 × 2 pixels refused: expected sides of at most 200 : 1",
    ),
    "a query of quotes": (
        lambda r: change(r, QUERIES, 1, query_txt=' "" ', grains=[]),
        *(
            QUERIES,
            1,
            "20:0",
            "no text: query_modality is 'text' but query_txt is empty or holds only quotes",
        ),
    ),
    "a candidate of quotes": (
        lambda r: change(r, POOL, 1, modality="image,text", txt='"\u200b"'),
        *(POOL, 1, "20:0", "no text: modality is 'image,text' but txt is empty or holds only quotes"),
    ),
    "captions without texts": (
        lambda r: write_captions(r, {"img_path": "mbeir_images/1.png", "captions": []}),
        *(CAPTIONS, 1, "-", "expected an object with img_path and captions, got {'img_path'"),
    ),
    "captions of quotes": (
        lambda r: write_captions(r, {"img_path": "mbeir_images/1.png", "captions": ["a", '""']}),
        *(CAPTIONS, 1, "-", "expected captions that say something, got '\"\"'"),
    ),
    "captions of a missing picture": (
        lambda r: write_captions(r, {"img_path": "none.png", "captions": ["a"]}),
        *(CAPTIONS, 1, "-", "missing image: none.png is not there"),
    ),
    "empty qrels": (lambda r: (r / QRELS).write_bytes(b"\n"), *(QRELS, 0, "-", "no qrels in this file")),
    "qrels without a right answer": (
        lambda r: qrels(r, 0),
        *(QRELS, 0, "20:2", "no relevant candidate: every relevance is 0, expected one above"),
    ),
    "a positive of training in another pool": (
        lambda r: change(r, "cand_pool/global/mbeir_union_train_cand_pool.jsonl", 1, did="20:90"),
        *("query/train/mbeir_scenes_train.jsonl", 1, "20:0", "positive not in the pool: 20:0 is not in"),
    ),
    "a positive outside of a multi-grain pool": (
        lambda r: (change(r, POOL, 1, did="20:90"), as_unseen(r, "scenes_multigrain")),
        *(
            QUERIES.replace("scenes", "scenes_multigrain"),
            1,
            "20:0",
            "positive not in the pool: 20:0 is not in",
        ),
    ),
    "a negative outside of a query's own pool": (
        lambda r: (change(r, QUERIES, 1, neg_cand_list=["20:90"]), as_unseen(r, "genecis_change_object")),
        *(
            QUERIES.replace("scenes", "genecis_change_object"),
            1,
            "20:0",
            "negative not in the pool: 20:90 is not in",
        ),
    ),
    "a carriage return in the instructions": (
        lambda r: append(r, INSTRUCTIONS, b"text\timage\tscenes\t21\tFind\rit.\tSee\n"),
        *("none", 0, "-", ""),
    ),
    "no header of the instructions": (
        lambda r: (r / INSTRUCTIONS).write_text("\n"),
        *(INSTRUCTIONS, 1, "-", "header is absent"),
    ),
}


@pytest.mark.parametrize("name", LATE_FAULTS)
def test_c24_what_would_die_later_is_named(root: Path, name: str) -> None:
    plant, path, line, identifier, message = LATE_FAULTS[name]
    plant(root)
    problems = list(check(root))
    if path == "none":
        assert problems == [] and len(MBEIRDirectory(root).instructions.rows) == 2
        return
    shown = [p.message for p in problems if (p.path, p.line, p.id) == (path, line, identifier)]
    assert any(found.startswith(message) for found in shown), problems


@pytest.mark.parametrize("size", [(12_000, 12_000), (20_000, 20_000)])
def test_c24_a_picture_of_too_many_pixels_is_named(root: Path, size: tuple[int, int]) -> None:
    Image.new("1", size).save(root / "mbeir_images/1.png")
    (problem,) = check(root)
    assert problem.id == "20:1" and "expected at most 89478485 pixels" in problem.message


def test_c24_every_shape_of_a_sound_text_passes(root: Path) -> None:
    """Paired surrogates, quotes around words, a byte order mark and lines of Windows are no faults."""
    change(root, QUERIES, 1, query_txt='"ball \U0001f600"', grains=[])
    for relative in (QUERIES, POOL, QRELS, INSTRUCTIONS):
        content = (root / relative).read_bytes().replace(b"\n", b"\r\n")
        (root / relative).write_bytes(b"\xef\xbb\xbf" + content)
    assert b"\\ud83d\\ude00" in (root / QUERIES).read_bytes()
    assert list(check(root)) == []
    directory = MBEIRDirectory(root)
    assert directory.queries("test", "scenes", 0)[0].text == '"ball \U0001f600"'
    assert directory.qrels("test", "scenes", 0)["20:0"] == {"20:0": 1}
    assert directory.instructions.prompts(20, "text", "image") == ["Find the picture."]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("relative", [QUERIES, POOL, QRELS, INSTRUCTIONS, CAPTIONS, "mbeir_images/1.png"])
def test_c25_pipes_are_not_waited_for(root: Path, relative: str) -> None:
    (root / relative).unlink(missing_ok=True)
    (root / relative).parent.mkdir(exist_ok=True)
    os.mkfifo(root / relative)
    problems = list(check(root))
    assert any(p.path == relative or f"{relative} is not a file" in p.message for p in problems), problems
    directory = MBEIRDirectory(root)
    reading = {
        QUERIES: lambda: directory.queries("test", "scenes", 0),
        POOL: lambda: directory.pool("test", "scenes", 0),
        QRELS: lambda: directory.qrels("test", "scenes", 0),
        INSTRUCTIONS: lambda: directory.instructions,
        CAPTIONS: lambda: list(read_captions(root)),
        "mbeir_images/1.png": lambda: read_rgb(root / relative),
    }
    with pytest.raises(ValueError, match=r"not a regular file|[Nn]o such file"):
        reading[relative]()


@pytest.mark.parametrize(
    ("relative", "key", "value"),
    [
        (QUERIES, "qid", "9" * 5000 + ":1"),
        (QUERIES, "qid", "20:" + "x" * 3_000_000),
        (POOL, "did", "20:" + "x" * 3_000_000),
        (QUERIES, "pos_cand_list", ["20:" + "x" * 3_000_000]),
        (QUERIES, "query_modality", "x" * 3_000_000),
        (POOL, "img_path", "x" * 3_000_000),
        (POOL, "img_path", "x/" * 3_000),
    ],
)
def test_c25_long_values_are_named_shortly_by_check_and_readers(
    root: Path, relative: str, key: str, value: object
) -> None:
    change(root, relative, 1, **{key: value})
    shown = [str(problem) for problem in check(root)]
    assert shown and max(map(len, shown)) < 1500
    directory = MBEIRDirectory(root)
    if key == "img_path":
        candidate = directory.pool("test", "scenes", 0)[0]
        with pytest.raises(ValueError) as error:
            read_rgb(directory.path(candidate.image or ""))
        assert len(str(error.value)) < 1500
    elif key != "pos_cand_list":
        with pytest.raises(DataError) as error:
            directory.queries("test", "scenes", 0) if relative == QUERIES else directory.pool(
                "test", "scenes", 0
            )
        assert len(str(error.value)) < 1500


@pytest.mark.parametrize("image", ["x" * 300, "x/" * 3000, "é" * 128, "a\0b"])
def test_names_that_no_file_can_have_are_unusable_for_check_and_readers(root: Path, image: str) -> None:
    change(root, POOL, 1, img_path=image)
    write_captions(root, {"img_path": f"{image}.png", "captions": ["a"]})
    shown = [str(problem) for problem in check(root)]
    assert [line.partition(": image path: ")[0] for line in shown] == [f"{POOL}:1: 20:0", f"{CAPTIONS}:1: -"]
    assert all("unusable path: " in line and len(line) < 400 for line in shown)
    with pytest.raises(DataError, match=r"unusable path: (File name too long|embedded null)"):
        MBEIRDirectory(root).path(image)


@pytest.mark.parametrize("root", ["x" * 300, "x\0"])
def test_a_root_that_cannot_be_is_no_directory(root: str) -> None:
    (problem,) = check(root)
    assert "not an M-BEIR directory" in problem.message
    with pytest.raises(DataError, match="not an M-BEIR directory"):
        MBEIRDirectory(root)


def test_c25_long_numbers_in_qrels_and_instructions(root: Path) -> None:
    append(root, QRELS, b"20:" + b"1" * 3_000_000 + b" 0 20:1 " + b"9" * 5000 + b" 0\n")
    append(root, INSTRUCTIONS, b"text\timage\tscenes\t" + b"9" * 5000 + b"\tFind.\n")
    shown = [str(problem) for problem in check(root)]
    assert len(shown) == 2 and max(map(len, shown)) < 500
    for read in (lambda d: d.instructions, lambda d: d.qrels("test", "scenes", 0)):
        with pytest.raises(DataError) as error:
            read(MBEIRDirectory(root))
        assert len(str(error.value)) < 500


@pytest.mark.parametrize("depth", [60, 500, 900, 990, 5000, 200_000])
@pytest.mark.parametrize("key", ["query_src_content", "qid", "grains", "task_id"])
def test_c25_deep_nesting_is_named(root: Path, depth: int, key: str) -> None:
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        append(root, QUERIES, b'{"%s": ' % key.encode() + opening * depth + b"1" + closing * depth + b"}\n")
    lines = {p.line for p in check(root) if p.path == QUERIES}
    assert lines == {7, 8}
    with pytest.raises(DataError, match=r":7: -: (nested JSON: deeper than 50|malformed JSON)"):
        MBEIRDirectory(root).queries("test", "scenes", 0)
