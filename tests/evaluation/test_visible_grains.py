"""Shares of near misses by grain, and the features that a language model receives."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from elva.data.facts import Fact, NearMiss, Question
from elva.evaluation.visible_grains import GrainSight, by_grain, picture_features

ASKED = (Fact(Question("", "ground"), "sand"),)
PAIRS = [
    NearMiss("colour", 0, 0, 1, ASKED),
    NearMiss("colour", 0, 0, 2, ASKED),
    NearMiss("size", 1, 3, 4, ASKED),
]


def test_shares_by_grain():
    scores = torch.tensor([[0.9, 0.8, 0.95, 0.0, 0.0], [0.0, 0.0, 0.0, 0.5, 0.5]])
    found = by_grain(PAIRS, [True, True, False], scores)
    # equal similarities are not told apart
    assert found == [GrainSight("colour", 2, 1.0, 0.5), GrainSight("size", 1, 0.0, 0.0)]
    assert [sight.visible for sight in found] == [True, False]


def test_without_embeddings_there_is_no_share_of_theirs():
    assert by_grain(PAIRS, [True, False, True]) == [GrainSight("colour", 2, 0.5), GrainSight("size", 1, 1.0)]
    assert by_grain(PAIRS, [True, False, True])[0].embedding_interval is None


def test_intervals_hold_their_share_and_narrow_with_the_pairs():
    few, many = GrainSight("size", 10, 0.8, 0.5), GrainSight("size", 1000, 0.8, 0.5)
    for sight in (few, many):
        low, high = sight.probe_interval
        assert low < 0.8 < high and sight.embedding_interval is not None
    assert many.probe_interval[0] > few.probe_interval[0]


@pytest.fixture(scope="module")
def frozen():
    from elva.models import tiny

    encoder = tiny.create(["a red star"], seed=0)
    encoder.base_model.requires_grad_(False)
    return encoder


def test_features_are_the_towers_own_whatever_stands_beside_them(frozen):
    images = [Image.new("RGB", (96, 96), colour) for colour in ("red", "blue", "green")]
    features = picture_features(frozen, images)
    assert features.shape == (3, 16, frozen.hidden_size)
    torch.testing.assert_close(picture_features(frozen, images[1:2]), features[1:2])
    assert not torch.equal(features[0], features[1])


def test_pictures_of_several_sizes_are_refused(frozen):
    images = [Image.new("RGB", size, "red") for size in ((96, 96), (192, 48))]
    with pytest.raises(ValueError, match="images: of several sizes, expected one"):
        picture_features(frozen, images)
