"""A run goes on, and a finished one is returned, only with the data and the start model that it began with."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from elva.training.config import ConfigError, StageConfig
from elva.training.origin import changed, origin
from elva.training.resume import same_origin, same_settings, write_record
from elva.training.run import run_stage
from tests.training.test_resume import small_text_run


def append(file: Path) -> None:
    with file.open("ab") as opened:
        opened.write(b" ")


def other_weights(root: Path) -> None:
    file = root / "model" / "model.safetensors"
    weights = load_file(file)
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, file, metadata={"format": "pt"})


def touch(root: Path) -> None:
    for file in root.rglob("*"):
        os.utime(file, ns=(0, 0))


def beside(root: Path) -> None:
    """What training does not read."""
    for name in (
        "model/README.md",
        "model/notes.json",
        "model/seconds.txt",
        "data/query/test/mbeir_scenes_task0_test.jsonl",
        "data/mbeir_images/new.png",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("new")


CHANGES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "nothing": (lambda root: None, []),
    "times": (touch, []),
    "files beside": (beside, []),
    "weights": (other_weights, ["model"]),
    "settings": (lambda root: append(root / "model" / "elva.json"), ["model"]),
    "no data": (lambda root: shutil.rmtree(root / "data"), []),
    "no model": (lambda root: shutil.rmtree(root / "model"), []),
    "queries": (lambda root: append(next((root / "data/query/union_train").glob("*.jsonl"))), ["data"]),
    "pool": (lambda root: append(next((root / "data/cand_pool/global").glob("*train*"))), ["data"]),
    "captions": (lambda root: append(root / "data/captions/train.jsonl"), ["data"]),
    "instructions": (lambda root: append(next((root / "data/instructions").glob("*.tsv"))), ["data"]),
    "a picture": (
        lambda root: append(next((root / "data/mbeir_images").rglob("*train*/**/*.png"))),
        ["data"],
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changed_is_named(name: str, mini_scenes: Path, untrained_model: Path, tmp_path: Path) -> None:
    shutil.copytree(mini_scenes, tmp_path / "data")
    shutil.copytree(untrained_model, tmp_path / "model")
    config = small_text_run(tmp_path / "model", tmp_path / "data", tmp_path / "run")
    before = origin(config)
    change, expected = CHANGES[name]
    change(tmp_path)
    assert changed(config, before) == expected


def test_the_base_of_an_adapter_counts(untrained_model: Path, tmp_path: Path) -> None:
    shutil.copytree(untrained_model, tmp_path / "model")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "../model"}')
    config = small_text_run(tmp_path / "adapter", tmp_path / "none.jsonl", tmp_path / "run")
    before = origin(config)
    assert changed(config, before) == []
    other_weights(tmp_path)
    assert changed(config, before) == ["model"]


def test_a_run_does_not_go_on_with_other_data(
    mini_scenes: Path, untrained_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(mini_scenes, tmp_path / "data")
    trainer = {"max_steps": 2, "save_steps": 1, "per_device_train_batch_size": 4, "warmup_steps": 0}
    config: StageConfig = small_text_run(
        untrained_model, tmp_path / "data", tmp_path / "run", trainer=trainer
    )
    model = run_stage(config)
    append(tmp_path / "data" / "captions" / "train.jsonl")
    message = r"^data: the content of .*data has changed since the run in .*run began; choose another output"
    with pytest.raises(ConfigError, match=message):
        run_stage(config)
    shutil.rmtree(model)
    with pytest.raises(ConfigError, match=message):
        run_stage(config)


def finished(config: StageConfig) -> None:
    """What a run leaves behind that `same_settings` and `same_origin` look at."""
    Path(config.output).mkdir()
    write_record(config, Path(config.output), processes=1)


def resumed(config: StageConfig) -> None:
    same_settings(config, Path(config.output))
    same_origin(config, Path(config.output))


def test_directories_may_move_and_be_spelt_otherwise(
    mini_scenes: Path, untrained_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, source in (("data", mini_scenes), ("model", untrained_model)):
        shutil.copytree(source, tmp_path / name)
    finished(small_text_run(tmp_path / "model", tmp_path / "data", tmp_path / "run"))
    monkeypatch.chdir(tmp_path)
    resumed(small_text_run("model/", "./data", "run/"))
    for name in ("data", "model", "run"):
        (tmp_path / name).rename(tmp_path / f"moved-{name}")
    moved = [tmp_path / f"moved-{name}" for name in ("model", "data", "run")]
    resumed(small_text_run(*moved))
    with pytest.raises(ConfigError, match=r"moved-run holds a run with other settings \(data\)"):
        resumed(small_text_run(moved[0], tmp_path / "never", moved[2]))
    append(moved[0] / "elva.json")
    with pytest.raises(ConfigError, match=r"^model: the content of .*moved-model has changed"):
        resumed(small_text_run(*moved))


def test_a_directory_of_which_nothing_is_known_is_known_by_its_path(
    mini_scenes: Path, untrained_model: Path, tmp_path: Path
) -> None:
    finished(small_text_run(untrained_model, mini_scenes, tmp_path / "run"))
    record = tmp_path / "run" / "config.json"
    record.write_text(json.dumps({k: v for k, v in json.loads(record.read_text()).items() if k != "origin"}))
    shutil.copytree(mini_scenes, tmp_path / "data")
    with pytest.raises(ConfigError, match=r"other settings \(data\)"):
        resumed(small_text_run(untrained_model, tmp_path / "data", tmp_path / "run"))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"logging_steps": 1, "report_to": "none", "save_steps": 7, "dataloader_num_workers": 2}, None),
        ({"max_steps": 3}, "trainer.max_steps"),
        ({"learning_rate": 0.1, "logging_steps": 1}, "trainer.learning_rate"),
    ],
)
def test_settings_that_no_weight_hangs_on_may_change(changed, named, mini_scenes, untrained_model, tmp_path):
    before = small_text_run(untrained_model, mini_scenes, tmp_path / "run")
    finished(before)
    after = small_text_run(
        untrained_model, mini_scenes, tmp_path / "run", trainer={**before.trainer, **changed}
    )
    if named is None:
        resumed(after)
        return
    with pytest.raises(ConfigError, match=rf"other settings \({named}\)"):
        resumed(after)


def test_a_model_of_the_hub_is_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_text_run("owner/name", tmp_path / "none.jsonl", tmp_path / "run")
    assert origin(config)["model"] == {}
    here = ["a"]
    monkeypatch.setattr("transformers.utils.cached_file", lambda *given, **options: f"{here[0]}/config.json")
    before = origin(config)
    assert changed(config, before) == []
    here[0] = "b"
    assert changed(config, before) == ["model"]
