"""`elva train` answers bad settings with one line and exit status 2, never with a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from elva.cli.main import app
from elva.models.tiny import create


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    create(["a red circle"]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("trainer.learning_rate=abc", "elva train text: trainer.learning_rate: got 'abc', expected a number"),
        ("lora.r=0", "lora.r: got 0, expected at least 1"),
        ("loss.temperature=0", "loss.temperature: got 0.0, expected 0.0001 to 100"),
        ("attn_implementation=foo", "attn_implementation: 'foo' given"),
        ("nosuch=1", "nosuch"),
    ],
)
def test_bad_settings(model: Path, tmp_path: Path, setting: str, message: str):
    data = tmp_path / "triplets.jsonl"
    data.write_text('{"anchor": "a", "positive": "b", "negative": "c"}\n' * 4)
    values = [f"model={model}", f"data={data}", f"output={tmp_path / 'out'}", "trainer.max_steps=1"]
    arguments = [part for value in [*values, "trainer.report_to=none", setting] for part in ("--set", value)]
    result = CliRunner().invoke(app, ["train", "text", *arguments])
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert message in result.stderr


def test_a_truncated_weights_file(model: Path, tmp_path: Path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in model.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    values = [f"model={broken}", f"data={tmp_path}", f"output={tmp_path / 'out'}"]
    arguments = [part for value in values for part in ("--set", value)]
    result = CliRunner().invoke(app, ["train", "text", *arguments])
    assert result.exit_code == 2
    assert "header" in result.stderr
