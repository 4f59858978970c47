"""Fast and plain step on the same scripted summaries: model families, attention, pictures of different sizes, edges."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from transformers import TrainingArguments

from elva.models import tiny
from elva.training.config import RLConfig, build
from elva.training.credit import Relations
from elva.training.fast_step import FastStep
from elva.training.lora import attach_adapter
from elva.training.plain_step import PlainStep
from elva.training.rl import RLTrainer
from elva.training.rollouts import Rollouts, separate
from tests.models import test_architectures
from tests.training.test_fast_step import assert_same, randomised

TEXTS = ["a red cat sleeps on a blue mat", "two small dogs run across the green field"] * 4
FAMILIES = ("Qwen2_VL", "Qwen2_5_VL", "Qwen3VL")
LONGEST = 6


def picture(colour: str, width: int, height: int) -> Image.Image:
    generator = torch.Generator().manual_seed(width)
    noise = torch.randint(0, 60, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.blend(Image.new("RGB", (width, height), colour), Image.fromarray(noise.numpy()), 0.5)


ITEMS = [
    "a red cat",
    {"text": "the same in blue", "image": picture("blue", 96, 96)},
    picture("red", 96, 64),
    {"text": "two small dogs run across the green field", "image": picture("green", 160, 64)},
    {"text": "a mat"},
    {"text": "cat", "image": picture("yellow", 64, 128)},
]
QUERIES = 2


def make_encoder(family: str, attention: str = "sdpa"):
    encoder = tiny.create(TEXTS, seed=0)
    if family != "Qwen2_VL":
        encoder = test_architectures.build(encoder, family)
    encoder.model.set_attn_implementation(attention)
    return encoder


def make_trainer(encoder, tmp_path, **settings):
    values = {"model": "", "data": "", "output": str(tmp_path)}
    lora = {"r": 4, "alpha": 8, "dropout": 0.0}
    rl = {"beta": 0.2, "num_generations": 3, "max_completion_length": LONGEST, **settings}
    config = build(RLConfig, {**values, "lora": lora, "rl": rl})
    attach_adapter(encoder, config.lora)
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    trainer = RLTrainer(encoder, arguments, [], config, None)
    randomised(trainer)
    trainer.model.train()
    return trainer


def scripted(encoder, items, generations: int, seed: int) -> Rollouts:
    """Summaries of 0 to LONGEST words behind ``items``; the first is only [RET], the second was cut."""
    generator = torch.Generator().manual_seed(seed)
    count = len(items) * generations
    lengths = torch.randint(1, LONGEST, (count,), generator=generator).tolist()
    lengths[:2] = [0, LONGEST][: min(2, count)]
    words = encoder.tokenizer("a red cat and two blue dogs on the green mat")["input_ids"]
    completions = [
        [words[int(torch.randint(len(words), (1,), generator=generator))] for _ in range(length)]
        + [encoder.ret_id]
        for length in lengths
    ]
    sampled = [length < LONGEST for length in lengths]
    prompts = encoder.prepare(items)
    rollouts = Rollouts(prompts, completions, sampled, generations, torch.empty(0))
    sequences = separate(encoder, rollouts)
    with torch.no_grad():
        states = encoder.read_embedding(encoder.hidden_states(sequences.batch), sequences.batch)
    rollouts.embeddings = states.unflatten(0, (-1, generations))
    return rollouts


def relations() -> Relations:
    candidates = len(ITEMS) - QUERIES
    positive = torch.arange(QUERIES)
    negatives = torch.ones(QUERIES, candidates, dtype=torch.bool)
    negatives[torch.arange(QUERIES), positive] = False
    return Relations(positive, negatives, torch.ones_like(negatives))


def run(trainer, kind, sides):
    trainer.step = kind(trainer)
    trainer.model.zero_grad()
    loss = trainer.step.loss(*sides, relations(), trainer.model)
    loss.backward()
    grads = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    return loss.detach(), grads


def compare(trainer, generations: int) -> None:
    sides = (
        scripted(trainer.encoder, ITEMS[:QUERIES], generations, seed=1),
        scripted(trainer.encoder, ITEMS[QUERIES:], generations, seed=2),
    )
    expected, found = run(trainer, PlainStep, sides), run(trainer, FastStep, sides)
    trained = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert list(expected[1]) == trained, "a trained weight without gradient"
    assert_same(found, expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_families_and_attention(family, attention, tmp_path) -> None:
    trainer = make_trainer(
        make_encoder(family, attention), tmp_path, gradient="surrogate", micro_batch_tokens=120
    )
    compare(trainer, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing(family, tmp_path) -> None:
    trainer = make_trainer(make_encoder(family), tmp_path, gradient="surrogate")
    trainer.encoder.model.enable_input_require_grads()
    trainer.encoder.model.gradient_checkpointing_enable({"use_reentrant": False})
    layers = [
        module for module in trainer.model.modules() if getattr(module, "gradient_checkpointing", False)
    ]
    assert layers
    compare(trainer, 3)


@pytest.mark.parametrize("gradient", ["pathwise", "surrogate"])
def test_one_generation(gradient, tmp_path) -> None:
    """Advantages of a group of one are 0: what is compared is the KL term and the pull on the embeddings."""
    compare(make_trainer(make_encoder("Qwen2_VL"), tmp_path, gradient=gradient, num_generations=1), 1)


def test_pieces_of_any_size_have_the_same_gradients(tmp_path) -> None:
    trainer = make_trainer(make_encoder("Qwen2_VL"), tmp_path, gradient="surrogate")
    sides = (
        scripted(trainer.encoder, ITEMS[:QUERIES], 3, seed=1),
        scripted(trainer.encoder, ITEMS[QUERIES:], 3, seed=2),
    )
    pieces, packed = [], trainer.encoder.pack
    trainer.encoder.pack = lambda prompts, *rest: (
        pieces.append(len(prompts["input_ids"])),
        packed(prompts, *rest),
    )[1]
    whole = run(trainer, FastStep, sides)
    assert pieces == [2, 4]
    for tokens in (1, 150):
        pieces.clear()
        trainer.config.rl.micro_batch_tokens = tokens
        assert_same(run(trainer, FastStep, sides), whole)
        assert len(pieces) == 6 if tokens == 1 else 2 < len(pieces) < 6


def test_a_difference_is_seen(tmp_path) -> None:
    """The comparison fails when one summary of 18 has another token."""
    trainer = make_trainer(make_encoder("Qwen2_VL"), tmp_path)
    sides = [
        scripted(trainer.encoder, ITEMS[:QUERIES], 3, seed=1),
        scripted(trainer.encoder, ITEMS[QUERIES:], 3, seed=2),
    ]
    expected = run(trainer, PlainStep, sides)
    sides[1].completions[-1][0] += 1
    with pytest.raises(AssertionError):
        assert_same(run(trainer, FastStep, sides), expected)
