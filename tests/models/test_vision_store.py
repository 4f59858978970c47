"""Features on disk: bit for bit, never another tower's or size's, whole in spite of damage and other writers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from elva.models import tiny
from elva.models.vision_store import VisionStore

from .conftest import TEXTS, draw


def features(encoder, picture):
    with torch.no_grad():
        return encoder.prepare([picture])["image_features"]


@pytest.fixture
def make(tmp_path):
    """Fresh encoders that share a directory, and how often their towers ran."""
    runs = []

    def fresh(seed=0, image_size=96):
        encoder = tiny.create(TEXTS, seed=seed, image_size=image_size)
        encoder.base_model.model.visual.register_forward_hook(lambda *_: runs.append(1))
        encoder.cache_vision(tmp_path / "features")
        return encoder

    return fresh, runs


def test_another_process_reads_what_one_wrote(make):
    fresh, runs = make
    first = features(fresh(), draw("red"))
    assert torch.equal(features(fresh(), draw("red")), first)
    assert len(runs) == 1


def test_another_tower_precision_or_size_computes_its_own(make, tmp_path):
    fresh, runs = make
    features(fresh(), draw("red"))
    features(fresh(seed=1), draw("red"))
    features(fresh(image_size=48), draw("red"))
    half = fresh()
    half.model.to(torch.bfloat16)
    assert features(half, draw("red")).dtype == torch.bfloat16
    assert len(runs) == 4 == len(list((tmp_path / "features").rglob("*.safetensors")))


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_file_is_replaced(make, tmp_path, damage):
    fresh, runs = make
    first = features(fresh(), draw("red"))
    (file,) = (tmp_path / "features").rglob("*.safetensors")
    whole = file.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    file.write_bytes({"cut": whole[:-100], "flipped": flipped, "empty": b""}[damage])
    assert torch.equal(features(fresh(), draw("red")), first)
    assert len(runs) == 2 and file.read_bytes() == whole


def test_writers_at_the_same_time(tmp_path):
    store = VisionStore(tmp_path)
    tensors = [torch.full((50, 64), float(number)) for number in range(4)]

    def work(turn: int) -> bool:
        name = str(turn % 4)
        store.put(name, "tower", tensors[turn % 4])
        found = store.get(name, "tower")
        return found is not None and torch.equal(found, tensors[turn % 4])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(200)))
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 4


def test_a_file_is_no_directory(own_encoder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"vision_cache: .*file is a file, expected a directory"):
        own_encoder.cache_vision(tmp_path / "file")
