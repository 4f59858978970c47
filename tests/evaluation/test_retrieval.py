"""Evaluation of a whole directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from elva.data.mbeir import DataError, MBEIRDirectory
from elva.evaluation.inputs import CandidateEmbeddings, Inputs, parse_instructions
from elva.evaluation.results import Results
from elva.evaluation.retrieval import evaluate
from tests.evaluation.conftest import WordEncoder


def test_perfect_reader_finds_everything(root: Path, word_encoder: Callable) -> None:
    results = evaluate(word_encoder(), root)
    assert [(row.name, row.hit_rate, row.num_queries, row.pool_size) for row in results.rows] == [
        ("toys_task0", 1.0, 8, 8),
        ("toys_task4", 1.0, 8, 8),
        ("toys_multigrain_task0", 1.0, 8, 8),
    ]
    assert results.mean_hit_rate == 1
    grains = results.multigrain
    assert grains is not None
    assert grains.ranks == [1] * 8
    assert grains.by_grains() == {2: {"queries": 8, "hit_at_1": 1.0, "hit_at_5": 1.0}}
    assert grains.grains_named == 1
    assert set(grains.grain_distance_by_key) == {"colour", "size"}
    assert grains.grain_distance is not None
    assert grains.grain_distance > 0.1


def test_blind_reader_is_caught_by_the_multigrain_split_alone(root: Path, word_encoder: Callable) -> None:
    results = evaluate(word_encoder(blind_to=frozenset({"small", "large"})), root)
    text_to_image, image_to_image, _ = results.rows
    assert text_to_image.hit_rate == 1
    assert text_to_image.recall == 1
    assert text_to_image.mrr == 1
    # The other size ties with the right picture, and a tie counts against it.
    assert image_to_image.mrr == pytest.approx(0.5)
    grains = results.multigrain
    assert grains is not None
    assert grains.ranks == [2] * 8
    assert (grains.hit_rate(1), grains.hit_rate(5)) == (0, 1)
    assert grains.grains_named == 0.5
    assert grains.grain_distance_by_key["size"] == pytest.approx(0, abs=1e-6)


def test_collapsed_reader_hits_nothing_at_one(root: Path, word_encoder: Callable) -> None:
    everything = frozenset({"red", "green", "blue", "yellow", "small", "large"})
    results = evaluate(word_encoder(blind_to=everything), root)
    assert results.multigrain is not None
    assert results.multigrain.ranks == [8] * 8
    assert results.mean_hit_rate == 0


def test_candidates_are_encoded_once_over_all_tasks(root: Path, word_encoder: Callable) -> None:
    encoder = word_encoder()
    evaluate(encoder, root, tasks=["toys"])
    # 8 candidates shared by two tasks, 8 queries each.
    assert len(encoder.encoded) == 8 + 8 + 8


def test_a_missing_global_pool_stops_only_who_searches_it(root: Path, word_encoder: Callable) -> None:
    (root / "cand_pool/global/mbeir_union_test_cand_pool.jsonl").unlink()
    assert evaluate(word_encoder(), root, pool="local").mean_hit_rate == 1
    encoder = word_encoder()
    with pytest.raises(DataError, match="no global pool: the file is missing"):
        evaluate(encoder, root, pool="global")
    assert not encoder.encoded


def test_global_pool_joins_the_pools_but_multigrain_keeps_its_own(root: Path, word_encoder: Callable) -> None:
    results = evaluate(word_encoder(), root, pool="global")
    assert [row.pool_size for row in results.rows] == [16, 16, 8]


def test_query_carries_its_instruction_and_cleaning(root: Path, word_encoder: Callable) -> None:
    encoder = word_encoder()
    evaluate(encoder, root, tasks=["toys_task0"])
    assert {"text": "Find the picture. a red shape.", "image": None} in encoder.encoded
    inputs = Inputs(MBEIRDirectory(root), "random:3")
    queries = MBEIRDirectory(root).queries("test", "toys", 0)
    drawn = {inputs.query(query)["text"].split(".")[0] for query in queries}
    assert drawn <= {"Find the picture", "Show what is described"}
    assert [inputs.query(query) for query in queries] == [
        Inputs(MBEIRDirectory(root), "random:3").query(query) for query in queries
    ]


def test_direct_mode_names_no_grains(root: Path, word_encoder: Callable) -> None:
    results = evaluate(word_encoder(), root, query_mode="direct")
    assert results.multigrain is not None
    assert results.multigrain.grains_named is None
    assert results.query_mode == "direct"


def test_limit_draws_the_same_queries_again(root: Path, word_encoder: Callable) -> None:
    first, again = (evaluate(word_encoder(), root, limit=3, seed=5) for _ in range(2))
    other = evaluate(word_encoder(), root, limit=3, seed=6)
    assert [len(row.qids) for row in first.rows] == [3, 3, 3]
    assert [row.qids for row in first.rows] == [row.qids for row in again.rows]
    assert [row.qids for row in first.rows] != [row.qids for row in other.rows]


def test_json_round_trip(root: Path, word_encoder: Callable) -> None:
    results = evaluate(word_encoder(), root)
    text = results.to_json()
    assert Results.from_json(text) == results
    assert json.loads(text)["summary"]["multigrain"]["by_grains"]["2"]["hit_at_1"] == 1
    with pytest.raises(ValueError, match=r"no results\.json"):
        Results.from_json('{"rows": 3}')


def test_faulty_directory_stops_before_anything_is_encoded(root: Path, word_encoder: Callable) -> None:
    file = root / "query/test/mbeir_toys_task0_test.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join([*["{"] * 7, *lines]) + "\n", encoding="utf-8")
    encoder = word_encoder()
    with pytest.raises(DataError) as caught:
        evaluate(encoder, root)
    first, *shown, last = str(caught.value).splitlines()
    assert f"has 7 problems in what this evaluation reads; `elva data check {root}` lists all" in first
    assert "--no-check" in first
    assert len(shown) == 5
    assert all(line.startswith("query/test/mbeir_toys_task0_test.jsonl:") for line in shown)
    assert last == "… and 2 more"
    assert encoder.encoded == []


def break_others(root: Path, pool: str) -> None:
    """Faults in all that an evaluation of toys_task0 on test does not read."""
    other = {"local": "global/mbeir_union_test", "global": "local/mbeir_toys_task4"}[pool]
    (root / "query/train").mkdir()
    for file in (
        "query/train/mbeir_toys_train.jsonl",
        "query/test/mbeir_toys_task4_test.jsonl",
        f"cand_pool/{other}_cand_pool.jsonl",
        "cand_pool/global/mbeir_union_train_cand_pool.jsonl",
    ):
        candidate = {"did": "20:99", "txt": None, "img_path": "mbeir_images/absent.png", "modality": "image"}
        with (root / file).open("a", encoding="utf-8") as lines:
            lines.write("{\n" + json.dumps(candidate) + "\n")


@pytest.mark.parametrize("pool", ["local", "global"])
def test_faults_in_what_is_not_read_stop_nothing(root: Path, word_encoder: Callable, pool: str) -> None:
    whole = evaluate(word_encoder(), root, tasks=["toys_task0"], pool=pool).rows
    break_others(root, pool)
    assert evaluate(word_encoder(), root, tasks=["toys_task0"], pool=pool).rows == whole
    (root / "mbeir_images/red_small.png").unlink()  # also a candidate of pools that are not read
    with pytest.raises(DataError, match=r"has 1 problem in what this .*\n.*missing image: .*red_small\.png"):
        evaluate(word_encoder(), root, tasks=["toys_task0"], pool=pool)


def test_an_empty_query_file_is_named_without_a_check_too(root: Path, word_encoder: Callable) -> None:
    (root / "query/test/mbeir_toys_task4_test.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"^query/test/mbeir_toys_task4_test.jsonl: no queries in this file"):
        evaluate(word_encoder(), root, check=False)


def test_unreachable_qrels_are_counted_not_fatal(root: Path, word_encoder: Callable) -> None:
    """M-BEIR's own OVEN and InfoSeek have them."""
    qrels = root / "qrels/test/mbeir_toys_task4_test_qrels.txt"
    with qrels.open("a", encoding="utf-8") as lines:
        lines.write("20:100 0 99:1 1 4\n20:100 0 99:2 1 4\n20:101 0 99:3 0 4\n")
    row = evaluate(word_encoder(), root, tasks=["toys_task4"]).rows[0]
    assert row.unreachable == 2
    assert (row.hit_rate, row.recall) == (1, 1)


def test_qrels_decide_what_is_right(root: Path, word_encoder: Callable) -> None:
    qrels = root / "qrels/test/mbeir_toys_task4_test_qrels.txt"
    text = qrels.read_text(encoding="utf-8")
    qrels.write_text(text.replace("20:100 0 20:0 1 4", "20:100 0 20:7 1 4"), encoding="utf-8")
    row = evaluate(word_encoder(), root, tasks=["toys_task4"]).rows[0]
    assert row.ranks[0] == 8
    assert row.ranks[1:] == [1] * 7


def test_multigrain_query_without_a_positive_is_an_error(root: Path, word_encoder: Callable) -> None:
    qrels = root / "qrels/test/mbeir_toys_multigrain_task0_test_qrels.txt"
    text = qrels.read_text(encoding="utf-8")
    qrels.write_text(text.replace("21:3 0 21:3 1 0", "21:3 0 99:3 1 0"), encoding="utf-8")
    with pytest.raises(DataError, match="21:3: no positive in the candidate pool"):
        evaluate(word_encoder(), root)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pool": "all"}, "pool must be one of local, global, got 'all'"),
        ({"query_mode": "x"}, "query_mode must be one of"),
        ({"candidate_mode": "x"}, "candidate_mode must be one of"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"tasks": ["nothing"]}, "tasks: no 'nothing' in split 'test'"),
        ({"instructions": "random"}, "instructions must be 'fixed', 'random:SEED'"),
        ({"split": "val"}, "no queries in split 'val'"),
    ],
)
def test_bad_arguments_are_named(root: Path, word_encoder: Callable, arguments: dict, message: str) -> None:
    encoder = word_encoder()
    with pytest.raises(ValueError, match=message):
        evaluate(encoder, root, **arguments)
    assert encoder.encoded == []


def test_missing_directory_is_named(tmp_path: Path, word_encoder: Callable) -> None:
    with pytest.raises(DataError, match="is not there"):
        evaluate(word_encoder(), tmp_path / "absent")


def test_candidates_can_be_kept_between_calls(root: Path, word_encoder: Callable) -> None:
    encoder = word_encoder()
    kept = CandidateEmbeddings(encoder, Inputs(MBEIRDirectory(root)))
    evaluate(encoder, root, tasks=["toys_task0"], candidates=kept)
    before = len(encoder.encoded)
    evaluate(encoder, root, tasks=["toys_task0"], candidates=kept)
    assert len(encoder.encoded) - before == 8
    with pytest.raises(DataError, match="pool is empty"):
        kept([])


def test_instruction_policies() -> None:
    assert parse_instructions("fixed") == ("fixed", 0)
    assert parse_instructions("random:12") == ("random", 12)


def test_real_encoder_in_both_modes(root: Path) -> None:
    from elva.models.tiny import create

    encoder = create(["Find the picture.", "a small red shape", "a large blue shape"], image_size=48)
    generative, direct = (
        evaluate(encoder, root, query_mode=mode, limit=2, tasks=["toys_multigrain"])
        for mode in ("generative", "direct")
    )
    for results in (generative, direct):
        assert [row.num_queries for row in results.rows] == [2]
        assert results.multigrain is not None
        assert all(1 <= rank <= 8 for rank in results.multigrain.ranks)
        assert results.multigrain.grain_distance is not None
        assert 0 < results.multigrain.grain_distance < 2
    assert generative.multigrain is not None
    assert generative.multigrain.grains_named is not None
    assert direct.multigrain is not None
    assert direct.multigrain.grain_distance != generative.multigrain.grain_distance


def test_averaged_instructions_are_the_mean_over_the_wordings(root: Path, tmp_path: Path) -> None:
    class Distracted(WordEncoder):
        """Reads nothing behind the second wording of text queries."""

        def words(self, item: object) -> list[str]:
            text = item if isinstance(item, str) else item["text"]  # type: ignore[index]
            return [] if (text or "").startswith("Show what is described") else super().words(item)

    fixed, average = (evaluate(Distracted(), root, instructions=name) for name in ("fixed", "average"))
    assert fixed.rows[0].hit_rates == []
    assert [row.hit_rates for row in average.rows] == [[1.0, 0.0], [1.0], [1.0, 0.0]]
    assert [row.hit_rate for row in average.rows] == [0.5, 1.0, 0.5]
    # Eight candidates that all tie with the two right ones: those stand at 7 and 8.
    assert average.rows[0].mrr == pytest.approx((1 + 1 / 7) / 2)
    assert [row.ranks for row in average.rows] == [row.ranks for row in fixed.rows]
    assert Results.from_json(average.to_json()) == average
    evaluate(Distracted(), root, instructions="average", trec=tmp_path / "trec", tasks=["toys_task0"])
    names = {"toys_task0.qrels", "toys_task0.run", "toys_task0_prompt2.run"}
    assert {path.name for path in (tmp_path / "trec").iterdir()} == names


def test_average_of_one_wording_is_that_wording(root: Path) -> None:
    fixed, average = (
        evaluate(WordEncoder(), root, instructions=name, tasks=["toys_task4"])
        for name in ("fixed", "average")
    )
    assert average.rows[0].hit_rates == [fixed.rows[0].hit_rate]
    assert average.rows[0].mrr == fixed.rows[0].mrr
