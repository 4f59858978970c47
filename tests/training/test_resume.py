"""What an output directory may hold, who may write it, and how a run goes on there."""

import json
import shutil
import subprocess

import pytest
from safetensors.torch import load_file
from transformers import TrainingArguments

from elva.locks import LockedError, lock_directory
from elva.models import MultimodalEncoder
from elva.training.config import ConfigError, TextConfig, build
from elva.training.resume import is_whole
from elva.training.run import run_stage
from tests.training.test_run import command, environment


def small_text_run(model, data, output, **changed):
    values = {
        "model": str(model),
        "data": str(data),
        "output": str(output),
        "lora": {"r": 2, "alpha": 4},
        "trainer": {
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "warmup_steps": 0,
            "disable_tqdm": True,
        },
    }
    return build(TextConfig, {**values, **changed})


def test_a2_a_model_directory_that_is_not_whole_is_not_returned(mini_scenes, untrained_model, tmp_path):
    config = small_text_run(untrained_model, mini_scenes, tmp_path / "run")
    model = run_stage(config)
    assert run_stage(config) == model
    weights = model / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-10])
    with pytest.raises(
        ConfigError, match=r"run/model has a damaged model.safetensors .*remove the directory"
    ):
        run_stage(config)
    weights.unlink()
    with pytest.raises(
        ConfigError, match=r"run/model lacks model.safetensors; remove the directory, and the same command"
    ):
        run_stage(config)
    weights.write_bytes(content)
    for name in ("tokenizer.json", "elva.json"):
        (model / name).unlink()
        with pytest.raises(ConfigError, match=rf"run/model lacks {name}"):
            run_stage(config)


def test_a2_weights_that_were_not_written_are_not_moved_into_place(
    mini_scenes, untrained_model, tmp_path, monkeypatch
):
    save = MultimodalEncoder.save_pretrained

    def save_without_weights(self, path):
        save(self, path)
        (path / "model.safetensors").unlink()

    monkeypatch.setattr(MultimodalEncoder, "save_pretrained", save_without_weights)
    with pytest.raises(ConfigError, match=r"lacks model.safetensors"):
        run_stage(small_text_run(untrained_model, mini_scenes, tmp_path / "run"))
    assert not (tmp_path / "run" / "model").exists()


def test_a2_two_runs_do_not_share_an_output(mini_scenes, untrained_model, tmp_path):
    output = tmp_path / "run"
    with lock_directory(output):
        with pytest.raises(LockedError, match="run is being written by this process already"):
            run_stage(small_text_run(untrained_model, mini_scenes, output))
        assert [path.name for path in output.iterdir()] == [".lock"]
    assert not output.exists()


def test_a2_processes_that_do_not_see_each_other_are_refused(tmp_path, monkeypatch):
    class Alone(TrainingArguments):
        def __init__(self, **settings):
            monkeypatch.delenv("WORLD_SIZE")  # as accelerate where it joins nobody
            super().__init__(**settings)

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("elva.training.arguments.TrainingArguments", Alone)
    with pytest.raises(
        ConfigError, match=r"trainer.use_cpu: the launcher started 2 processes, and the trainer sees 1"
    ):
        run_stage(small_text_run("m", "d", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def launched(arguments, count):
    """The command under torchrun, without `trainer.use_cpu`."""
    python, module, *rest = arguments
    torchrun = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return [*torchrun, module, *rest]


@pytest.mark.slow
def test_a2_torchrun_on_cpu_trains_together(mini_scenes, untrained_model, tmp_path):
    pytest.importorskip("typer", reason="typer, which the command is written in, is not installed")
    output = tmp_path / "run"
    arguments = command("text", mini_scenes, untrained_model, output)
    subprocess.run(launched(arguments, 2), env=environment(), check=True, capture_output=True)
    assert is_whole(output / "model") is None
    assert json.loads((output / "config.json").read_text())["processes"] == 2
    checkpoint = output / "checkpoints" / "checkpoint-6"
    assert {path.name for path in checkpoint.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    assert sorted(path.name for path in output.iterdir()) == [
        "checkpoints",
        "config.json",
        "history.json",
        "model",
    ]
    # another number of processes would go on with other batches
    shutil.rmtree(output / "model")
    alone = subprocess.run(arguments, env=environment(), capture_output=True, text=True)
    assert alone.returncode == 2
    assert "holds checkpoints of 2 processes, and this run has 1" in alone.stderr


def test_a16_history_is_that_of_an_uninterrupted_run(mini_scenes, untrained_model, tmp_path):
    """The loss's window (3 steps) and the mean of all steps go on over the resumption at step 2."""
    trainer = {
        "max_steps": 6,
        "save_steps": 2,
        "save_total_limit": 9,
        "logging_steps": 3,
        "per_device_train_batch_size": 5,
        "learning_rate": 1e-2,
        "disable_tqdm": True,
    }
    config = small_text_run(untrained_model, mini_scenes, tmp_path / "run", trainer=trainer)
    whole = history(run_stage(config))
    for name in ("model", "checkpoints/checkpoint-4", "checkpoints/checkpoint-6"):
        shutil.rmtree(tmp_path / "run" / name)
    resumed = history(run_stage(config))
    assert resumed == whole
    lines = [line["loss"] for line in whole if "loss" in line]
    assert len(lines) == 2 and whole[-1]["train_loss"] == pytest.approx(sum(lines) / 2)
    # once more, with no step left to take
    shutil.rmtree(tmp_path / "run" / "model")
    assert history(run_stage(config)) == whole


def history(model):
    lines = json.loads((model.parent / "history.json").read_text())
    of_the_clock = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
    return [{key: value for key, value in line.items() if key not in of_the_clock} for line in lines]


def test_a16_a_checkpoint_goes_on_only_on_as_many_processes(mini_scenes, untrained_model, tmp_path):
    trainer = {"max_steps": 2, "save_steps": 1, "per_device_train_batch_size": 4, "warmup_steps": 0}
    config = small_text_run(untrained_model, mini_scenes, tmp_path / "run", trainer=trainer)
    shutil.rmtree(run_stage(config))
    record = tmp_path / "run" / "config.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "processes": 4}))
    with pytest.raises(
        ConfigError,
        match=r"run holds checkpoints of 4 processes, and this run has 1: .* start it on 4, or choose",
    ):
        run_stage(config)
    shutil.rmtree(tmp_path / "run" / "checkpoints")  # nothing to go on from: it begins anew
    assert is_whole(run_stage(config)) is None
    assert json.loads(record.read_text())["processes"] == 1


def test_a16_more_processes_delete_no_checkpoint(mini_scenes, untrained_model, tmp_path, monkeypatch):
    """To them it lacks the files of those that were not there, as one does that a kill has cut short."""
    trainer = {"max_steps": 2, "save_steps": 1, "per_device_train_batch_size": 4, "warmup_steps": 0}
    config = small_text_run(untrained_model, mini_scenes, tmp_path / "run", trainer=trainer)
    shutil.rmtree(run_stage(config))
    before = sorted((tmp_path / "run" / "checkpoints").rglob("*"))
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda self: 2))
    with pytest.raises(ConfigError, match=r"run holds checkpoints of 1 process, and this run has 2"):
        run_stage(config)
    assert sorted((tmp_path / "run" / "checkpoints").rglob("*")) == before != []


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("output_dir", "set output, whose folder checkpoints takes them"),
        ("resume_from_checkpoint", "a run goes on from its last whole checkpoint by itself"),
        ("seed", "set seed"),
        ("data_seed", "set seed"),
        ("label_smoothing_factor", "the loss is the stage's own"),
    ],
)
def test_a16_settings_that_are_not_heard_are_refused(name, advice, tmp_path):
    config = small_text_run("m", "d", tmp_path / "run", trainer={name: 1})
    with pytest.raises(ConfigError, match=f"trainer.{name}: has no effect in a stage; {advice}"):
        run_stage(config)
    assert not (tmp_path / "run").exists()


def test_a_run_killed_behind_its_last_step_takes_no_other(mini_scenes, untrained_model, tmp_path):
    """Its last step ends no epoch: Trainer alone would take a seventh."""
    trainer = {"max_steps": 5, "save_steps": 5, "per_device_train_batch_size": 5, "disable_tqdm": True}
    config = small_text_run(untrained_model, mini_scenes, tmp_path / "run", trainer=trainer)
    model = run_stage(config)
    whole, weights = history(model), load_file(model / "model.safetensors")
    shutil.rmtree(model)
    assert history(run_stage(config)) == whole
    again = load_file(model / "model.safetensors")
    assert all(again[name].equal(weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wandb", r"trainer.report_to: wandb is not installed; expected one of .*or none"),
        ("nonsense", r"trainer.report_to: nonsense is not supported"),
    ],
)
def test_c33_a_reporter_that_is_not_there(name, message, untrained_model, mini_scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "elva.training.arguments.get_available_reporting_integrations", lambda: ["tensorboard"]
    )
    config = small_text_run(untrained_model, mini_scenes, tmp_path / "run", trainer={"report_to": name})
    with pytest.raises(ConfigError, match=message):
        run_stage(config)
    assert not (tmp_path / "run").exists()


def test_settings_that_failed_at_once_are_not_those_of_the_run(mini_scenes, untrained_model, tmp_path):
    trainer = {"max_steps": 2, "per_device_train_batch_size": 4, "warmup_steps": 0}
    wrong = small_text_run(untrained_model, tmp_path / "absent", tmp_path / "run", trainer=trainer)
    with pytest.raises(ValueError, match="absent"):
        run_stage(wrong)
    right = small_text_run(untrained_model, mini_scenes, tmp_path / "run", trainer=trainer)
    assert is_whole(run_stage(right)) is None


@pytest.mark.parametrize("name", ["model", "checkpoints", "config.json", "history.json", "negatives.json"])
@pytest.mark.parametrize("kind", ["other", "dangling"])
def test_a_name_that_is_taken_is_noticed_before_the_start(name, kind, tmp_path):
    place = tmp_path / "run" / name
    place.parent.mkdir()
    if kind == "dangling":
        place.symlink_to(tmp_path / "nowhere")
    elif place.suffix:
        place.mkdir()
    else:
        place.write_text("")
    expected = "a file" if place.suffix else "a directory"
    with pytest.raises(ConfigError, match=rf"run/{name}: is not {expected}, expected {expected} or nothing"):
        run_stage(small_text_run("m", "d", tmp_path / "run"))


def test_an_output_that_is_a_file(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(ConfigError, match=r"^output: .*run is a file, expected a directory or a new name"):
        run_stage(small_text_run("m", "d", tmp_path / "run"))
