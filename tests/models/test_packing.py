"""Prompts once with G completions behind each: the states are those of separate sequences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.models import test_architectures

GENERATIONS = 2


def make(tiny_encoder, own_encoder, family):
    return own_encoder if family == "Qwen2_VL" else test_architectures.build(tiny_encoder, family)


def completions_of(encoder, count: int) -> list[list[int]]:
    words = encoder.tokenizer("a red cat and two blue dogs")["input_ids"]
    return [[*words[: index % 4], encoder.ret_id] for index in range(count)]


@pytest.mark.parametrize("read", ["at", "before"])
@pytest.mark.parametrize("family", ["Qwen2_VL", "Qwen2_5_VL", "Qwen3VL"])
def test_states_are_those_of_separate_sequences(tiny_encoder, own_encoder, mixed_inputs, family, read):
    encoder = make(tiny_encoder, own_encoder, family)
    encoder.config = replace(encoder.config, read=read)
    completions = completions_of(encoder, GENERATIONS * len(mixed_inputs))
    prompts = encoder.prepare(mixed_inputs)
    separate, _ = encoder.append(encoder.repeat(prompts, GENERATIONS), completions, ret=True)
    packed = encoder.pack(prompts, completions, GENERATIONS)
    with torch.no_grad():
        expected = encoder.read_embedding(encoder.hidden_states(separate), separate)
        whole = encoder.hidden_states(separate)
        states = encoder.packed_states(packed)
        found = encoder.read_packed(states, packed)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        # completion tokens one by one, from the state before each
        before = torch.cat([whole[row, -len(tail) - 1 : -1] for row, tail in enumerate(completions)])
        torch.testing.assert_close(states[packed.before], before, atol=5e-5, rtol=1e-4)
        assert packed.completion_ids.tolist() == [token for tail in completions for token in tail]
        # a forward that says no layout is what it was
        torch.testing.assert_close(encoder.hidden_states(separate), whole, atol=0, rtol=0)


def test_no_prompt_token_is_repeated(tiny_encoder, mixed_inputs):
    prompts = tiny_encoder.prepare(mixed_inputs)
    completions = completions_of(tiny_encoder, 3 * len(mixed_inputs))
    packed = tiny_encoder.pack(prompts, completions, 3)
    tokens = int(prompts["attention_mask"].sum()) + sum(map(len, completions))
    assert packed.batch["input_ids"].shape == (1, tokens)


def test_completions_that_do_not_fit_are_refused(tiny_encoder, mixed_inputs):
    prompts = tiny_encoder.prepare(mixed_inputs)
    with pytest.raises(ValueError, match="completions"):
        tiny_encoder.pack(prompts, completions_of(tiny_encoder, 3), 2)
    with pytest.raises(ValueError, match="completions"):
        tiny_encoder.pack(prompts, [[]] * 2 * len(mixed_inputs), 2)


def test_a_sliding_window_is_refused(own_encoder, mixed_inputs):
    own_encoder.model.config.text_config.use_sliding_window = True
    packed = own_encoder.pack(own_encoder.prepare(mixed_inputs), completions_of(own_encoder, 5), 1)
    with pytest.raises(ValueError, match="sliding-window"):
        own_encoder.packed_states(packed)
