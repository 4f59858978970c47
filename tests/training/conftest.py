from pathlib import Path

import pytest

from elva.data.scenes import generate
from elva.models import tiny
from elva.training.examples import TrainingData, corpus


@pytest.fixture(scope="session")
def mini_scenes(tmp_path_factory) -> Path:
    """A small drawn data set: enough to train on, quick to draw."""
    root = tmp_path_factory.mktemp("data") / "scenes"
    generate(root, 40, seed=0)
    return root


@pytest.fixture(scope="session")
def untrained_model(mini_scenes, tmp_path_factory) -> Path:
    """A saved tiny model without any training: what the stages start from in these tests."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    tiny.create(corpus(TrainingData(mini_scenes)), seed=0).save_pretrained(path)
    return path
