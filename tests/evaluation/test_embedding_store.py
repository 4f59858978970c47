"""Stored embeddings: those of the encoder, made once, by one process or two, in spite of kills and damage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from elva.evaluation import embedding_store
from elva.evaluation.embedding_store import StoredEncoder
from elva.evaluation.retrieval import evaluate
from elva.models import tiny
from elva.models.identity import model_digest
from tests.evaluation.conftest import WordEncoder, build


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(embedding_store, "SHARD", 3)


def without_time(results) -> dict:
    fields = json.loads(results.to_json())
    del fields["seconds"]
    del fields["model"]
    return fields


def test_an_evaluation_on_stored_embeddings_is_the_same_and_the_second_encodes_nothing(root, tmp_path):
    plain = without_time(evaluate(WordEncoder(), root))
    encoder = WordEncoder()
    assert without_time(evaluate(StoredEncoder(encoder, tmp_path / "kept", "m"), root)) == plain
    assert encoder.encoded
    again = WordEncoder()
    assert without_time(evaluate(StoredEncoder(again, tmp_path / "kept", "m"), root)) == plain
    assert again.encoded == []


def test_a_killed_evaluation_goes_on(root, tmp_path):
    class Killed(WordEncoder):
        def encode(self, inputs, **options):
            if len(self.encoded) >= 12:
                raise KeyboardInterrupt
            return super().encode(inputs, **options)

    whole = WordEncoder()
    evaluate(StoredEncoder(whole, tmp_path / "whole", "m"), root)
    with pytest.raises(KeyboardInterrupt):
        evaluate(StoredEncoder(Killed(), tmp_path / "kept", "m"), root)
    rest = WordEncoder()
    found = evaluate(StoredEncoder(rest, tmp_path / "kept", "m"), root)
    assert without_time(found) == without_time(evaluate(WordEncoder(), root))
    assert 0 < len(rest.encoded) < len(whole.encoded)


@pytest.mark.parametrize("change", ["model", "mode", "text", "picture", "damage"])
def test_what_changed_is_encoded_anew(change, tmp_path, root):
    picture = next(path for path in root.rglob("*.png"))
    inputs = [{"text": "a red shape", "image": None}, {"text": None, "image": str(picture)}]
    encoder = WordEncoder()
    first = StoredEncoder(encoder, tmp_path / "kept", "m").encode(inputs, mode="direct")
    encoder.encoded.clear()
    if change == "picture":
        picture.touch()
    if change == "damage":
        (file,) = (tmp_path / "kept").iterdir()
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    if change == "text":
        inputs[0] = {"text": "a blue shape", "image": None}
    stored = StoredEncoder(encoder, tmp_path / "kept", "n" if change == "model" else "m")
    second = stored.encode(inputs, mode="generative" if change == "mode" else "direct")
    assert len(encoder.encoded) == 2
    assert torch.equal(first, second) == (change != "text")


def test_a_picture_given_by_its_path_alone_is_known_by_its_content(tmp_path, root):
    picture = next(path for path in root.rglob("*.png"))
    encoder = tiny.create(["a red cat"] * 4)
    first = StoredEncoder(encoder, tmp_path / "kept", "m").encode([str(picture)], mode="direct")
    from PIL import Image

    other = tmp_path / "other.png"
    Image.new("RGB", (64, 64), "black").save(other)
    other.replace(picture)
    second = StoredEncoder(encoder, tmp_path / "kept", "m").encode([str(picture)], mode="direct")
    assert torch.equal(second, encoder.encode([str(picture)], mode="direct"))
    assert not torch.equal(second, first)


def test_an_instruction_for_each_input_is_kept_with_its_own(tmp_path):
    encoder = tiny.create(["a red cat"] * 4)
    inputs, instructions = ["a cat"] * 5, ["one", "two", "three", "four", "five"]
    stored = StoredEncoder(encoder, tmp_path / "kept", "m").encode(inputs, instructions, mode="direct")
    torch.testing.assert_close(stored, encoder.encode(inputs, instructions, mode="direct"))


def test_pictures_in_memory_are_not_kept(tmp_path):
    from PIL import Image

    model = tiny.create(["a red cat"] * 4)
    stored = StoredEncoder(model, tmp_path / "kept", "m")
    picture = Image.new("RGB", (96, 96), "red")
    assert torch.equal(stored.encode([picture], mode="direct"), model.encode([picture], mode="direct"))
    assert not (tmp_path / "kept").exists()


def test_the_digest_knows_weights_and_settings():
    model, same, other = (tiny.create(["a red cat"] * 4, seed=seed) for seed in (0, 0, 1))
    assert model_digest(model) == model_digest(same) != model_digest(other)
    same.image_processor.size = {"shortest_edge": 48 * 48, "longest_edge": 48 * 48}
    assert model_digest(model) != model_digest(same)


def test_a_file_in_place_of_the_directory_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"directory: .*file is a file"):
        StoredEncoder(WordEncoder(), tmp_path / "file", "m")


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    path = Path(folder)
    dist.init_process_group("gloo", init_method=f"file://{path / 'meet'}", rank=rank, world_size=2)
    embedding_store.SHARD = 3
    encoder = WordEncoder()
    results = evaluate(StoredEncoder(encoder, path / "kept", "m"), path / "data")
    record = {"results": without_time(results), "encoded": len(encoder.encoded)}
    (path / f"{rank}.json").write_text(json.dumps(record))
    dist.destroy_process_group()


def test_two_processes_share_the_work_and_find_the_same(tmp_path):
    root = build(tmp_path / "data")
    mp.spawn(_process, (str(tmp_path),), nprocs=2)
    records = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    plain, alone = WordEncoder(), WordEncoder()
    expected = without_time(evaluate(plain, root))
    assert records[0]["results"] == records[1]["results"] == expected
    evaluate(StoredEncoder(alone, tmp_path / "alone", "m"), root)
    assert all(record["encoded"] for record in records)
    assert sum(record["encoded"] for record in records) == len(alone.encoded)
