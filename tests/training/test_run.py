"""Whole stages through the command: they chain, and a killed one goes on where it was."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file, save_file

TRAINER = [
    "trainer.max_steps=6",
    "trainer.save_steps=2",
    "trainer.logging_steps=1",
    "trainer.per_device_train_batch_size=8",
]
STAGES = {
    "base": [],
    "text": ["lora={r: 4, alpha: 8, dropout: 0.1}"],
    "instruct": [
        "lora={r: 4, alpha: 8, dropout: 0.1}",
        "summary_probability=0.5",
        "max_completion_length=4",
        "negatives.n_hard=2",
    ],
    "rl": [
        "lora={r: 4, alpha: 8, dropout: 0.1}",
        "rl={num_generations: 3, max_completion_length: 4, candidates: shared, gradient: surrogate}",
        "rl.random_negatives=batch",
        "negatives={n_hard: 2, n_random: 0, instances: 12}",
    ],
}


@pytest.fixture(autouse=True)
def _the_command() -> None:
    pytest.importorskip("typer", reason="typer, which the command is written in, is not installed")


def command(stage, data, model, output):
    settings = [f"data={data}", f"model={'tiny' if stage == 'base' else model}", f"output={output}", "seed=3"]
    settings += [*TRAINER, "trainer.disable_tqdm=true", "trainer.learning_rate=1e-2", *STAGES[stage]]
    return [
        sys.executable,
        "-m",
        "elva.cli.main",
        "train",
        stage,
        *(part for s in settings for part in ("--set", s)),
    ]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def kill_after_first_checkpoint(arguments, output):
    process = subprocess.Popen(
        arguments, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    mark = output / "checkpoints" / "checkpoint-2" / "trainer_state.json"
    while not mark.exists():
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (output / "model").exists(), "the run was over before it was killed: the test shows nothing"


@pytest.mark.parametrize(
    "stage", [pytest.param(stage, marks=[] if stage == "text" else [pytest.mark.slow]) for stage in STAGES]
)
def test_a_killed_run_ends_as_an_uninterrupted_one(stage, mini_scenes, untrained_model, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    subprocess.run(
        command(stage, mini_scenes, untrained_model, straight),
        env=environment(),
        check=True,
        capture_output=True,
    )
    arguments = command(stage, mini_scenes, untrained_model, killed)
    kill_after_first_checkpoint(arguments, killed)
    subprocess.run(arguments, env=environment(), check=True, capture_output=True)
    expected = load_file(straight / "model" / "model.safetensors")
    found = load_file(killed / "model" / "model.safetensors")
    assert expected.keys() == found.keys()
    assert all(found[name].equal(expected[name]) for name in expected)
    if stage != "base":
        start = load_file(untrained_model / "model.safetensors")
        assert any(not start[name].equal(expected[name]) for name in expected), "nothing was trained"
    steps = [line["step"] for line in json.loads((killed / "history.json").read_text()) if "loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("stage", ["base", "text"])
def test_a_checkpoint_without_some_weights_does_not_go_on(stage, mini_scenes, untrained_model, tmp_path):
    from elva.training.config import load_config
    from elva.training.run import make_trainer

    run = tmp_path / "run"
    overrides = command(stage, mini_scenes, untrained_model, run)[5:]
    trainer = make_trainer(load_config(stage, None, [value for value in overrides if value != "--set"]))
    file = run / ("adapter_model.safetensors" if stage == "text" else "model.safetensors")
    trainer.save_model(str(run))
    trainer._load_from_checkpoint(str(run))
    weights = load_file(file)
    left_out = next(key for key in weights if "layers.1." in key)
    del weights[left_out]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"do(es)? not fit \w+: 1 of its layers have no weights in the file"):
        trainer._load_from_checkpoint(str(run))


@pytest.mark.slow
def test_other_settings_do_not_continue_a_run(mini_scenes, untrained_model, tmp_path):
    output = tmp_path / "run"
    output.mkdir()
    (output / "config.json").write_text(json.dumps({"seed": 1}))
    result = subprocess.run(
        command("rl", mini_scenes, untrained_model, output), env=environment(), capture_output=True, text=True
    )
    assert result.returncode == 2
    assert "other settings" in result.stderr and "Traceback" not in result.stderr


def test_bad_settings_exit_with_one_line(tmp_path):
    arguments = [sys.executable, "-m", "elva.cli.main", "train", "rl", "--set", "model=m"]
    result = subprocess.run(arguments, env=environment(), capture_output=True, text=True)
    assert result.returncode == 2
    assert (
        result.stderr.strip() == "elva train rl: output: missing; give it in the file or with --set output=…"
    )
