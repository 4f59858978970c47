"""One long text among short ones costs what it costs alone; beyond the model's positions it is cut, with a warning."""

from __future__ import annotations

import json
import warnings
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from elva.models import MultimodalEncoder
from elva.models.lengths import PADDING, TOKENS, longest_prompt, split_by_length


@pytest.mark.parametrize(
    ("lengths", "forwards", "parts"),
    [
        ([5, 5, 5], 1, [[0, 1, 2]]),
        ([5, 9, 7], 1, [[0, 1, 2]]),
        ([30, 2000, 20, 10], 1, [[1], [0, 2, 3]]),
        ([30, 2000, 20, 10], 10, [[0, 1, 2, 3]]),
        ([10] * 3 + [TOKENS + 1], 64, [[3], [0, 1, 2]]),
        ([TOKENS // 2] * 3, 64, [[0, 1], [2]]),
        ([PADDING + 9, 9], 1, [[0, 1]]),
        ([PADDING + 10, 9], 1, [[0], [1]]),
        ([7], 1, [[0]]),
    ],
)
def test_rows_are_split_where_padding_costs_more_than_a_forward(lengths, forwards, parts):
    assert split_by_length(lengths, forwards) == parts


def test_every_row_is_in_one_part_and_no_part_is_larger_than_it_may_be():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        rows = int(torch.randint(1, 40, (), generator=generator))
        lengths = (10 ** (torch.rand(rows, generator=generator) * 5)).long().clamp_min(1).tolist()
        parts = split_by_length(lengths)
        assert sorted(row for part in parts for row in part) == list(range(rows))
        for part in parts:
            assert len(part) == 1 or len(part) * max(lengths[row] for row in part) <= TOKENS


def test_the_limit_leaves_room_for_a_summary():
    def config(**values):
        return SimpleNamespace(get_text_config=lambda: SimpleNamespace(**values))

    assert longest_prompt(config(max_position_embeddings=100), 16, 20) == 83
    assert longest_prompt(config(max_position_embeddings=38), 16, 20) == 21
    assert longest_prompt(config(), 16, 20) is None
    with pytest.raises(
        ValueError, match=r"max_summary_tokens: 16 given; of the model's 37 .* expected at most 15$"
    ):
        longest_prompt(config(max_position_embeddings=37), 16, 20)


def test_a_summary_that_leaves_no_place_for_a_text_is_refused(own_encoder, tmp_path):
    own_encoder.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "elva.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "max_summary_tokens": 10**7}))
    with pytest.raises(ValueError, match=r"/model: max_summary_tokens: 10000000 given; of the model's 4096 "):
        MultimodalEncoder.from_pretrained(tmp_path / "model", device="cpu")


@pytest.mark.parametrize("mode", ["direct", "generative"])
def test_a_long_text_runs_apart_and_the_embeddings_are_the_same(mode, tiny_encoder, monkeypatch):
    inputs = [f"a red cat number {n}" for n in range(20)]
    inputs[7:7] = [
        "two small dogs run " * 500,
        {"text": "the same", "image": Image.new("RGB", (96, 96), "red")},
    ]
    alone = torch.cat([tiny_encoder.encode([item], mode=mode) for item in inputs])
    padded = []
    forward = tiny_encoder.base_model.model.forward

    def count(*arguments, **options):
        embeds = options.get("inputs_embeds")
        ids = options.get("input_ids") if embeds is None else embeds
        padded.append(ids.shape[0] * ids.shape[1])
        return forward(*arguments, **options)

    monkeypatch.setattr(tiny_encoder.base_model.model, "forward", count)
    found = tiny_encoder.encode(inputs, mode=mode)
    torch.testing.assert_close(found, alone, atol=2e-5, rtol=0)
    tokens = len(tiny_encoder.processor([inputs[7]])["input_ids"][0])
    assert tokens > 1500 and sum(padded) < 2 * tokens + 20 * 100


def test_a_text_beyond_the_models_positions_is_cut_with_a_warning(own_encoder):
    limit = own_encoder.processor.max_tokens
    assert limit == 4096 - 16 - 1
    endless = {"text": "two small dogs run " * 3000, "image": Image.new("RGB", (96, 96), "red")}
    with pytest.warns(UserWarning) as caught:
        batch = own_encoder.prepare(["a red cat", endless])
    (message,) = (str(warning.message) for warning in caught)
    assert message.startswith(
        f"inputs: 1 of 2 are longer than the {limit} tokens that the model has positions for"
    )
    assert message.endswith("their texts are cut at the end")
    whole = own_encoder.processor(["a red cat"])["input_ids"][0]
    assert batch["input_ids"].shape == (2, limit)
    assert int((batch["input_ids"][1] == own_encoder.processor.image_id).sum()) == 16
    assert batch["input_ids"][1, -5:].tolist() == whole[-5:].tolist(), "the prompt's end is lost"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own_encoder.prepare(["a red cat"])
    with pytest.warns(UserWarning, match="inputs: 1 of 1 are longer"):
        assert own_encoder.encode([endless], mode="direct").isfinite().all()
