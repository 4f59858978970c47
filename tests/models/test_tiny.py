from __future__ import annotations

import pytest
import torch
from PIL import Image

from elva.models import tiny

TEXTS = ["a red cat on a mat", "two dogs in a field"] * 3


def test_the_seed_decides_the_weights_and_leaves_the_global_one_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = tiny.create(TEXTS, seed=1), tiny.create(TEXTS, seed=1), tiny.create(TEXTS, seed=2)
    assert torch.equal(torch.rand(1), expected)
    assert first.tokenizer.get_vocab() == again.tokenizer.get_vocab()
    pairs = zip(first.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.encode(["a cat"]), other.encode(["a cat"]))


@pytest.mark.parametrize(("preset", "low", "high"), [("tiny", 2.5e6, 4e6), ("small", 9e6, 12e6)])
def test_sizes(preset, low, high):
    encoder = tiny.create(TEXTS, preset=preset)
    # As with a full vocabulary: these few texts train a small one.
    missing = (tiny.VOCABULARY - len(encoder.tokenizer)) * encoder.hidden_size
    assert low < sum(p.numel() for p in encoder.model.parameters()) + missing < high
    assert encoder.model.lm_head.weight is encoder.model.get_input_embeddings().weight


def test_a_96_pixel_picture_is_16_tokens(tiny_encoder):
    batch = tiny_encoder.prepare([Image.new("RGB", (96, 96))])
    assert batch["image_grid_thw"].tolist() == [[1, 8, 8]]
    assert batch["pixel_values"].shape == (64, 3 * 12 * 12)
    assert batch["mm_token_type_ids"].sum() == 16


def test_the_tokenizer_knows_its_texts_and_takes_any_other():
    texts = [f"word{i} of a long enough corpus number {i}" for i in range(3000)]
    tokenizer = tiny.train_tokenizer(texts)
    assert len(tokenizer) <= tiny.VOCABULARY
    for text in (*texts[:3], "Grüße, 世界 🙂\nnew line"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("corpus")["input_ids"]) <= 2
    assert tokenizer("[RET]")["input_ids"] == [tokenizer.convert_tokens_to_ids("[RET]")]


def test_bad_arguments():
    with pytest.raises(ValueError, match="preset: 'huge' given, expected one of tiny, small"):
        tiny.create(TEXTS, preset="huge")
    with pytest.raises(ValueError, match="image_size: 100 given"):
        tiny.create(TEXTS, image_size=100)
    with pytest.raises(ValueError, match="texts: 0 items"):
        tiny.create([])
