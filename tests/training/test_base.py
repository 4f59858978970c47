import math

import pytest
import torch
from transformers import TrainingArguments

from elva.models.encoder import MultimodalEncoder
from elva.training.base import BaseTrainer
from elva.training.examples import TrainingData, caption_examples


@pytest.fixture
def trainer(mini_scenes, untrained_model, tmp_path):
    encoder = MultimodalEncoder.from_pretrained(untrained_model)
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none")
    return BaseTrainer(encoder, arguments, caption_examples(TrainingData(mini_scenes)))


def test_rarity_is_log_of_inverse_frequency(trainer):
    captions = [caption for example in trainer.examples for caption in example.captions]
    ids = [set(trainer._ids(caption)) for caption in captions]
    token = trainer._ids(captions[0])[0]
    expected = math.log(len(captions) / sum(token in own for own in ids))
    assert trainer._rarity[token].item() == pytest.approx(expected)
    assert trainer._rarity[trainer.encoder.ret_id] == 0


def test_word_loss_is_low_where_the_picture_tokens_are_the_captions_words(trainer):
    examples = [example for example in trainer.examples if example.item["image"]][:2]
    grid = torch.tensor([[1, 8, 8], [1, 8, 8]])
    embedding = trainer.encoder.base_model.get_input_embeddings().weight.detach()
    losses = []
    for order in (examples, examples[::-1]):
        rows = []
        for example in order:
            ids = torch.tensor(trainer._ids(" ".join(example.captions)))
            rows.append(20 * embedding[ids.repeat(16)[:16]])
        trainer._picture_tokens = torch.cat(rows)
        losses.append(float(trainer._word_loss(examples, grid)))
    assert losses[0] < losses[1]


def test_the_step_trains_vision_and_language(trainer):
    examples = [example for example in trainer.examples if example.item["image"]][:4]
    trainer.loss(examples, trainer.model).backward()
    norms = {name: p.grad.norm() for name, p in trainer.model.named_parameters() if p.grad is not None}
    assert any("visual" in name and norm > 0 for name, norm in norms.items())
    assert any("language_model" in name and norm > 0 for name, norm in norms.items())
    assert trainer.take_recorded()["word_loss"][0] > 0


def test_sentences_alone_have_no_word_loss(trainer):
    examples = [example for example in trainer.examples if not example.item["image"]][:4]
    trainer.loss(examples, trainer.model)
    assert "word_loss" not in trainer.take_recorded()
