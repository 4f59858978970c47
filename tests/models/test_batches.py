from __future__ import annotations

import pytest
import torch

from elva.models import batches


def test_positions_equal_transformers(tiny_encoder, mixed_inputs, completions):
    batch, _ = tiny_encoder.append(tiny_encoder.prepare(mixed_inputs), completions, ret=True)
    expected, _ = tiny_encoder.model.model.get_rope_index(
        batch["input_ids"],
        batch["mm_token_type_ids"],
        batch["image_grid_thw"],
        attention_mask=batch["attention_mask"],
    )
    assert torch.equal(batches.rope_positions(batch, 2), expected)


def test_positions_of_a_text_batch(tiny_encoder):
    batch = tiny_encoder.prepare(["a cat", "a much longer text about three apples"])
    expected, _ = tiny_encoder.model.model.get_rope_index(
        batch["input_ids"], batch["mm_token_type_ids"], attention_mask=batch["attention_mask"]
    )
    assert torch.equal(batches.rope_positions(batch, 2), expected)


def test_append_rows_are_prompt_completion_ret(tiny_encoder, mixed_inputs, completions):
    batch = tiny_encoder.prepare(mixed_inputs)
    full, given = tiny_encoder.append(batch, completions, ret=True)
    ret = tiny_encoder.ret_id
    for row, completion in enumerate(completions):
        prompt = batch["input_ids"][row][batch["attention_mask"][row] == 1].tolist()
        tail = completion if completion[-1:] == [ret] else [*completion, ret]
        live = full["attention_mask"][row] == 1
        assert full["input_ids"][row][live].tolist() == prompt + tail
        assert full["input_ids"][row][given[row]].tolist() == completion
        assert live.int().diff().ge(0).all(), "padding is on the left only"
    assert torch.equal(full["mm_token_type_ids"] == 1, full["input_ids"] == tiny_encoder.processor.image_id)
    assert full["attention_mask"].sum(-1).max() == full["input_ids"].shape[1], (
        "no column is padding throughout"
    )
    assert full["pixel_values"] is batch["pixel_values"]


def test_append_takes_a_tensor_and_no_ret(tiny_encoder):
    batch = tiny_encoder.prepare(["a cat", "two small dogs"])
    full, given = tiny_encoder.append(batch, torch.tensor([[300, 301], [302, 303]]), ret=False)
    assert full["input_ids"][:, -2:].tolist() == [[300, 301], [302, 303]]
    assert given.sum(-1).tolist() == [2, 2]


def test_append_wants_one_completion_per_row(tiny_encoder):
    with pytest.raises(ValueError, match="completions: 1 given, expected one for each of the 2 rows"):
        tiny_encoder.append(tiny_encoder.prepare(["a", "b"]), [[1]], ret=True)


def test_repeat_and_select_keep_pictures_with_their_rows(tiny_encoder, mixed_inputs):
    batch = tiny_encoder.prepare(mixed_inputs)
    with torch.no_grad():
        hidden = tiny_encoder.hidden_states(batch)
        repeated = tiny_encoder.hidden_states(tiny_encoder.repeat(batch, 2))
        rows = [3, 0, 2]
        selected = tiny_encoder.hidden_states(tiny_encoder.select(batch, rows))
    live = batch["attention_mask"].bool()
    torch.testing.assert_close(repeated[::2][live], hidden[live], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(repeated[1::2][live], hidden[live], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(selected[live[rows]], hidden[rows][live[rows]], atol=1e-5, rtol=1e-5)


def test_select_without_pictures_drops_them(tiny_encoder, mixed_inputs):
    assert set(tiny_encoder.select(tiny_encoder.prepare(mixed_inputs), [0, 4])) == set(batches.ROW_KEYS)
