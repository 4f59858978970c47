from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from elva.data import Candidate, DataError, Grain, MBEIRDirectory, MBEIRWriter, Query
from elva.data.captions import read_captions
from elva.data.check import Problem, check
from elva.pictures import read_rgb

QUERIES = "query/test/mbeir_scenes_task0_test.jsonl"
POOL = "cand_pool/local/mbeir_scenes_task0_test_cand_pool.jsonl"
QRELS = "qrels/test/mbeir_scenes_task0_test_qrels.txt"
INSTRUCTIONS = "instructions/query_instructions.tsv"


def build(root: Path) -> Path:
    with MBEIRWriter(root) as writer:
        writer.add_instruction("text", "image", "scenes", 20, ["Find the picture."])
        for split in ("train", "val", "test"):
            for n in range(6):
                image = f"mbeir_images/{n}.png"
                grains = (Grain("shape", "ball", 0, 4),)
                writer.add_query(
                    split,
                    "scenes",
                    Query(f"20:{n}", f"ball {n}", None, "text", 0, (f"20:{n}",), grains=grains),
                )
                writer.add_candidate(split, "scenes", 0, Candidate(f"20:{n}", None, image, "image"))
        for n in range(6):
            writer.save_image(f"mbeir_images/{n}.png", Image.effect_noise((64, 64), 90))
    return root


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("sound") / "data")


@pytest.fixture
def root(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "data"))


def change(root: Path, relative: str, line: int, **values: object) -> None:
    """Overwrite fields of one record (lines count from 1)."""
    lines = (root / relative).read_text(encoding="utf-8").splitlines()
    lines[line - 1] = json.dumps(json.loads(lines[line - 1]) | values)
    (root / relative).write_text("\n".join(lines) + "\n", encoding="utf-8")


def append(root: Path, relative: str, content: bytes) -> None:
    with (root / relative).open("ab") as file:
        file.write(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def repeat_line(root: Path, relative: str) -> None:
    append(root, relative, (root / relative).read_bytes().splitlines(keepends=True)[0])


def test_a_sound_directory_has_no_problem(sound: Path) -> None:
    assert list(check(sound)) == []


Fault = tuple[Callable[[Path], object], str, int, str, str]

FAULTS: dict[str, Fault] = {
    "missing image": (
        lambda r: change(r, POOL, 1, img_path="mbeir_images/none.png"),
        *(POOL, 1, "20:0", "missing image: mbeir_images/none.png is not there"),
    ),
    "folder as image": (
        lambda r: change(r, POOL, 1, img_path="mbeir_images"),
        *(POOL, 1, "20:0", "missing image: mbeir_images is not a file"),
    ),
    "path leaves": (
        lambda r: change(r, POOL, 2, img_path="../x.png"),
        *(POOL, 2, "20:1", "image path: ../x.png: path leaves the directory"),
    ),
    "duplicate did": (lambda r: repeat_line(r, POOL), *(POOL, 7, "20:0", "duplicate did")),
    "duplicate qid": (lambda r: repeat_line(r, QUERIES), *(QUERIES, 7, "20:0", "duplicate qid")),
    "query modality": (
        lambda r: change(r, QUERIES, 3, query_modality="video"),
        *(QUERIES, 3, "20:2", "unknown modality: query_modality is 'video'"),
    ),
    "candidate modality": (
        lambda r: change(r, POOL, 3, modality=["image"]),
        *(POOL, 3, "20:2", "unknown modality: modality is ['image']"),
    ),
    "no text": (lambda r: change(r, QUERIES, 4, query_txt=None, grains=[]), *(QUERIES, 4, "20:3", "no text")),
    "no positive": (
        lambda r: change(r, QUERIES, 5, pos_cand_list=[]),
        *(QUERIES, 5, "20:4", "no positive: pos_cand_list is empty"),
    ),
    "positive not in the pool": (
        lambda r: change(r, QUERIES, 5, pos_cand_list=["20:4", "20:77", "20:78"]),
        *(QUERIES, 5, "20:4", "positive not in the pool: 20:77 (and 1 more) is not in"),
    ),
    "qrels with unknown qid": (
        lambda r: append(r, QRELS, b"20:99 0 20:1 1 0\n"),
        *(QRELS, 7, "20:99", "unreachable qrels: the qid is not in"),
    ),
    "qrels with unknown did": (
        lambda r: append(r, QRELS, b"20:1 0 20:99 1 0\n"),
        *(QRELS, 7, "20:1", "unreachable qrels: 20:99 is not in"),
    ),
    "qrels columns": (lambda r: append(r, QRELS, b"20:1 0 20:99 1\n"), *(QRELS, 7, "-", "4 columns")),
    "malformed JSON": (
        lambda r: append(r, QUERIES, b'{"qid": "20:9",\n'),
        *(QUERIES, 7, "-", "malformed JSON"),
    ),
    "not an object": (lambda r: append(r, POOL, b"[1, 2]\n"), *(POOL, 7, "-", "the line is [1, 2]")),
    "not UTF-8": (lambda r: append(r, POOL, b"\xff\xfe\n"), *(POOL, 7, "-", "malformed JSON: 'utf-8' codec")),
    "grain span": (
        lambda r: change(r, QUERIES, 6, grains=[{"key": "shape", "value": "ball", "start": 4, "end": 4}]),
        *(QUERIES, 6, "20:5", "grain span: grains[0] has start 4 and end 4"),
    ),
    "task differs from the file's": (
        lambda r: change(r, QUERIES, 6, task_id=2),
        *(QUERIES, 6, "20:5", "task_id is 2, expected 0"),
    ),
    "no local pool": (lambda r: (r / POOL).unlink(), *(QUERIES, 0, "-", "no local pool")),
    "no qrels": (lambda r: (r / QRELS).unlink(), *(QUERIES, 0, "-", "no qrels")),
    "no instruction file": (lambda r: (r / INSTRUCTIONS).unlink(), *(INSTRUCTIONS, 0, "-", "missing file")),
    "bad instruction": (
        lambda r: append(r, INSTRUCTIONS, b"text\timage\tscenes\n"),
        *(INSTRUCTIONS, 3, "-", "3 columns"),
    ),
    "empty query file": (lambda r: (r / QUERIES).write_bytes(b""), *(QUERIES, 0, "-", "no queries")),
    "empty pool": (lambda r: (r / POOL).write_bytes(b""), *(POOL, 0, "-", "no candidates")),
    "file name": (
        lambda r: (r / QUERIES).rename(r / "query/test/mine.jsonl"),
        *("query/test/mine.jsonl", 0, "-", "unknown file name"),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named(root: Path, name: str) -> None:
    plant, path, line, identifier, message = FAULTS[name]
    plant(root)
    problems = [p for p in check(root) if (p.path, p.line, p.id) == (path, line, identifier)]
    assert any(problem.message.startswith(message) for problem in problems), problems


def test_each_fault_of_a_record_is_one_problem_and_nothing_else(root: Path) -> None:
    """The pictures' and records' faults do not spill over to other lines."""
    truncate(root / "mbeir_images/1.png")
    change(root, POOL, 1, img_path="mbeir_images/none.png")
    change(root, QUERIES, 4, query_txt="")
    change(root, QUERIES, 5, pos_cand_list=["20:77"])
    found = [(p.path, p.line, p.message.split(":")[0]) for p in check(root)]
    assert (POOL, 1, "missing image") in found
    assert [f[2] for f in found].count("broken image") == 1  # used in six pool files, opened once
    assert sorted(f for f in found if f[0] == QUERIES) == [
        (QUERIES, 4, "grain span"),  # "" has no characters 0 to 4
        (QUERIES, 4, "no text"),
        (QUERIES, 5, "positive not in the pool"),
    ]
    assert len(found) == 5


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_broken_pictures(root: Path, content: bytes) -> None:
    (root / "mbeir_images/3.png").write_bytes(content)
    assert [(p.id, p.message.split(":")[0]) for p in check(root)] == [("20:3", "broken image")]


def test_a_missing_instruction_is_reported_once_a_file(root: Path) -> None:
    (root / INSTRUCTIONS).write_text((root / INSTRUCTIONS).read_text().replace("\t20\t", "\t9\t"))
    problems = list(check(root))
    assert {p.message for p in problems} == {
        f"no instruction for dataset 20, text -> image, expected a row in {INSTRUCTIONS}"
    }
    assert len(problems) == len({p.path for p in problems}) == 5  # train, val, test and two union files
    assert {p.line for p in problems} == {1}


def test_repeated_queries_are_fine_only_where_mbeir_up_samples(root: Path) -> None:
    repeat_line(root, "query/union_train/mbeir_union_up_train.jsonl")
    assert list(check(root)) == []
    repeat_line(root, "query/train/mbeir_scenes_train.jsonl")
    assert [p.message.split(",")[0] for p in check(root)] == ["duplicate qid"]


def test_folders_in_the_place_of_files(root: Path) -> None:
    for relative in (QUERIES, POOL, QRELS, INSTRUCTIONS):
        (root / relative).unlink()
        (root / relative).mkdir()
    assert {QUERIES, POOL, QRELS, INSTRUCTIONS} <= {p.path for p in check(root)}


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_text("a file")])
def test_no_directory_at_all(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "data")
    (problem,) = check(tmp_path / "data")
    assert problem.message.startswith("not an M-BEIR directory")


@pytest.mark.parametrize("folder", ["cand_pool", "query", "qrels", "instructions", "mbeir_images"])
def test_missing_folders(root: Path, folder: str) -> None:
    shutil.rmtree(root / folder)
    assert list(check(root))


def test_a_problem_is_one_printable_line() -> None:
    line = str(Problem("a\nb.jsonl", 3, "20:\ud800", "é\x1b[31m\u2028 text " + "x" * 500))
    assert line.startswith("a\\nb.jsonl:3: 20:\\ud800: é\\x1b[31m\\u2028 text xxx")
    assert len(line.splitlines()) == 1
    assert line.encode("utf-8")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["20:1", "text"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["key", "start", "a"]), inner)
    ),
    max_leaves=5,
)
QUERY_KEYS = ("qid", "query_txt", "query_img_path", "query_modality", "pos_cand_list", "task_id", "grains")
CANDIDATE_KEYS = ("did", "txt", "img_path", "modality")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_value_of_any_field_crashes_it(root: Path, data: st.DataObject) -> None:
    relative, keys = data.draw(st.sampled_from([(QUERIES, QUERY_KEYS), (POOL, CANDIDATE_KEYS)]))
    key = data.draw(st.sampled_from(keys))
    change(root, relative, data.draw(st.integers(1, 6)), **{key: data.draw(JSON)})
    for problem in check(root):
        assert str(problem).encode("utf-8").splitlines() == [str(problem).encode("utf-8")]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    relative=st.sampled_from([QUERIES, POOL, QRELS, INSTRUCTIONS, "mbeir_images/2.png"]),
    content=st.binary(max_size=40),
    position=st.integers(0, 400),
)
def test_no_bytes_crash_it(root: Path, relative: str, content: bytes, position: int) -> None:
    original = (root / relative).read_bytes()
    (root / relative).write_bytes(original[:position] + content + original[position:])
    for problem in check(root):
        str(problem).encode("utf-8")
    (root / relative).write_bytes(original)


def test_deeply_nested_json(root: Path) -> None:
    append(root, QUERIES, b"[" * 100_000 + b"\n" + b'{"qid":' + b"[" * 900 + b"]" * 900 + b"}\n")
    lines = {p.line for p in check(root) if p.path == QUERIES}
    assert lines == {7, 8}


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


LATE_FAULTS: dict[str, Fault] = {
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
