"""`elva eval` from the outside; the encoder is a small stand-in, the rest is real."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from elva.cli import eval as command
from elva.data.mbeir import Candidate, Grain, Query
from elva.data.writer import MBEIRWriter
from elva.evaluation.results import Results
from elva.locks import lock_directory


class BrightnessEncoder:
    """Sees one number: how bright a picture is, or which of two words a text holds."""

    def __init__(self) -> None:
        import types

        self.config = types.SimpleNamespace(mode="generative")
        self.calls = 0

    def encode(self, inputs, mode=None, batch_size=32, show_progress=False, return_summaries=False):
        import torch

        self.calls += 1
        bright = torch.tensor([self._bright(item) for item in inputs])
        embeddings = torch.stack([bright.cos(), bright.sin()], 1)
        return (embeddings, ["a white dot"] * len(inputs)) if return_summaries else embeddings

    def _bright(self, item: dict) -> float:
        if item["image"]:
            with Image.open(item["image"]) as picture:
                return picture.convert("L").getpixel((0, 0)) / 255
        return float("white" in (item["text"] or ""))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    with MBEIRWriter(root) as writer:
        for dataset, number in (("dots", 20), ("dots_multigrain", 21)):
            writer.add_instruction("text", "image", dataset, number, ["Find the dot."])
            for index, colour in enumerate(("white", "black")):
                image = f"mbeir_images/{dataset}/{colour}.png"
                writer.save_image(image, Image.new("RGB", (8, 8), colour))
                did = f"{number}:{index}"
                writer.add_candidate("test", dataset, 0, Candidate(did, None, image, "image"))
                grains = (Grain("colour", colour, 2, 7), Grain("kind", "dot", 8, 11)) if number == 21 else ()
                query = Query(did, f"a {colour} dot", None, "text", 0, (did,), grains=grains)
                writer.add_query("test", dataset, query)
    return root


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> BrightnessEncoder:
    stand_in = BrightnessEncoder()
    monkeypatch.setattr(command, "load_encoder", lambda model: stand_in)
    return stand_in


def run(*arguments: str | Path) -> Result:
    app = typer.Typer()
    app.command()(command.evaluate_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_prints_the_tables_and_writes_both_files(
    data: Path, tmp_path: Path, encoder: BrightnessEncoder
) -> None:
    out = tmp_path / "out"
    result = run("my-model", "--data", data, "--out", out)
    assert result.exit_code == 0, result.output
    assert "dots_task0" in result.output
    assert "multi-grain queries" in result.output
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "results.json"]
    results = Results.from_json((out / "results.json").read_text(encoding="utf-8"))
    assert results.model == "my-model"
    assert results.mean_hit_rate == 1
    assert results.multigrain is not None
    assert results.multigrain.ranks == [1, 1]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count('<li class="right"') == 2


def test_the_benchmark_keeps_embeddings_and_goes_on(
    data: Path, tmp_path: Path, encoder: BrightnessEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elva.models.identity.model_digest", lambda encoder: "stand-in")
    out = tmp_path / "out"
    plain = run("m", "--data", data, "--out", tmp_path / "plain")
    result = run("m", "--data", data, "--benchmark", "mbeir", "--out", out)
    assert plain.exit_code == result.exit_code == 0, result.output
    tables = {"embeddings", "mbeir.md", "mbeir.tex", "report.html", "results.json", "trec"}
    assert {path.name for path in out.iterdir()} == tables
    assert (out / "trec/dots_task0.qrels").read_text() == "20:0 0 20:0 1\n20:1 0 20:1 1\n"
    assert len((out / "trec/dots_task0.run").read_text().splitlines()) == 4
    found, expected = (
        Results.from_json((folder / "results.json").read_text(encoding="utf-8"))
        for folder in (out, tmp_path / "plain")
    )
    assert found.rows == expected.rows and found.multigrain == expected.multigrain
    calls = encoder.calls
    assert run("m", "--data", data, "--benchmark", "mbeir", "--out", out).exit_code == 0
    assert encoder.calls == calls


def test_the_benchmark_needs_a_place(data: Path, encoder: BrightnessEncoder) -> None:
    result = run("m", "--data", data, "--benchmark", "mbeir")
    assert result.exit_code == 2
    assert "--out is missing: --benchmark mbeir keeps embeddings and tables there" in result.output
    assert encoder.calls == 0


def test_options_reach_the_evaluation(data: Path, tmp_path: Path, encoder: BrightnessEncoder) -> None:
    out = tmp_path / "out"
    options = [
        "--pool",
        "global",
        "--mode",
        "direct",
        "--candidate-mode",
        "generative",
        "--tasks",
        "dots_task0",
    ]
    options += ["--limit", "1", "--instructions", "random:4", "--batch-size", "2", "--seed", "7"]
    result = run("m", "--data", data, *options, "--out", out)
    assert result.exit_code == 0, result.output
    results = Results.from_json((out / "results.json").read_text(encoding="utf-8"))
    assert (results.pool, results.query_mode, results.candidate_mode) == ("global", "direct", "generative")
    assert (results.limit, results.instructions, results.seed) == (1, "random:4", 7)
    assert [(row.name, row.num_queries, row.pool_size) for row in results.rows] == [("dots_task0", 1, 4)]


def test_faulty_data_is_an_error_without_output_or_model(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: str) -> None:
        raise AssertionError("the model must not be loaded")

    monkeypatch.setattr(command, "load_encoder", fail)
    (data / "mbeir_images/dots/white.png").unlink()
    (data / "mbeir_images/dots/black.png").write_bytes(b"no picture")
    before = sorted(tmp_path.rglob("*"))
    result = run("m", "--data", data, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "has 2 problems in what this evaluation reads; `elva data check" in result.output
    assert "missing image" in result.output
    assert "Traceback" not in result.output
    assert sorted(tmp_path.rglob("*")) == before


def test_failure_halfway_leaves_nothing(
    data: Path, tmp_path: Path, encoder: BrightnessEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = encoder.encode

    def encode(*arguments, **options):
        if encoder.calls == 2:
            raise OSError("disk gone")
        return whole(*arguments, **options)

    monkeypatch.setattr(encoder, "encode", encode)
    result = run("m", "--data", data, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.output.strip() == "elva eval: disk gone"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--instructions", "often"], "instructions must be 'fixed', 'random:SEED'"),
        (["--tasks", "cats"], "tasks: no 'cats' in split 'test'"),
        (["--split", "val"], "no queries in split 'val'"),
    ],
)
def test_bad_arguments_are_one_line(
    data: Path, encoder: BrightnessEncoder, arguments: list[str], message: str
) -> None:
    result = run("m", "--data", data, *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert encoder.calls == 0


def test_unknown_choice_is_refused(data: Path) -> None:
    result = run("m", "--data", data, "--pool", "everything")
    assert result.exit_code == 2
    assert "everything" in result.output


def test_missing_directory_and_file_as_output(data: Path, tmp_path: Path, encoder: BrightnessEncoder) -> None:
    result = run("m", "--data", tmp_path / "absent")
    assert result.exit_code == 2
    assert "absent is not there" in result.output
    file = tmp_path / "file"
    file.write_text("mine", encoding="utf-8")
    result = run("m", "--data", data, "--out", file)
    assert result.exit_code == 2
    assert "is a file, expected a directory" in result.output
    assert file.read_text(encoding="utf-8") == "mine"


def test_missing_model_is_one_line(data: Path, tmp_path: Path) -> None:
    result = run(tmp_path / "no-model", "--data", data)
    assert result.exit_code == 2
    assert "no-model" in result.output
    assert "Traceback" not in result.output


def test_command_is_light_to_import() -> None:
    import subprocess

    code = (
        "import sys, elva.cli.eval; print(sorted({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_a2_an_output_in_use_is_refused(data: Path, tmp_path: Path, encoder: BrightnessEncoder) -> None:
    with lock_directory(tmp_path / "out"):
        result = run("m", "--data", data, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.strip().startswith(f"elva eval: {tmp_path / 'out'} is being written by ")
    assert not (tmp_path / "out").exists()
    assert run("m", "--data", data, "--out", tmp_path / "out").exit_code == 0
    assert not (tmp_path / "out" / ".lock").exists()
