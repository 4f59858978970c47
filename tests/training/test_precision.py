"""Mixed precision of every stage (docs/architecture.md): what is computed in which dtype, and how far it may lead."""

from __future__ import annotations

import dataclasses
import math
from typing import Any
from unittest.mock import patch

import pytest
import torch
from transformers import TrainingArguments

from elva.models import MultimodalEncoder, tiny
from elva.training.base import BaseTrainer
from elva.training.config import BaseConfig, InstructConfig, RLConfig, TextConfig, build
from elva.training.contrastive import InstructTrainer, TextTrainer
from elva.training.dry_run import dry_run
from elva.training.examples import (
    RetrievalExample,
    TrainingData,
    TripletExample,
    caption_examples,
    corpus,
)
from elva.training.lora import attach_adapter
from elva.training.rl import RLTrainer
from elva.training.run import make_trainer
from elva.training.trainer import autocast_dtype

HALF = torch.bfloat16
LAYERS = 4
TOLERANCE = 8 * 2**-8 * LAYERS**0.5
"""Relative error of a whole gradient in bfloat16 (docs/architecture.md, "Mixed precision")."""
LORA = {"r": 4, "alpha": 8, "dropout": 0.0}


def arguments(folder, bf16: bool) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder), report_to="none", use_cpu=True, bf16=bf16, per_device_train_batch_size=4
    )


def values(root, folder, **settings) -> dict[str, Any]:
    return {"model": "", "data": str(root), "output": str(folder), "lora": LORA, **settings}


def base(root, model, folder, bf16):
    data = TrainingData(root)
    encoder = tiny.create(corpus(data), seed=0)
    examples = [example for example in caption_examples(data) if example.item["image"]][:4]
    return BaseTrainer(encoder, arguments(folder, bf16), examples), examples


def text(root, model, folder, bf16):
    encoder = MultimodalEncoder.from_pretrained(model)
    config = build(TextConfig, values(root, folder))
    attach_adapter(encoder, config.lora)
    sentences = ("a red ball", "a blue box", "two small rings", "a green cat")
    examples = [TripletExample(s, s, f"there is {s}", f"there is no {s}") for s in sentences]
    return TextTrainer(encoder, arguments(folder, bf16), examples, config), examples


def retrieval(root, queries: int = 4) -> tuple[TrainingData, list[RetrievalExample]]:
    data = TrainingData(root, tasks=[0])
    images = [did for did, candidate in data.pool.items() if candidate.modality == "image"]
    return data, [
        RetrievalExample(query, tuple(did for did in images if did not in query.positives)[:2])
        for query in data.queries[:queries]
    ]


def instruct(root, model, folder, bf16):
    encoder = MultimodalEncoder.from_pretrained(model)
    config = build(InstructConfig, values(root, folder))
    attach_adapter(encoder, config.lora)
    data, examples = retrieval(root)
    return InstructTrainer(encoder, arguments(folder, bf16), examples, config, data), examples


def rl(root, model, folder, bf16, step="fast"):
    encoder = MultimodalEncoder.from_pretrained(model)
    settings = {"num_generations": 2, "max_completion_length": 4, "gradient": "surrogate", "step": step}
    config = build(RLConfig, values(root, folder, rl=settings))
    attach_adapter(encoder, config.lora)
    data, examples = retrieval(root, queries=2)
    return RLTrainer(encoder, arguments(folder, bf16), examples, config, data), examples


STAGES = {"base": base, "text": text, "instruct": instruct}


def prepared(trainer, moved) -> torch.nn.Module:
    if not isinstance(trainer, BaseTrainer):
        moved(trainer.model)
    trainer.model.train()
    return trainer.accelerator.prepare(trainer.model)


def gradient(trainer, loss) -> torch.Tensor:
    trainer.accelerator.backward(loss)
    grads = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    assert {grad.dtype for grad in grads} == {torch.float32}
    return torch.cat([grad.flatten() for grad in grads])


@pytest.mark.parametrize("stage", STAGES)
def test_a_stages_gradient_in_bfloat16_is_near_float32s(
    stage, mini_scenes, untrained_model, tmp_path, moved, relative
):
    found = []
    for bf16 in (False, True):
        torch.manual_seed(0)  # LoRA's first matrices
        trainer, examples = STAGES[stage](mini_scenes, untrained_model, tmp_path, bf16)
        assert trainer.encoder.autocast_dtype == (HALF if bf16 else None)
        loss = trainer.loss(examples, prepared(trainer, moved))
        assert loss.dtype == torch.float32
        found.append((loss.detach(), gradient(trainer, loss)))
    (exact_loss, exact), (loss, rounded) = found
    assert relative(loss, exact_loss) < TOLERANCE
    # bfloat16 was used, and did no more than round
    assert 1e-5 < relative(rounded, exact) < TOLERANCE


@pytest.mark.parametrize("step", ["fast", "plain"])
def test_an_rl_steps_gradient_in_bfloat16_is_near_float32s(
    step, mini_scenes, untrained_model, tmp_path, moved, relative
):
    """On the same tokens and advantages: sampled apart, both would learn from other summaries."""
    found, sides, credit = [], None, None
    for bf16 in (False, True):
        torch.manual_seed(0)
        trainer, examples = rl(mini_scenes, untrained_model, tmp_path, bf16, step)
        model = prepared(trainer, moved)
        items, dids, relations = trainer._gather(examples)
        if sides is None:
            pool = [trainer.data.candidate_item(did) for did in dids]
            sides = (
                trainer.step.roll_out(items, "queries", candidates=False),
                trainer.step.roll_out(pool, "candidates", candidates=True),
            )
        judge = trainer.assessor.credit

        def judged(*of, judge=judge):
            nonlocal credit
            credit = judge(*of) if credit is None else credit
            return credit

        with patch.object(trainer.assessor, "credit", judged):
            loss = trainer.step.loss(*sides, relations, model)
        assert loss.dtype == torch.float32
        found.append((loss.detach(), gradient(trainer, loss)))
    (exact_loss, exact), (loss, rounded) = found
    assert relative(loss, exact_loss) < TOLERANCE
    assert 1e-5 < relative(rounded, exact) < TOLERANCE


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("stage", ["text", "instruct"])
def test_infonce_takes_the_states_in_the_dtype_of_products(
    stage, bf16, mini_scenes, untrained_model, tmp_path, moved
):
    trainer, examples = STAGES[stage](mini_scenes, untrained_model, tmp_path, bf16)
    seen = []
    trainer.criterion.register_forward_pre_hook(lambda module, given: seen.extend(x.dtype for x in given[:2]))
    trainer.loss(examples, prepared(trainer, moved))
    assert seen == [HALF if bf16 else torch.float32] * 2


def test_mining_has_the_stages_precision(mini_scenes, untrained_model, tmp_path, monkeypatch):
    seen = []

    def mine(encoder, data, *_):
        seen.append(encoder.autocast_dtype)
        return [RetrievalExample(query) for query in data.queries]

    monkeypatch.setattr("elva.training.mining.mine", mine)
    trainer = {"bf16": True, "use_cpu": True}
    config = build(
        InstructConfig, {**values(mini_scenes, tmp_path), "model": str(untrained_model), "trainer": trainer}
    )
    make_trainer(config)
    assert seen == [HALF]


def test_a_launchers_precision_counts_too(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert autocast_dtype(arguments(tmp_path, bf16=False)) == HALF
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert autocast_dtype(arguments(tmp_path, bf16=False)) is None
    half = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    half.mixed_precision = "fp16"  # asked for on a CPU, it would be refused
    assert autocast_dtype(half) == torch.float16


RUNS = {
    "base": build(BaseConfig, {"model": "tiny", "data": "", "output": ""}),
    "text": build(TextConfig, {"model": "", "data": "", "output": "", "lora": LORA}),
    "instruct": build(
        InstructConfig,
        {
            "model": "",
            "data": "",
            "output": "",
            "lora": LORA,
            "negatives": {"n_hard": 2},
            "summary_probability": 0.5,
        },
    ),
    "rl, fast": build(RLConfig, {"model": "", "data": "", "output": "", "lora": LORA}),
    "rl, plain": build(
        RLConfig, {"model": "", "data": "", "output": "", "lora": LORA, "rl": {"step": "plain"}}
    ),
}


@pytest.mark.parametrize("stage", RUNS)
def test_a_run_in_bfloat16_on_float32_weights_reaches_its_end(stage):
    trainer = {"bf16": True, "use_cpu": True}
    losses = dry_run(dataclasses.replace(RUNS[stage], trainer=trainer))
    assert len(losses) == 2 and all(math.isfinite(loss) for loss in losses)
