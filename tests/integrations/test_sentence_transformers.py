"""The losses in sentence-transformers: real training runs of its Trainer on a small BERT built offline."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import BertConfig, BertModel, BertTokenizerFast

from elva import losses
from elva.integrations.sentence_transformers import ELVALoss, InfoNCELoss, TieredRankingLoss

COLOURS = ["red", "green", "blue", "black", "white", "pink"]
THINGS = ["cat", "dog", "car", "tree", "house", "bird"]
WORDS = ["a", "the", "picture", "of", "there", "is", *COLOURS, *THINGS]


def triplets():
    """Paraphrase, and a hard negative that differs in one grain, the colour."""
    rows = [(c, t, COLOURS[i - 1]) for i, c in enumerate(COLOURS) for t in THINGS]
    return {
        "anchor": [f"a picture of the {c} {t}" for c, t, _ in rows],
        "positive": [f"there is a {c} {t}" for c, t, _ in rows],
        "negative": [f"there is a {other} {t}" for _, t, other in rows],
    }


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    root = tmp_path_factory.mktemp("bert")
    (root / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    tokenizer = BertTokenizerFast(vocab=str(root / "vocab.txt"), model_max_length=16)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(config).save_pretrained(root)
    tokenizer.save_pretrained(root)
    return str(root)


@pytest.fixture
def model(checkpoint):
    transformer = Transformer(checkpoint)
    return SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu")


def columns(model, rows=8):
    return [model.tokenize(texts[:rows]) for texts in triplets().values()]


def embed(model, features):
    return [model(dict(f))["sentence_embedding"] for f in features]


@pytest.mark.parametrize("loss_class", [InfoNCELoss, ELVALoss, TieredRankingLoss])
def test_trainer_run_learns(loss_class, model, tmp_path):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss = loss_class(model)
    features = columns(model, rows=36)
    with torch.no_grad():
        start = loss([dict(f) for f in features], None).item()
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=12,
        max_steps=20,
        learning_rate=5e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_dict(triplets()), loss=loss
    )
    trainer.train()
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(history) == 20
    assert sum(history[-5:]) < 0.7 * sum(history[:5])
    with torch.no_grad():
        assert loss([dict(f) for f in features], None).item() < 0.7 * start
        anchor, positive, negative = (torch.nn.functional.normalize(e, dim=1) for e in embed(model, features))
    assert ((anchor * positive).sum(1) > (anchor * negative).sum(1)).float().mean() > 0.8
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert any("attention" in name for name in moved)
    assert any("word_embeddings" in name for name in moved)


def test_infonce_is_multiple_negatives_ranking(model):
    features = columns(model)
    expected = MultipleNegativesRankingLoss(model, scale=15.0)([dict(f) for f in features], None)
    torch.testing.assert_close(InfoNCELoss(model, scale=15.0)(features, None), expected)
    pairs = columns(model)[:2]
    expected = MultipleNegativesRankingLoss(
        model, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
    )([dict(f) for f in pairs], None)
    torch.testing.assert_close(InfoNCELoss(model, bidirectional=True)(pairs, None), expected)


@pytest.mark.parametrize("form", ["smooth", "reward"])
def test_every_document_of_the_batch_is_a_candidate(model, form):
    features = columns(model, rows=4)
    anchor, positive, negative = embed(model, features)
    documents = torch.cat([positive, negative])
    rows = []
    for i in range(4):
        others = torch.cat([documents[:i], documents[i + 1 :]])
        rows.append(losses.ELVALoss(form=form)(anchor[i], positive[i], others))
    torch.testing.assert_close(ELVALoss(model, form=form)(features, None), torch.stack(rows).mean())


def test_tiered_ranking_adds_infonce(model):
    features = columns(model)
    both, alone = (
        TieredRankingLoss(model, infonce_weight=w)([dict(f) for f in features], None) for w in (1.0, 0.0)
    )
    infonce = InfoNCELoss(model)([dict(f) for f in features], None)
    torch.testing.assert_close(both, alone + infonce)
    assert alone > 0


@pytest.mark.parametrize("loss_class", [InfoNCELoss, ELVALoss, TieredRankingLoss])
def test_conventions(model, loss_class):
    loss = loss_class(model, scale=10.0)
    config = loss.get_config_dict()
    assert config["scale"] == 10.0
    assert loss.temperature == loss.loss.temperature == pytest.approx(0.1)
    assert loss_class(model, **json.loads(json.dumps(config))).get_config_dict() == config
    assert loss.citation.strip().startswith("@misc{")
    with pytest.raises(ValueError, match="scale must be above 0"):
        loss_class(model, scale=0)
    with pytest.raises(ValueError, match="got 1 column"):
        loss(columns(model)[:1], None)
