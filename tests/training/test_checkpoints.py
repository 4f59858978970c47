"""Which checkpoint a run goes on from, and what is said of one that was damaged."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from elva.training.checkpoints import whole_checkpoint
from elva.training.config import ConfigError
from elva.training.run import make_trainer, run_stage
from tests.training.test_resume import small_text_run

STATE = {"max_steps": 6, "epoch": 1.0, "log_history": [], "stateful_callbacks": {}}


def write_checkpoint(output: Path, step: int, processes: int = 1) -> Path:
    """Without weights."""
    checkpoint = output / "checkpoints" / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    ranks = [""] if processes == 1 else [f"_{rank}" for rank in range(processes)]
    for name in ("optimizer.pt", "scheduler.pt", *(f"rng_state{rank}.pth" for rank in ranks)):
        torch.save({}, checkpoint / name)
    (checkpoint / "trainer_state.json").write_text(json.dumps({**STATE, "global_step": step}))
    return checkpoint


def test_a_half_written_checkpoint_is_passed_over(tmp_path: Path) -> None:
    whole, half = write_checkpoint(tmp_path, 2), write_checkpoint(tmp_path, 4)
    (half / "trainer_state.json").write_text('{"glob')
    (whole.parent / "checkpoint-6").mkdir()
    assert whole_checkpoint(tmp_path, 1, remove=False) == str(whole)
    assert len(list(whole.parent.iterdir())) == 3
    with pytest.warns(UserWarning, match="checkpoint-[46] was not written to its end and is removed") as said:
        assert whole_checkpoint(tmp_path, 1, remove=True) == str(whole)
    assert len(said) == 2
    assert [path.name for path in whole.parent.iterdir()] == ["checkpoint-2"]


def test_a_checkpoint_is_whole_once_all_processes_have_written(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path, 2, processes=2)
    assert whole_checkpoint(tmp_path, 2, remove=False) == str(checkpoint)
    other = checkpoint / "rng_state_1.pth"
    content = other.read_bytes()
    other.write_bytes(content[:-20])
    assert whole_checkpoint(tmp_path, 2, remove=False) is None
    other.unlink()
    assert whole_checkpoint(tmp_path, 2, remove=False) is None


@pytest.mark.parametrize("part", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("damage", ["lacks", "has a damaged"])
def test_a_part_that_was_lost_is_named(part: str, damage: str, tmp_path: Path) -> None:
    """Trainer would go on without it, as another run; the older checkpoint is not taken unheard either."""
    write_checkpoint(tmp_path, 2)
    file = write_checkpoint(tmp_path, 4) / part
    file.unlink() if damage == "lacks" else file.write_bytes(b"no pickle")
    message = rf"checkpoint-4 {damage} {re.escape(part)}; remove the directory, and the same command goes on"
    with pytest.raises(ConfigError, match=message):
        whole_checkpoint(tmp_path, 1, remove=True)
    assert file.parent.is_dir()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"global_step": "4"}, "global_step is '4'"),
        ({"global_step": 2}, "global_step is 2, expected 4"),
        ({"log_history": None}, "log_history is 'None'"),
        ({"stateful_callbacks": []}, "stateful_callbacks is '[]'"),
        (None, "a list, expected an object"),
    ],
)
def test_a_state_of_wrong_types_is_named(change: dict[str, Any] | None, fault: str, tmp_path: Path) -> None:
    state = write_checkpoint(tmp_path, 4) / "trainer_state.json"
    state.write_text(json.dumps([] if change is None else {**json.loads(state.read_text()), **change}))
    with pytest.raises(
        ConfigError, match=rf"checkpoint-4 has a damaged trainer_state.json \({re.escape(fault)}\)"
    ):
        whole_checkpoint(tmp_path, 1, remove=True)


def test_the_optimisers_of_deepspeed_and_fsdp_are_their_own(tmp_path: Path) -> None:
    for step, own, absent in (
        (2, "optimizer.bin", ("optimizer.pt",)),
        (4, "optimizer_0", ("optimizer.pt",)),
        (6, "global_step6", ("optimizer.pt", "scheduler.pt")),
    ):
        checkpoint = write_checkpoint(tmp_path, step)
        (checkpoint / own).touch() if own.endswith(".bin") else (checkpoint / own).mkdir()
        for name in absent:
            (checkpoint / name).unlink()
        assert whole_checkpoint(tmp_path, 1, remove=True) == str(checkpoint)


def test_a_checkpoint_with_damaged_weights_is_named(
    mini_scenes: Path, untrained_model: Path, tmp_path: Path
) -> None:
    trainer = {"max_steps": 2, "save_steps": 2, "per_device_train_batch_size": 4, "warmup_steps": 0}
    config = small_text_run(untrained_model, mini_scenes, tmp_path / "run", trainer=trainer)
    shutil.rmtree(run_stage(config))
    weights = tmp_path / "run" / "checkpoints" / "checkpoint-2" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ConfigError, match=r"checkpoint-2 has a damaged adapter_model.safetensors \("):
        run_stage(config)
    weights.unlink()
    with pytest.raises(ValueError, match=r"checkpoint-2: an adapter_config.json without weights"):
        run_stage(config)


def test_a_part_that_torch_cannot_read_is_named(
    mini_scenes: Path, untrained_model: Path, tmp_path: Path
) -> None:
    checkpoint = write_checkpoint(tmp_path, 2)
    trainer = make_trainer(small_text_run(untrained_model, mini_scenes, tmp_path / "run"))
    trainer.create_optimizer_and_scheduler(2)
    loads: list[tuple[str, Callable[[str], None]]] = [
        ("optimizer.pt or scheduler.pt", trainer._load_optimizer_and_scheduler),
        ("rng_state.pth", trainer._load_rng_state),
    ]
    for part, load in loads:
        with pytest.raises(ConfigError, match=rf"checkpoint-2: {part} cannot be read \(.*remove the dir"):
            load(str(checkpoint))
    with pytest.raises(ConfigError, match=r"checkpoint of step 0: elva of trainer_state.json cannot be read"):
        trainer.restore_figures({"losses": {"total": None}})
