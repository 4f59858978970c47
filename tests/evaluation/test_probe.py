"""The linear probe: it reads what tokens say, of one place at a time, and nothing where they say nothing."""

from __future__ import annotations

import pytest
import torch

from elva.data.facts import Fact, NearMiss, Question
from elva.evaluation.probe import Probe

SHAPES, COLOURS = ("star", "ring", "heart"), ("red", "blue", "green", "black")


def pictures(count: int, seed: int):
    """Two things a picture, each at a token of its own that says shape and colour; the other two tokens are empty."""
    generator = torch.Generator().manual_seed(seed)
    features = 0.3 * torch.randn(count, 4, 12, generator=generator)
    facts = []
    for row in range(count):
        shapes = torch.randperm(3, generator=generator)[:2].tolist()
        colours = torch.randperm(4, generator=generator)[:2].tolist()
        places = torch.randperm(4, generator=generator)[:2].tolist()
        known = {Question(name, "shape"): "absent" for name in SHAPES}
        for shape, colour, place in zip(shapes, colours, places, strict=True):
            features[row, place, shape] += 3
            features[row, place, 3 + colour] += 3
            known[Question(SHAPES[shape], "shape")] = "there"
            known[Question(SHAPES[shape], "colour")] = COLOURS[colour]
            known[Question(SHAPES[shape], "place")] = "early" if place < 2 else "late"
        facts.append(known)
    return features, facts


def accuracy(probe: Probe, features, facts, key: str) -> float:
    """Of near misses made of two pictures of one subject whose answers differ."""
    pairs = []
    for right, known in enumerate(facts):
        for question, value in known.items():
            wrong = (right + 1) % len(facts)
            if question.key == key and facts[wrong].get(question, value) != value:
                pairs.append(NearMiss(key, 0, right, wrong, (Fact(question, value),)))
    assert len(pairs) > 50
    found = probe.right(features, pairs)
    return sum(found) / len(found)


@pytest.fixture(scope="module")
def probe() -> Probe:
    return Probe.fit(*pictures(800, 0), epochs=30, seed=0)


@pytest.mark.parametrize("key", ["shape", "colour", "place"])
def test_what_tokens_say_is_read(probe, key):
    assert accuracy(probe, *pictures(300, 1), key) > 0.97


def test_an_exchange_between_two_tokens_is_seen(probe):
    """The same words at the same places, exchanged: no pooling that forgets which token said what tells them apart."""
    features, facts = pictures(300, 2)
    swapped = features.clone()
    right = []
    for row, known in enumerate(facts):
        one, two = (q.subject for q in known if q.key == "colour")
        places = [int(features[row, :, SHAPES.index(subject)].argmax()) for subject in (one, two)]
        swapped[row, places, 3:7] = features[row, places[::-1], 3:7]
        asked = tuple(
            Fact(Question(subject, "colour"), known[Question(subject, "colour")]) for subject in (one, two)
        )
        right.append(NearMiss("exchange", 0, row, row + len(facts), asked))
    found = probe.right(torch.cat([features, swapped]), right)
    assert sum(found) / len(found) > 0.97


def test_what_tokens_do_not_say_is_not_read():
    features, facts = pictures(800, 3)
    noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(4))
    blind = Probe.fit(noise, facts, epochs=30, seed=0)
    assert 0.4 < accuracy(blind, noise[:300].flip(0), facts[:300], "colour") < 0.6


def test_the_same_seed_gives_the_same_probe():
    features, facts = pictures(100, 5)
    one, two = (Probe.fit(features, facts, epochs=2, seed=7) for _ in range(2))
    assert torch.equal(one.log_probabilities(features), two.log_probabilities(features))


def test_probabilities_of_a_questions_answers_sum_to_one(probe):
    features, _ = pictures(10, 6)
    probabilities = probe.log_probabilities(features).exp()
    for question in {q for q, _ in probe.columns}:
        columns = [number for (q, _), number in probe.columns.items() if q == question]
        torch.testing.assert_close(probabilities[:, columns].sum(-1), torch.ones(10))
