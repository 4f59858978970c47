"""The configurations that follow the paper: what they hold, and that each runs to its end on tiny weights."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from elva.cli.main import app
from elva.training.config import load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted((CONFIGS / "paper").glob("*.yaml"))


def run(stage: str, *arguments: str):
    return CliRunner().invoke(app, ["train", stage, *arguments, "--dry-run"])


def test_there_is_one_for_every_stage_and_size():
    assert [file.stem for file in FILES] == [
        f"{s}-{n}" for s in ("instruct", "rl", "text") for n in ("2b", "7b")
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_runs_on_tiny_weights_and_keeps_nothing(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(file.stem.split("-")[0], "--config", str(file))
    assert result.exit_code == 0, result.output
    losses = re.search(r"loss (\S+), (\S+)$", result.stdout.strip())
    assert losses is not None and all(math.isfinite(float(loss)) for loss in losses.groups())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", ["2b", "7b"])
def test_they_hold_what_the_paper_fixes(size):
    text, instruct, rl = (
        load_config(stage, CONFIGS / "paper" / f"{stage}-{size}.yaml") for stage in ("text", "instruct", "rl")
    )
    assert text.model == f"Qwen/Qwen2-VL-{size.upper()}-Instruct"
    assert (instruct.model, rl.model) == (f"{text.output}/model", f"{instruct.output}/model")

    def batch(config):
        trainer = config.trainer
        return 8 * trainer["per_device_train_batch_size"] * trainer.get("gradient_accumulation_steps", 1)

    assert [batch(config) for config in (text, instruct)] == [576, 960]
    assert [config.trainer["learning_rate"] for config in (text, instruct, rl)] == [4e-5, 1e-4, 1e-6]
    assert [config.trainer["num_train_epochs"] for config in (text, instruct, rl)] == [2, 1, 1]
    assert [(config.lora.r, config.lora.alpha) for config in (text, instruct)] == [(64, 128), (128, 256)]
    assert (rl.rl.num_generations, rl.rl.beta, rl.rl.candidates) == (8, 0.2, "generate")
    assert (rl.negatives.n_hard, rl.negatives.n_random, rl.negatives.instances) == (50, 50, 11000)
    assert (rl.reward.alpha, rl.reward.epsilon) == (0.4, 0.6)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_its_launch_lines_name_files_that_exist(file):
    comments = file.read_text(encoding="utf-8")
    assert "Not measured" in comments
    named = re.findall(r"configs/\S+\.yaml", comments)
    assert f"configs/paper/{file.name}" in named and len(named) == 3
    assert all((CONFIGS.parent / name).is_file() for name in named)


@pytest.mark.parametrize(("name", "kind"), [("fsdp2", "FSDP"), ("zero2", "DEEPSPEED")])
def test_accelerate_reads_its_files(name, kind):
    from accelerate.commands.config.config_args import load_config_from_file

    file = CONFIGS / "accelerate" / f"{name}.yaml"
    loaded = load_config_from_file(str(file))
    assert (loaded.distributed_type, loaded.num_processes, loaded.mixed_precision) == (kind, 8, "bf16")
    raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    if name == "zero2":
        assert loaded.deepspeed_config["zero_stage"] == raw["deepspeed_config"]["zero_stage"] == 2
    else:
        assert loaded.fsdp_config["fsdp_version"] == raw["fsdp_config"]["fsdp_version"] == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("rl.gradent=score", "did you mean rl.gradient"),
        ("rl.gradient=both", "expected one of score, pathwise, surrogate"),
        ("rl.random_negatives=batch", "negatives.n_random: got 50 with rl.random_negatives: batch"),
        ("trainer.learning_rte=1", "learning_rte"),
    ],
)
def test_bad_settings_are_named_in_a_dry_run_too(setting, message):
    result = run("rl", "--config", str(CONFIGS / "paper" / "rl-2b.yaml"), "--set", setting)
    assert result.exit_code == 2
    assert message in result.stderr and "Traceback" not in result.stderr
