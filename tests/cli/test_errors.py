"""`elva train`, `elva eval` and `elva demo` end on one line; `--debug` shows a bug's traceback."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest
import typer
from safetensors import SafetensorError
from typer.testing import CliRunner

import elva.data.mrbench
import elva.demo
import elva.evaluation
import elva.training
from elva.cli.errors import one_line
from elva.cli.main import app

COMMANDS = {
    "elva eval": ["eval", "model", "--data", "data", "--no-check"],
    "elva demo": ["demo", "--data", "data"],
    "elva train text": ["train", "text", "--set", "model=m", "--set", "data=d", "--set", "output=out"],
}


@pytest.fixture
def fail(tmp_path, monkeypatch):
    """All commands end in the same error."""

    def set_up(error: Exception) -> None:
        def raise_it(*arguments, **options):
            raise error

        # A module that is first imported now would keep what stands in for the class.
        for package in (elva.data, elva.data.mrbench, elva.demo, elva.evaluation, elva.training):
            for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
                importlib.import_module(module.name)
        monkeypatch.setattr("elva.data.mbeir.MBEIRDirectory", raise_it)
        monkeypatch.setattr("elva.training.run.run_stage", raise_it)
        monkeypatch.setattr("elva.demo.pipeline.run_base", raise_it)

    monkeypatch.chdir(tmp_path)
    return set_up


def invoke(command: str, *more: str):
    return CliRunner().invoke(app, [*COMMANDS[command], *more])


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("alpha: 3 given"), 2, "alpha: 3 given"),
        (FileNotFoundError("no model"), 2, "no model"),
        (TypeError("a list given"), 2, "a list given"),
        (ImportError("pip install it"), 2, "pip install it"),
        (SafetensorError("header"), 2, "header"),
        (RuntimeError("shapes\n  differ"), 1, "RuntimeError: shapes differ; --debug shows where"),
        (KeyError("weights"), 1, "KeyError: 'weights'; --debug shows where"),
    ],
)
def test_an_error_is_one_line(command, error, status, line, fail):
    fail(error)
    result = invoke(command)
    assert result.exit_code == status
    assert result.stderr == f"{command}: {line}\n"
    assert isinstance(result.exception, SystemExit)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("error", [ValueError("alpha"), KeyError("weights")])
def test_debug_shows_the_traceback(command, error, fail):
    fail(error)
    result = invoke(command, "--debug")
    assert result.exit_code == 1
    assert result.exception is error
    assert result.exception.__traceback__ is not None


def test_an_exit_keeps_its_status():
    with pytest.raises(typer.Exit) as exit_, one_line("elva", debug=False):
        raise typer.Exit(7)
    assert exit_.value.exit_code == 7
    with pytest.raises(KeyboardInterrupt), one_line("elva", debug=False):
        raise KeyboardInterrupt


def test_a_broken_adapter_is_one_line_in_both(tmp_path: Path, monkeypatch):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": 5}')
    (tmp_path / "data").mkdir()
    monkeypatch.setattr("elva.data.mbeir.MBEIRDirectory", lambda root: None)
    monkeypatch.setattr("elva.evaluation.retrieval.select_tasks", lambda *arguments: [])
    monkeypatch.setattr("elva.evaluation.inputs.Inputs", lambda *arguments: None)
    message = (
        f"{folder / 'adapter_config.json'}: base_model_name_or_path is 5, expected the model that it adapts"
    )
    found = CliRunner().invoke(app, ["eval", str(folder), "--data", str(tmp_path / "data"), "--no-check"])
    assert (found.exit_code, found.stderr) == (2, f"elva eval: {message}\n")
    settings = [f"model={folder}", f"data={tmp_path / 'data'}", f"output={tmp_path / 'out'}"]
    arguments = [part for value in settings for part in ("--set", value)]
    found = CliRunner().invoke(app, ["train", "text", *arguments])
    assert (found.exit_code, found.stderr) == (2, f"elva train text: {message}\n")
