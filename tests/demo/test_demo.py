"""The whole demo, two steps a stage: what it prints and writes, and that it repeats nothing it has done."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from elva.cli.main import app
from elva.demo import summary
from elva.demo.pipeline import _measure, load_settings
from elva.evaluation.results import Results
from elva.training.config import ConfigError

STEPS = {"max_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 1e-3}
LORA = {"r": 2, "alpha": 4}
NEGATIVES = {"n_hard": 2, "instances": 12}
SETTINGS = {
    "scenes": {"size": 24},
    "evaluation": {"query_mode": "generative", "limit": 8},
    "base": {"model": "tiny", "trainer": STEPS},
    "text": {"lora": LORA, "trainer": STEPS},
    "instruct": {"lora": LORA, "max_completion_length": 4, "trainer": STEPS},
    "arms": {
        "InfoNCE": {"stage": "instruct", "lora": LORA, "trainer": STEPS},
        "ELVA": {
            "stage": "rl",
            "lora": LORA,
            "negatives": NEGATIVES,
            "rl": {
                "num_generations": 2,
                "max_completion_length": 4,
                "candidates": "direct",
                "random_negatives": "batch",
            },
            "trainer": STEPS,
        },
    },
}


@pytest.mark.slow
def test_demo_from_nothing_and_again(tmp_path):
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump(SETTINGS, sort_keys=False))
    out = tmp_path / "out"
    arguments = ["demo", "--settings", str(settings), "--out", str(out), "--seeds", "2"]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    for word in ("stage 2", "InfoNCE", "ELVA", "95% interval", "report.html"):
        assert word in first.output
    record = json.loads((out / "results.json").read_text())
    assert list(record["figures"]) == ["stage 2", "InfoNCE", "ELVA"]
    assert all(len(figures["by_seed"]) == 2 for figures in record["figures"].values())
    # ELVA: 4 queries x 2 rollouts, and 4 positives with at most 2 negatives each, in each of 2 steps
    assert all(2 * (8 + 4) < arms["ELVA"]["encoded_items"] <= 2 * (8 + 12) for arms in record["arms"])
    assert {d["reference"] for d in record["differences"]} == {"stage 2", "InfoNCE"}
    assert "±" in (out / "results.md").read_text()
    assert "<html" in (out / "report.html").read_text()
    weights = out / "seed0" / "elva" / "model" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0
    assert weights.stat().st_mtime_ns == before
    assert json.loads((out / "results.json").read_text()) == record


@pytest.mark.parametrize("change", ["nothing", "settings", "weights"])
def test_results_are_of_the_settings_and_weights_asked_for(change, tmp_path, monkeypatch):
    measured = []

    def evaluate(encoder, data, **settings):
        measured.append(settings)
        return Results("m", "d", "test", "local", "direct", "direct", "fixed", 0, None, len(measured), [])

    monkeypatch.setattr("elva.evaluation.retrieval.evaluate", evaluate)
    monkeypatch.setattr("elva.models.encoder.MultimodalEncoder.from_pretrained", lambda model: None)
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"a")

    def measure(**settings):
        return _measure(
            settings, "arm", str(weights.parent), tmp_path, tmp_path, 0, lambda line: None
        ).seconds

    assert [measure(limit=8), measure(limit=8)] == [1, 1]
    if change == "weights":
        weights.write_bytes(b"other")
    assert measure(limit=9 if change == "settings" else 8) == (1 if change == "nothing" else 2)


def test_shipped_settings_are_complete():
    for name in ("quick", "proof"):
        settings = load_settings(name, ["base.trainer.max_steps=7"])
        assert settings["base"]["trainer"]["max_steps"] == 7
        assert list(settings["arms"])[-1] == "ELVA" and len(settings["arms"]) == 3
    with pytest.raises(ConfigError, match="expected quick, proof or a YAML file"):
        load_settings("slow")


def test_spread_is_mean_and_standard_deviation():
    assert summary._spread([1.0, 2.0, 3.0], 0) == "2.0 ± 1.0"
    assert summary._spread([0.25], 3) == "0.250"
    assert summary._spread([None, None], 4) == "–"


def test_a_missing_directory_is_one_line(tmp_path):
    result = CliRunner().invoke(
        app, ["demo", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 2
    assert "Traceback" not in result.output
