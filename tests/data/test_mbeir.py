from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from elva.data import TASK_MODALITIES, Candidate, DataError, Grain, MBEIRDirectory, MBEIRWriter, Query, Task
from elva.data.check import check
from elva.data.records import query_problems
from tests.data.faulty import QRELS, build

CAPTION = Query("20:1", "a red ball", None, "text", 0, ("20:2",), grains=(Grain("color", "red", 2, 5),))
PICTURE = Candidate("20:2", None, "mbeir_images/a.png", "image")


def write(root: Path) -> MBEIRDirectory:
    """Two datasets, three splits, two tasks."""
    with MBEIRWriter(root) as writer:
        writer.save_image("mbeir_images/a.png", Image.new("RGB", (8, 8), "red"))
        writer.add_instruction("text", "image", "scenes", 20, ["Find the picture."])
        for split in ("train", "val", "test"):
            writer.add_query(split, "scenes", CAPTION)
            writer.add_candidate(split, "scenes", 0, PICTURE)
            writer.add_query(split, "scenes", Query("20:9", "ball", None, "text", 1, ("20:3", "20:4")))
            writer.add_candidate(split, "scenes", 1, Candidate("20:3", "Ein Ball, ÄÖÜ\u2028✓", None, "text"))
            writer.add_candidate(split, "scenes", 1, Candidate("20:4", "a ball", None, "text"))
        multigrain = Query("21:1", "a ball", None, "text", 0, ("21:1",))
        writer.add_query("test", "scenes_multigrain", multigrain)
        writer.add_candidate(
            "test", "scenes_multigrain", 0, Candidate("21:1", None, "mbeir_images/a.png", "image")
        )
    return MBEIRDirectory(root)


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_written_records_come_back(tmp_path: Path) -> None:
    directory = write(tmp_path)
    assert directory.tasks("test") == [Task("scenes", 0), Task("scenes", 1), Task("scenes_multigrain", 0)]
    assert directory.tasks("val") == directory.tasks("train") == [Task("scenes", 0), Task("scenes", 1)]
    assert directory.queries("test", "scenes", 0) == [CAPTION]
    assert [query.qid for query in directory.queries("train", "scenes", 1)] == ["20:9"]
    assert directory.pool("test", "scenes", 0) == [PICTURE]
    assert directory.pool("test", "scenes", 1)[0].text == "Ein Ball, ÄÖÜ\u2028✓"
    assert directory.qrels("test", "scenes", 1) == {"20:9": {"20:3": 1, "20:4": 1}}
    assert directory.instructions.choose(CAPTION, "image") == "Find the picture."
    assert directory.path(PICTURE.image or "").read_bytes().startswith(b"\x89PNG")


def test_layout_is_that_of_mbeir(tmp_path: Path) -> None:
    write(tmp_path)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    expected = {
        "instructions/query_instructions.tsv",
        "mbeir_images/a.png",
        "query/train/mbeir_scenes_train.jsonl",
    }
    expected |= {"query/union_train/mbeir_union_up_train.jsonl", "query/union_val/mbeir_union_val.jsonl"}
    expected |= {
        f"cand_pool/global/mbeir_union_{split}_cand_pool.jsonl" for split in ("train", "val", "test")
    }
    tasks = [("scenes", 0, "val"), ("scenes", 1, "val"), ("scenes", 0, "test"), ("scenes", 1, "test")]
    for dataset, task, split in [*tasks, ("scenes_multigrain", 0, "test")]:
        expected.add(f"query/{split}/mbeir_{dataset}_task{task}_{split}.jsonl")
        expected.add(f"qrels/{split}/mbeir_{dataset}_task{task}_{split}_qrels.txt")
        expected.add(f"cand_pool/local/mbeir_{dataset}_task{task}_{split}_cand_pool.jsonl")
    assert files == expected
    qrels = (tmp_path / "qrels/test/mbeir_scenes_task1_test_qrels.txt").read_text()
    assert qrels == "20:9 0 20:3 1 1\n20:9 0 20:4 1 1\n"
    record = json.loads((tmp_path / "query/test/mbeir_scenes_task1_test.jsonl").read_text())
    assert record == {
        "qid": "20:9",
        "query_txt": "ball",
        "query_img_path": None,
        "query_modality": "text",
        "query_src_content": None,
        "pos_cand_list": ["20:3", "20:4"],
        "neg_cand_list": [],
        "task_id": 1,
    }


def test_the_global_pool_joins_the_local_ones(tmp_path: Path) -> None:
    directory = write(tmp_path)
    assert {c.did for c in directory.pool("test", "scenes", 0, scope="global")} == {
        "20:2",
        "20:3",
        "20:4",
        "21:1",
    }
    assert set(directory.train_pool()) == {"20:2", "20:3", "20:4"}


def test_training_queries_come_from_the_union_file_or_else_from_each_file(tmp_path: Path) -> None:
    directory = write(tmp_path)
    union = tmp_path / "query/union_train/mbeir_union_up_train.jsonl"
    union.write_text(union.read_text() * 2)  # M-BEIR up-samples by repeating
    assert [query.qid for query in directory.train_queries()] == ["20:1", "20:9"] * 2
    union.unlink()
    assert [query.qid for query in directory.train_queries()] == ["20:1", "20:9"]


def test_a_pool_without_split_serves_val_and_test(tmp_path: Path) -> None:
    directory = write(tmp_path)
    local = tmp_path / "cand_pool/local"
    (local / "mbeir_scenes_task0_test_cand_pool.jsonl").rename(local / "mbeir_scenes_task0_cand_pool.jsonl")
    assert directory.pool("test", "scenes", 0) == [PICTURE]


@pytest.mark.parametrize(
    "relative", ["../secret.png", "/etc/hostname", "mbeir_images/../../secret.png", "a\0b"]
)
def test_paths_may_not_leave_the_directory(tmp_path: Path, relative: str) -> None:
    directory = write(tmp_path / "data")
    with pytest.raises(DataError):
        directory.path(relative)


def test_nor_by_a_symbolic_link(tmp_path: Path) -> None:
    directory = write(tmp_path / "data")
    (tmp_path / "secret.png").write_bytes(b"")
    (tmp_path / "data/mbeir_images/link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match=r"link.png: path leaves the directory"):
        directory.path("mbeir_images/link.png")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"20:1"', '"1"', "1: 1: qid is '1', expected a string dataset_id:number"),
        ('"text"', '"video"', "1: 20:1: unknown modality: query_modality is 'video', expected one of 'text'"),
        ('"a red ball"', '" "', "1: 20:1: no text: query_modality is 'text' but query_txt is empty"),
        ('["20:2"]', "[]", "1: 20:1: no positive"),
        ('["20:2"]', '"20:2"', "1: 20:1: pos_cand_list is '20:2', expected a list"),
        ('"end": 5', '"end": 50', "1: 20:1: grain span: grains[0] has start 2 and end 50"),
        ('"task_id": 0', '"task_id": 5', "1: 20:1: task_id is 5, expected one of 0, 1, 2, 3, 4, 6, 7, 8"),
        ('"task_id": 0', '"task_id": 3', "1: 20:1: query_modality is 'text', expected 'image' in task 3"),
        ('{"qid"', '{"qid', "1: -: malformed JSON"),
    ],
)
def test_a_broken_query_names_file_line_and_id(tmp_path: Path, old: str, new: str, message: str) -> None:
    directory = write(tmp_path)
    relative = "query/test/mbeir_scenes_task0_test.jsonl"
    edit(tmp_path / relative, old, new)
    with pytest.raises(DataError) as error:
        directory.queries("test", "scenes", 0)
    assert f"{relative}:{message}" in str(error.value)


def test_duplicates_are_refused(tmp_path: Path) -> None:
    directory = write(tmp_path)
    for relative in (
        "query/test/mbeir_scenes_task0_test.jsonl",
        "cand_pool/local/mbeir_scenes_task0_test_cand_pool.jsonl",
    ):
        file = tmp_path / relative
        file.write_text(file.read_text() * 2)
    with pytest.raises(DataError, match=r"test.jsonl:2: 20:1: duplicate qid"):
        directory.queries("test", "scenes", 0)
    with pytest.raises(DataError, match=r"pool.jsonl:2: 20:2: duplicate did"):
        directory.pool("test", "scenes", 0)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not an M-BEIR directory"):
        MBEIRDirectory(tmp_path)
    directory = write(tmp_path)
    with pytest.raises(DataError, match=r"task7_test.jsonl: no such file .*scenes task0, scenes task1"):
        directory.queries("test", "scenes", 7)
    (tmp_path / "cand_pool/local/mbeir_scenes_task0_test_cand_pool.jsonl").unlink()
    with pytest.raises(DataError, match=r"mbeir_scenes_task0_cand_pool.jsonl: cannot be read"):
        directory.pool("test", "scenes", 0)
    with pytest.raises(ValueError, match="split is 'dev'"):
        directory.tasks("dev")


def test_qrels_that_contradict_each_other_are_named(tmp_path: Path) -> None:
    build(tmp_path)
    file = tmp_path / QRELS
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines, lines[0]]) + "\n")  # twice the same says the same
    assert MBEIRDirectory(tmp_path).qrels("test", "scenes", 0)["20:0"] == {"20:0": 1}
    assert list(check(tmp_path)) == []
    file.write_text("\n".join([*lines, "20:0 0 20:0 0 0"]) + "\n")
    message = f"{QRELS}:7: 20:0: contradicting qrels: 20:0 has relevance 1, then 0; expected one"
    with pytest.raises(DataError) as caught:
        MBEIRDirectory(tmp_path).qrels("test", "scenes", 0)
    assert str(caught.value) == message
    assert [str(problem) for problem in check(tmp_path)] == [message]


def test_qrels_need_five_columns(tmp_path: Path) -> None:
    directory = write(tmp_path)
    edit(tmp_path / "qrels/test/mbeir_scenes_task0_test_qrels.txt", " 1 0\n", " 1\n")
    with pytest.raises(DataError, match=r"qrels.txt:1: -: 4 columns, expected five"):
        directory.qrels("test", "scenes", 0)


def test_a_failed_writer_leaves_no_data_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="20:1: duplicate qid"), MBEIRWriter(tmp_path) as writer:
        writer.add_query("test", "scenes", CAPTION)
        writer.add_query("test", "scenes", CAPTION)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_writer_refuses_what_the_reader_would(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no positive"), MBEIRWriter(tmp_path / "a") as writer:
        writer.add_query("test", "scenes", Query("20:1", "ball", None, "text", 0, ()))
    with pytest.raises(DataError, match="two different candidates"), MBEIRWriter(tmp_path / "b") as writer:
        writer.add_candidate("test", "scenes", 0, PICTURE)
        writer.add_candidate("test", "scenes", 0, PICTURE)
        writer.add_candidate("test", "scenes", 0, Candidate("20:2", None, "mbeir_images/b.png", "image"))
    with (
        pytest.raises(DataError, match="expected a path below mbeir_images"),
        MBEIRWriter(tmp_path / "c") as writer,
    ):
        writer.save_image("mbeir_images/../../a.png", Image.new("RGB", (4, 4)))
    with pytest.raises(DataError, match="without tab"), MBEIRWriter(tmp_path / "d") as writer:
        writer.add_instruction("text", "image", "scenes", 20, ["Find\tit."])


def test_the_writer_does_not_mix_two_data_sets(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(FileExistsError, match="exists already"):
        MBEIRWriter(tmp_path)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(
    text=texts,
    task_id=st.sampled_from(sorted(TASK_MODALITIES)),
    positives=st.lists(texts, min_size=1, max_size=3),
    spans=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=3),
)
def test_json_round_trip_is_exact_or_refused_for_a_reason(
    text: str, task_id: int, positives: list[str], spans: list[tuple[int, int]]
) -> None:
    modality = TASK_MODALITIES[task_id][0]
    image = "mbeir_images/a.png" if "image" in modality else None
    grains = tuple(Grain("color", "red", start, end) for start, end in spans)
    query = Query("20:1", text, image, modality, task_id, tuple(positives), grains=grains)
    record = json.loads(json.dumps(query.to_json()))
    valid_spans = all(start < end <= len(text) for start, end in spans)
    if valid_spans and (text.strip() or modality == "image"):
        assert Query.from_json(record, "file:1") == query
    else:
        assert query_problems(record)
        with pytest.raises(DataError, match="file:1: 20:1: "):
            Query.from_json(record, "file:1")
