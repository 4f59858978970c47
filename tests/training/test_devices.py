"""Nothing of a training step stays on the CPU when the model is elsewhere (tests/tagged.py)."""

from __future__ import annotations

import itertools

import pytest
import torch

from elva.models import MultimodalEncoder
from elva.training.config import LoraSettings
from elva.training.lora import attach_adapter
from tests.tagged import Tagged, tagged_device, tagged_module
from tests.training import test_precision, test_rl, test_rollouts


def test_the_harness_sees_a_tensor_that_was_left_behind():
    with tagged_device() as device:
        there, here = torch.ones(3, device=device), torch.ones(3)
        assert there.device == device and there.is_cuda and not here.is_cuda
        for meet in (
            lambda: there + here,
            lambda: torch.where(there > 0, there, here),
            lambda: torch.cat([there, here]),
            lambda: torch.multinomial(there, 1, generator=torch.Generator()),
        ):
            with pytest.raises(RuntimeError, match="Expected"):
                meet()
        assert (there + 1.0 + here.to(device)).device == device
        assert there.cpu().device.type == "cpu"
        torch.multinomial(there, 1, generator=torch.Generator(device))


def run(trainer, examples) -> None:
    tagged_module(trainer.model)
    trainer.encoder.stopwatch.running = False  # there is no device whose events it could record
    trainer.model.train()
    with tagged_device():
        loss = trainer.loss(examples, trainer.model)
        assert isinstance(loss, Tagged)
        loss.backward()
        figures = trainer.take_recorded()
    assert figures or not hasattr(trainer, "step")
    grads = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    assert sum(float(grad.abs().sum()) for grad in grads) > 0


@pytest.mark.parametrize(
    ("step", "candidates", "gradient", "credit"),
    [
        *itertools.product(("fast", "plain"), ("generate", "direct"), ("surrogate",), ("rollout",)),
        ("fast", "shared", "pathwise", "rollout"),
        ("fast", "generate", "score", "item"),
    ],
)
def test_rl_steps(step, candidates, gradient, credit, mini_scenes, untrained_model, tmp_path):
    settings = {"step": step, "candidates": candidates, "gradient": gradient, "credit": credit}
    run(
        *test_rl.make_trainer(
            mini_scenes, untrained_model, tmp_path, queries=2, num_generations=2, **settings
        )
    )


@pytest.mark.parametrize("stage", test_precision.STAGES)
def test_contrastive_stages_and_base(stage, mini_scenes, untrained_model, tmp_path):
    run(*test_precision.STAGES[stage](mini_scenes, untrained_model, tmp_path, bf16=False))


def test_a_relation_left_on_the_cpu_is_seen(mini_scenes, untrained_model, tmp_path, monkeypatch):
    trainer, examples = test_rl.make_trainer(mini_scenes, untrained_model, tmp_path, candidates="direct")
    gather = trainer._gather

    def on_the_cpu(examples):
        items, dids, relations = gather(examples)
        relations.negatives = relations.negatives.cpu()
        return items, dids, relations

    monkeypatch.setattr(trainer, "_gather", on_the_cpu)
    with pytest.raises(ValueError, match="mask is on cpu; expected the device of query, cuda:0"):
        run(trainer, examples)


def test_what_the_other_tests_prepare(mini_scenes, untrained_model, moved):
    """Their sampling and their moved weights, which would fail on a GPU before what they test."""
    encoder = MultimodalEncoder.from_pretrained(untrained_model)
    attach_adapter(encoder, LoraSettings(r=4))
    tagged_module(encoder.model)
    with tagged_device():
        moved(encoder.model)
        assert test_rollouts.sampled(encoder, mini_scenes).token_mask.is_cuda
