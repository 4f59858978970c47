"""vLLM's side against a stand-in that answers scripted tokens: requests, flags, weights, and the states at [RET]."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from elva.training.config import ConfigError
from elva.training.rollouts import separate
from elva.training.vllm_generation import merged_weights
from tests.training.test_step_families import ITEMS, make_encoder, make_trainer, picture

PROMPTS = [ITEMS[0], ITEMS[1], {"text": "cat", "image": picture("yellow", 64, 128)}]


class Engine:
    """vLLM's contract as far as it is used; answers by turns a sampled [RET], a cut summary, an end of turn."""

    def __init__(self, **options):
        self.options, self.loaded, self.requests = options, {}, []
        model = SimpleNamespace(
            load_weights=lambda weights: self.loaded.update({n: w.clone() for n, w in weights})
        )
        worker = SimpleNamespace(model_runner=SimpleNamespace(model=model))
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=worker))

    def reset_prefix_cache(self):
        self.requests.clear()

    def generate(self, requests, parameters, use_tqdm):
        self.requests += requests
        self.parameters = parameters
        ret, stop = parameters.stop_token_ids
        answers = ([5, 6, ret], [7] * parameters.max_tokens, [8, stop])
        return [
            SimpleNamespace(
                prompt_token_ids=self.whole(request),
                outputs=[SimpleNamespace(token_ids=tuple(answers[g % 3])) for g in range(parameters.n)],
            )
            for request in requests
        ]

    def whole(self, request):
        """The prompt with as many placeholders as the picture has tokens."""
        ids = request["prompt_token_ids"]
        if "multi_modal_data" not in request:
            return ids
        place = ids.index(self.pad)
        return [
            *ids[:place],
            *[self.pad] * self.tokens(request["multi_modal_data"]["image"]),
            *ids[place + 1 :],
        ]


@pytest.fixture
def vllm(monkeypatch):
    package = ModuleType("vllm")
    package.LLM = Engine
    package.SamplingParams = SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", package)


def trainer_on_vllm(tmp_path, **settings):
    encoder = make_encoder("Qwen2_VL")
    encoder.base_model.name_or_path = "a/model"
    trainer = make_trainer(encoder, tmp_path, use_vllm=True, **settings)
    engine = trainer.step.vllm.llm
    engine.pad = encoder.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    engine.tokens = lambda image: int(encoder.processor.picture(image, "inputs[0]").grid.prod()) // 4
    return trainer, engine


def test_rollouts_have_the_tokens_and_the_states_of_the_ordinary_path(vllm, tmp_path):
    trainer, _ = trainer_on_vllm(tmp_path)
    rollouts = trainer.step.roll_out(PROMPTS, "queries", candidates=False)
    ret = trainer.encoder.ret_id
    assert rollouts.completions == [[5, 6, ret], [7] * 6 + [ret], [8, ret]] * 3
    assert rollouts.sampled_ret == [True, False, False] * 3
    sequences = separate(trainer.encoder, rollouts)
    trainer.encoder.model.eval()
    with torch.no_grad():
        states = trainer.encoder.read_embedding(
            trainer.encoder.hidden_states(sequences.batch), sequences.batch
        )
    torch.testing.assert_close(rollouts.embeddings.flatten(0, 1), states, atol=1e-5, rtol=0)


def test_what_is_asked_of_vllm(vllm, tmp_path):
    trainer, engine = trainer_on_vllm(tmp_path, temperature=0.7, top_k=0, top_p=0.9)
    trainer.step.roll_out(PROMPTS, "queries", candidates=False)
    asked, encoder = engine.parameters, trainer.encoder
    assert (asked.n, asked.temperature, asked.top_p, asked.top_k, asked.max_tokens) == (3, 0.7, 0.9, -1, 6)
    assert asked.stop_token_ids[0] == encoder.ret_id
    assert set(asked.logit_bias) == set(encoder._special_ids().banned)
    assert engine.options["model"] == "a/model" and engine.options["dtype"] == "float32"
    text, both, _ = engine.requests
    assert "multi_modal_data" not in text
    assert both["prompt_token_ids"].count(engine.pad) == 1


def test_the_policys_merged_weights_are_loaded_under_the_checkpoints_names(vllm, tmp_path):
    trainer, engine = trainer_on_vllm(tmp_path)
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.step.roll_out(PROMPTS, "queries", candidates=False)
    assert all(torch.allclose(p, before[name], atol=1e-6) for name, p in trainer.model.named_parameters())
    expected = dict(trainer.encoder.model.merge_and_unload().named_parameters())
    assert engine.loaded.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(engine.loaded[name], weight, atol=1e-6, rtol=1e-5)


def test_names_without_an_adapter():
    model = make_encoder("Qwen2_VL").model
    assert [name for name, _ in merged_weights(model)] == [name for name, _ in model.named_parameters()]


def test_other_placeholders_are_refused(vllm, tmp_path):
    trainer, engine = trainer_on_vllm(tmp_path)
    engine.tokens = lambda image: 3
    with pytest.raises(ValueError, match="its image processor differs"):
        trainer.step.roll_out(PROMPTS, "queries", candidates=False)


def test_without_the_package_the_next_step_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r"pip install vllm.*set rl.use_vllm to false"):
        make_trainer(make_encoder("Qwen2_VL"), tmp_path, use_vllm=True)
    with pytest.raises(ConfigError, match=r"rl.use_vllm: true given with rl.step: plain"):
        make_trainer(make_encoder("Qwen2_VL"), tmp_path, use_vllm=True, step="plain")
