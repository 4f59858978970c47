"""Stage 3 alone on another retriever (the paper's Table 5): `elva train rl --model`, here on a PEFT adapter."""

from __future__ import annotations

import json

import torch
from peft import LoraConfig, get_peft_model
from typer.testing import CliRunner

from elva.cli.main import app
from elva.models import MultimodalEncoder

SETTINGS = [
    "lora={r: 4, alpha: 8, dropout: 0.0}",
    "rl={num_generations: 2, max_completion_length: 3, candidates: direct, gradient: surrogate, beta: 0.2}",
    "negatives={n_hard: 2, n_random: 1, instances: 4}",
    "trainer={max_steps: 1, per_device_train_batch_size: 2, logging_steps: 1, save_strategy: 'no', "
    "lr_scheduler_type: constant, warmup_steps: 0, learning_rate: 1e-5, disable_tqdm: true}",
]


def test_stage_3_starts_from_an_adapter_of_others(mini_scenes, untrained_model, tmp_path):
    encoder = MultimodalEncoder.from_pretrained(untrained_model, device="cpu")
    encoder.model = get_peft_model(encoder.model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    encoder.model.peft_config["default"].base_model_name_or_path = str(untrained_model)
    torch.manual_seed(1)
    for name, parameter in encoder.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapter = tmp_path / "retriever"
    encoder.model.save_pretrained(adapter)
    (adapter / "1_Pooling").mkdir()
    (adapter / "1_Pooling" / "config.json").write_text('{"pooling_mode": "lasttoken"}')

    values = [f"data={mini_scenes}", f"output={tmp_path / 'out'}", *SETTINGS]
    arguments = [part for value in values for part in ("--set", value)]
    result = CliRunner().invoke(app, ["train", "rl", "--model", str(adapter), *arguments])
    assert result.exit_code == 0, result.output
    (line,) = [x for x in json.loads((tmp_path / "out" / "history.json").read_text()) if "kl" in x]
    assert line["kl"] == 0.0, "the reference is not the retriever that the stage began with"
    trained = MultimodalEncoder.from_pretrained(tmp_path / "out" / "model", device="cpu")
    assert (trained.config.mode, trained.config.read) == ("generative", "before")
    start = MultimodalEncoder.from_pretrained(adapter, device="cpu")
    base = MultimodalEncoder.from_pretrained(untrained_model, device="cpu")
    base = MultimodalEncoder(base.model, base.tokenizer, base.image_processor, trained.config)
    after, before, without = (x.encode(["a red circle"], mode="direct") for x in (trained, start, base))
    assert 0 < 10 * float((after - before).norm()) < float((before - without).norm())


def test_another_architecture_is_one_line(mini_scenes, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    arguments = [
        "--model",
        str(tmp_path),
        "--set",
        f"data={mini_scenes}",
        "--set",
        f"output={tmp_path / 'out'}",
    ]
    result = CliRunner().invoke(app, ["train", "rl", *arguments])
    assert result.exit_code == 2
    assert "is a 'bert' model, expected one of qwen2_vl, qwen2_5_vl, qwen3_vl" in result.stderr
