from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elva.data import DataError, MBEIRDirectory
from elva.data.check import Problem, check
from tests.data.faulty import INSTRUCTIONS, POOL, QRELS, QUERIES, append, build, change


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("sound") / "data")


@pytest.fixture
def root(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "data"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def repeat_line(root: Path, relative: str) -> None:
    append(root, relative, (root / relative).read_bytes().splitlines(keepends=True)[0])


def test_a_sound_directory_has_no_problem(sound: Path) -> None:
    assert list(check(sound)) == []


GLOBAL_POOL = "cand_pool/global/mbeir_union_test_cand_pool.jsonl"
ZERO = QUERIES.replace("task0", "task00")


def renumber(root: Path, number: str) -> None:
    """Give the queries of task 0 another spelling of their number."""
    (root / QUERIES).rename(root / QUERIES.replace("task0", f"task{number}"))


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
    "path comes back": (
        lambda r: change(r, POOL, 2, img_path=f"../{r.name}/mbeir_images/1.png"),
        *(POOL, 2, "20:1", "image path: ../"),
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
    "a line of a table": (
        lambda r: append(r, POOL, b"did,txt\n"),
        *(POOL, 7, "-", "malformed JSON: Expecting value: line 1 column 1 (char 0), at 'did,txt'"),
    ),
    "UTF-16": (
        lambda r: (r / QUERIES).write_bytes((r / QUERIES).read_text().encode("utf-16-le")),
        *(QUERIES, 0, "-", "cannot be read: the file is UTF-16 text, expected UTF-8 text"),
    ),
    "a key twice": (
        lambda r: append(r, POOL, b'{"did": "20:9", "txt": "a", "modality": "text", "txt": "b"}\n'),
        *(POOL, 7, "-", "malformed JSON: the key 'txt' stands twice in one object, expected once"),
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
    "no global pool": (
        lambda r: (r / GLOBAL_POOL).unlink(),
        *(GLOBAL_POOL, 0, "-", "no global pool: the file is missing, expected the candidates of all test"),
    ),
    "task number with a zero": (lambda r: renumber(r, "00"), *(ZERO, 0, "-", "unknown file name")),
    "qrels with a zero": (
        lambda r: (r / QRELS).rename(r / QRELS.replace("task0", "task00")),
        *(QRELS.replace("task0", "task00"), 0, "-", "unknown file name"),
    ),
    "task number in other digits": (
        lambda r: renumber(r, "\u0660"),
        *(QUERIES.replace("task0", "task\u0660"), 0, "-", "unknown file name"),
    ),
    "folder in a file name": (
        lambda r: (
            (r / "query/train/mbeir_a").mkdir(),
            (r / "query/train/mbeir_scenes_train.jsonl").rename(r / "query/train/mbeir_a/b_train.jsonl"),
        ),
        *("query/train/mbeir_a/b_train.jsonl", 0, "-", "unknown file name"),
    ),
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


@pytest.mark.parametrize("number", ["00", "\u0660", "", "x"])
def test_readers_refuse_the_file_names_that_the_check_refuses(root: Path, number: str) -> None:
    renumber(root, number)
    with pytest.raises(DataError, match=rf"task{number}_test\.jsonl: unknown file name, expected mbeir_"):
        MBEIRDirectory(root).tasks("test")


@pytest.mark.parametrize("name", ["mbeir_scenes_task0_train.jsonl", "mbeir_a_task00_train.jsonl"])
def test_training_files_that_the_check_accepts_are_read(root: Path, name: str) -> None:
    file = root / "query/train" / name
    (root / "query/train/mbeir_scenes_train.jsonl").rename(file)
    assert list(check(root)) == []
    (task,) = MBEIRDirectory(root).tasks("train")
    assert len(MBEIRDirectory(root).queries("train", *task)) == 6


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
