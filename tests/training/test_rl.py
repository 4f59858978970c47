"""One RL step: what gets gradient, what does not, and that the reference is the policy at step 0."""

import itertools

import pytest
import torch
from transformers import TrainingArguments

from elva.models.encoder import MultimodalEncoder
from elva.training import plain_step
from elva.training.config import RLConfig, build
from elva.training.examples import RetrievalExample, TrainingData
from elva.training.lora import attach_adapter
from elva.training.rl import RLTrainer
from elva.training.rollouts import token_logps

COMBINATIONS = list(itertools.product(("generate", "shared", "direct"), ("score", "pathwise", "surrogate")))


def make_trainer(root, model, tmp_path, queries=4, dropout=0.1, trainer=None, **settings):
    data = TrainingData(root, tasks=[0])
    values = {
        "model": str(model),
        "data": str(root),
        "output": str(tmp_path),
        "lora": {"r": 4, "alpha": 8, "dropout": dropout},
    }
    settings = {"num_generations": 3, "max_completion_length": 5, **settings}
    config = build(RLConfig, {**values, "rl": settings})
    encoder = MultimodalEncoder.from_pretrained(model)
    attach_adapter(encoder, config.lora)
    images = [did for did, candidate in data.pool.items() if candidate.modality == "image"]
    examples = [
        RetrievalExample(query, tuple(did for did in images if did not in query.positives)[:3])
        for query in data.queries[:queries]
    ]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), report_to="none", per_device_train_batch_size=queries, **(trainer or {})
    )
    return RLTrainer(encoder, arguments, examples, config, data), examples


def gradients(trainer, examples):
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.loss(examples, trainer.model)
    loss.backward()
    return loss, {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("candidates", "gradient"), COMBINATIONS)
def test_every_kind_of_step_reaches_the_adapter_and_nothing_else(
    candidates, gradient, mini_scenes, untrained_model, tmp_path
):
    trainer, examples = make_trainer(
        mini_scenes,
        untrained_model,
        tmp_path,
        candidates=candidates,
        gradient=gradient,
        random_negatives="batch",
    )
    loss, found = gradients(trainer, examples)
    assert torch.isfinite(loss)
    assert all("lora_" in name or "trainable_tokens" in name for name in found)
    assert not any("visual" in name for name in found)
    # B starts at zero, so A has no gradient yet: B and the [RET] row are what the first step moves
    moved = [name for name, grad in found.items() if "lora_B" in name and grad.abs().sum() > 0]
    assert len(moved) == sum("lora_B" in name for name in found) > 0


@pytest.mark.parametrize("credit", ["rollout", "item"])
@pytest.mark.parametrize("candidates", ["generate", "direct"])
def test_credit(credit, candidates, mini_scenes, untrained_model, tmp_path):
    trainer, examples = make_trainer(
        mini_scenes, untrained_model, tmp_path, candidates=candidates, credit=credit
    )
    loss, found = gradients(trainer, examples)
    assert torch.isfinite(loss) and any(grad.abs().sum() > 0 for grad in found.values())


@pytest.mark.parametrize("gradient", ["score", "surrogate"])
def test_a_step_has_the_gradients_of_all_logits(
    gradient, mini_scenes, either_model, tmp_path, monkeypatch, all_logits, moved, relative
):
    trainer, examples = make_trainer(
        mini_scenes,
        either_model,
        tmp_path,
        candidates="generate",
        gradient=gradient,
        beta=0.2,
        temperature=0.8,
        step="plain",
    )
    moved(trainer.model)
    steps = []
    for function in (token_logps, all_logits):
        monkeypatch.setattr(plain_step, "token_logps", function)
        torch.manual_seed(0)  # dropout
        loss, found = gradients(trainer, examples)
        steps.append((loss.detach(), found, trainer.take_recorded()))
    (loss, found, figures), (expected_loss, expected, expected_figures) = steps
    assert relative(loss, expected_loss) <= 1e-5
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert any("trainable_tokens" in name for name in trained)
    if gradient == "score" and trainer.encoder.head().trainable_rows is None:
        # what is sampled does not depend on the embedding of [RET], which comes after it
        trained = {name for name in trained if "trainable_tokens" not in name}
    errors = {name: relative(found[name], expected[name]) for name in trained}
    assert max(errors.values()) <= 1e-5, errors
    assert min(figures["kl"]) > 0
    for name in ("kl", "entropy"):
        assert figures[name] == pytest.approx(expected_figures[name], rel=1e-5)


def test_kl_of_the_first_step_is_exactly_zero(mini_scenes, untrained_model, tmp_path):
    trainer, examples = make_trainer(mini_scenes, untrained_model, tmp_path, candidates="generate", beta=0.2)
    trainer.loss(examples, trainer.model)
    assert set(trainer.take_recorded()["kl"]) == {0.0}
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    trainer.loss(examples, trainer.model)
    assert min(trainer.take_recorded()["kl"]) > 0


def test_pool_negatives_are_a_querys_own_and_batch_negatives_everybodys(
    mini_scenes, untrained_model, tmp_path
):
    for kind in ("pool", "batch"):
        trainer, examples = make_trainer(mini_scenes, untrained_model, tmp_path, random_negatives=kind)
        _, dids, relations = trainer._gather(examples)
        for row, example in enumerate(examples):
            positive = dids[int(relations.positive[row])]
            assert positive in example.query.positives
            expected = set(example.negatives) if kind == "pool" else set(dids) - set(example.query.positives)
            assert {did for did, used in zip(dids, relations.negatives[row], strict=True) if used} == expected


def test_a_step_repeats_itself(mini_scenes, untrained_model, tmp_path):
    losses = []
    for _ in range(2):
        trainer, examples = make_trainer(
            mini_scenes, untrained_model, tmp_path, candidates="direct", gradient="surrogate"
        )
        torch.manual_seed(0)
        losses.append(float(trainer.loss(examples, trainer.model).detach()))
    assert losses[0] == losses[1]


def test_logged_figures(mini_scenes, untrained_model, tmp_path):
    trainer, examples = make_trainer(
        mini_scenes, untrained_model, tmp_path, candidates="direct", random_negatives="batch"
    )
    trainer.create_optimizer()
    trainer.training_step(trainer.model, {"examples": examples})
    logs = {"loss": 0.0}
    trainer.log(logs)
    candidates = len({did for example in examples for did in example.negatives}) + len(examples)
    assert logs["queries"] == 4
    assert 12 + len(examples) <= logs["encoded_items"] <= 12 + candidates
    for name in (
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "kl",
        "entropy",
        "completions/mean_length",
        "rank",
        "mean_cosine",
    ):
        assert name in logs
    for phase in ("generate", "vision", "policy", "reference", "reward"):
        assert logs[f"seconds/{phase}"] > 0
