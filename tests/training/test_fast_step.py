"""The fast step against the plain one: loss, rewards and every gradient on the same sampled tokens.

In float64: the fast step's rewards come from the rollout, the plain one's from its own forward, and an advantage
divides the float32 rounding between them by a group's small spread. `test_step_families.py` has float32, with one set
of rewards.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.training.test_rl import make_trainer

LIMIT = 1e-5


def randomised(trainer) -> None:
    """LoRA's A and B and the [RET] row away from their starting values: nothing is 0 by construction."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if parameter.requires_grad:
                scale = 0.05 if "lora_" in name else 0.2
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))


def run(trainer, examples, rollouts=None):
    """Loss, gradients and the rollouts, which another trainer may take over."""
    trainer.model.train()
    trainer.model.zero_grad()
    items, dids, relations = trainer._gather(examples)
    if rollouts is None:
        pool = [trainer.data.candidate_item(did) for did in dids]
        rollouts = (
            trainer.step.roll_out(items, "queries", candidates=False),
            trainer.step.roll_out(pool, "candidates", candidates=True),
        )
    loss = trainer.step.loss(*rollouts, relations, trainer.model)
    loss.backward()
    grads = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    return loss.detach(), grads, rollouts


def assert_same(fast, plain) -> None:
    torch.testing.assert_close(fast[0], plain[0], atol=1e-5, rtol=1e-5)
    assert fast[1].keys() == plain[1].keys()
    for name, expected in plain[1].items():
        norm = expected.norm()
        assert norm > 0, name
        assert (fast[1][name] - expected).norm() <= LIMIT * norm, name


def pair(root, model, tmp_path, **settings):
    trainers = []
    for step in ("fast", "plain"):
        trainer, examples = make_trainer(
            root, model, tmp_path, dropout=0.0, step=step, **{"beta": 0.2, "num_generations": 3, **settings}
        )
        randomised(trainer)
        trainer.encoder.model.double()
        trainers.append(trainer)
    return (*trainers, examples)


@pytest.mark.parametrize(
    ("candidates", "gradient", "credit"),
    [
        *itertools.product(("generate", "direct"), ("score", "pathwise", "surrogate"), ("rollout",)),
        ("shared", "surrogate", "rollout"),
        ("generate", "score", "item"),
    ],
)
def test_loss_and_gradients_are_those_of_the_plain_step(
    candidates, gradient, credit, mini_scenes, untrained_model, tmp_path
) -> None:
    fast, plain, examples = pair(
        mini_scenes,
        untrained_model,
        tmp_path,
        candidates=candidates,
        gradient=gradient,
        credit=credit,
        micro_batch_tokens=300,
    )
    found = run(fast, examples)
    assert_same(found, run(plain, examples, found[2]))
    figures = [trainer.take_recorded() for trainer in (fast, plain)]
    for name in ("reward", "rank", "hit_rate", "kl", "entropy"):
        mean = [sum(figure[name]) / len(figure[name]) for figure in figures]
        if name in ("reward", "rank", "hit_rate"):
            assert mean[0] == pytest.approx(mean[1], rel=1e-4), name
    lengths = {len(row) for row in found[2][0].completions}
    assert max(lengths) == 6 and not all(found[2][0].sampled_ret), (
        "one summary must be cut at its maximum length"
    )
