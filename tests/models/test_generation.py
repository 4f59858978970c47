from __future__ import annotations

import dataclasses

import pytest
import torch

from elva.models.generation import Sampling, evaluation_mode, generate, next_tokens


def run(encoder, batch, special=None, sampling=None, tokens=8, generations=1):
    sampling = sampling or Sampling()
    special = special or encoder._special_ids()
    base = encoder.base_model
    written = generate(base.model, base.lm_head, batch, 2, special, sampling, tokens, generations)
    return written.summaries, written.sampled_ret


def test_greedy_equals_transformers_generate(own_encoder, mixed_inputs):
    batch = own_encoder.prepare(mixed_inputs)
    special = own_encoder._special_ids()
    written = own_encoder.generate_summaries(batch, max_new_tokens=10)
    ours, sampled = written.summaries, written.sampled_ret
    theirs = own_encoder.model.generate(
        **batch,
        do_sample=False,
        max_new_tokens=10,
        eos_token_id=[special.ret, *special.stop],
        pad_token_id=own_encoder.tokenizer.pad_token_id,
        suppress_tokens=list(special.banned),
    )
    new = theirs[:, batch["input_ids"].shape[1] :].tolist()
    assert [summary[:-1] for summary in ours] == new
    assert sampled == [False] * len(mixed_inputs), "an untrained model never says [RET] in this test"
    assert all(summary[-1] == special.ret for summary in ours)


def test_rows_that_stop_early_leave_the_others_unchanged(tiny_encoder, mixed_inputs):
    batch = tiny_encoder.prepare(mixed_inputs)
    special = tiny_encoder._special_ids()
    torch.manual_seed(3)
    free, _ = run(tiny_encoder, batch, sampling=Sampling(True, top_k=1), tokens=12)
    stops = {free[0][0], free[1][2], free[2][4]}
    stopped, flags = run(tiny_encoder, batch, dataclasses.replace(special, stop=tuple(stops)), tokens=12)
    for summary, whole in zip(stopped, free, strict=True):
        ends = [i for i, token in enumerate(whole) if token in stops]
        assert summary[:-1] == whole[: ends[0] if ends else 12]
    assert len({len(summary) for summary in stopped}) > 1, "the test needs rows of different lengths"
    assert not any(flags)


def test_a_sampled_ret_is_told_from_a_forced_one(tiny_encoder, mixed_inputs):
    batch = tiny_encoder.prepare(mixed_inputs)
    free, _ = run(tiny_encoder, batch)
    special = dataclasses.replace(tiny_encoder._special_ids(), ret=free[1][1])
    summaries, flags = run(tiny_encoder, batch, special)
    assert flags[1] and summaries[1] == free[1][: free[1].index(special.ret) + 1]
    for summary, flag, whole in zip(summaries, flags, free, strict=True):
        assert flag == (special.ret in whole[:-1]) and summary[-1] == special.ret


def test_generations_share_the_prefill_item_major(tiny_encoder, mixed_inputs):
    batch = tiny_encoder.prepare(mixed_inputs)
    greedy, _ = run(tiny_encoder, batch)
    copies, _ = run(tiny_encoder, batch, sampling=Sampling(True, top_k=1), generations=3)
    assert copies == [summary for summary in greedy for _ in range(3)]


def test_sampled_summaries_end_in_ret_and_hold_no_special_token(tiny_encoder, mixed_inputs):
    batch = tiny_encoder.prepare(mixed_inputs)
    written = tiny_encoder.generate_summaries(
        batch, num_generations=6, do_sample=True, temperature=50.0, max_new_tokens=12
    )
    summaries, flags = written.summaries, written.sampled_ret
    special = tiny_encoder._special_ids()
    names = tiny_encoder.tokenizer.convert_ids_to_tokens(special.banned)
    assert {"<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|im_start|>", "<|endoftext|>"} <= set(
        names
    )
    assert len(summaries) == len(flags) == 6 * len(mixed_inputs)
    assert len({tuple(summary) for summary in summaries}) > len(mixed_inputs)
    for summary in summaries:
        assert summary[-1] == special.ret and special.ret not in summary[:-1]
        assert not set(summary) & {*special.banned, *special.stop}


def test_a_generator_makes_it_repeatable(tiny_encoder):
    batch = tiny_encoder.prepare(["a red cat"])
    runs = [
        tiny_encoder.generate_summaries(
            batch, num_generations=4, do_sample=True, generator=torch.Generator().manual_seed(seed)
        ).summaries
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_states_at_ret_are_those_of_a_whole_forward(tiny_encoder, mixed_inputs):
    prompts = tiny_encoder.prepare(mixed_inputs)
    special = tiny_encoder._special_ids()
    base = tiny_encoder.base_model
    stop = dataclasses.replace(special, stop=tuple(range(0, len(tiny_encoder.tokenizer), 6)))
    sampling, generator = Sampling(True, temperature=3.0), torch.Generator().manual_seed(0)
    written = generate(base.model, base.lm_head, prompts, 2, stop, sampling, 6, 3, generator)
    assert len({len(summary) for summary in written.summaries}) > 2, (
        "the test needs rows of different lengths"
    )
    full, _ = tiny_encoder.append(tiny_encoder.repeat(prompts, 3), written.summaries, ret=True)
    with torch.no_grad():
        hidden = tiny_encoder.hidden_states(full)
    torch.testing.assert_close(written.at, hidden[:, -1], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(written.before, hidden[:, -2], atol=2e-5, rtol=1e-5)
    expected = tiny_encoder.read_embedding(hidden, full, "before")
    torch.testing.assert_close(written.embeddings("before"), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(True), [0.5, 0.25, 0.15, 0.1]),
        (Sampling(True, top_k=2), [2 / 3, 1 / 3, 0.0, 0.0]),
        (Sampling(True, top_p=0.6), [2 / 3, 1 / 3, 0.0, 0.0]),
        (Sampling(True, top_p=0.1), [1.0, 0.0, 0.0, 0.0]),
        (Sampling(True, temperature=0.5), [p * p / 0.345 for p in (0.5, 0.25, 0.15, 0.1)]),
    ],
)
def test_sampling_frequencies(sampling, expected):
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log().expand(20000, 4)
    drawn = next_tokens(logits, sampling, torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        drawn.bincount(minlength=4) / 20000, torch.tensor(expected), atol=0.015, rtol=0
    )


def test_bad_sampling_options():
    with pytest.raises(ValueError, match="temperature: 0"):
        Sampling(True, temperature=0)
    with pytest.raises(ValueError, match=r"top_p: 1\.5"):
        Sampling(top_p=1.5)
    with pytest.raises(ValueError, match="top_k: -1"):
        Sampling(top_k=-1)


def test_no_new_token_is_refused(tiny_encoder):
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        tiny_encoder.generate_summaries(tiny_encoder.prepare(["a"]), max_new_tokens=0)


def test_evaluation_mode_restores_each_module():
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout()).train()
    model[1].eval()
    with evaluation_mode(model):
        assert not model[0].training
    assert model.training and model[0].training and not model[1].training
