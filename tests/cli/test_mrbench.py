"""`elva mrbench` and `elva eval --benchmark mrbench` from the outside."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from elva.cli import eval as eval_command
from elva.cli.main import app
from elva.data.check import check
from elva.data.mbeir import Candidate, Query
from elva.data.writer import MBEIRWriter
from elva.evaluation.results import Results
from elva.locks import lock_name


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    with MBEIRWriter(root) as writer:
        writer.add_instruction("text", "image", "mscoco", 9, ["Find it."])
        for number, colour in enumerate(("red", "green", "blue", "black")):
            image = f"mbeir_images/{colour}.png"
            writer.save_image(image, Image.new("RGB", (8, 8), colour))
            writer.add_candidate("test", "mscoco", 0, Candidate(f"9:{number}", None, image, "image"))
            query = Query(f"9:{10 + number}", f"a {colour} dog on a sofa", None, "text", 0, (f"9:{number}",))
            writer.add_query("test", "mscoco", query)
    return root


class ColourEncoder:
    """Knows three colours, by their names and by sight."""

    config = SimpleNamespace(mode="direct")

    def encode(self, inputs, mode=None, batch_size=32, show_progress=False, return_summaries=False):
        rows = torch.stack([self._see(item) for item in inputs])
        embeddings = torch.nn.functional.normalize(rows + 0.1, dim=1)
        return (embeddings, [""] * len(inputs)) if return_summaries else embeddings

    def _see(self, item: dict) -> torch.Tensor:
        if item["image"]:
            with Image.open(item["image"]) as picture:
                return torch.tensor([float(value > 0) for value in picture.convert("RGB").getpixel((0, 0))])
        return torch.tensor([float(name in item["text"]) for name in ("red", "green", "blue")])


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_build_and_evaluate(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built, out = tmp_path / "mrbench", tmp_path / "out"
    result = run("mrbench", "build", "--data", source, "--judge", "rules", "--out", built, "--per-task", 3)
    assert result.exit_code == 0, result.output
    assert "mscoco_task0: 3 picked, 0 fewer grains, 0 set aside" in result.output
    assert list(check(built)) == []

    monkeypatch.setattr(eval_command, "load_encoder", lambda model: ColourEncoder())
    monkeypatch.setattr("elva.models.identity.model_digest", lambda encoder: "stand-in")
    result = run("eval", "my-model", "--data", built, "--benchmark", "mrbench", "--out", out)
    assert result.exit_code == 0, result.output
    assert "| grains in the query | queries | hit@5 (%) |" in result.output
    names = {"embeddings", "mrbench.md", "mrbench-neighbours.png", "report.html", "results.json"}
    assert {path.name for path in out.iterdir()} == names
    text = (out / "results.json").read_text(encoding="utf-8")
    assert Results.from_json(text).rows[0].num_queries == 3
    found = json.loads(text)["mrbench"]
    assert found["average"] == 1
    assert found["by_kind"]["attribute"]["queries"] == 3
    assert found["by_count"] == {"4": {"queries": 3, "hit_at_5": 1.0}}
    distances = found["grain_distance"]["by_key"]
    # black is a colour that this encoder does not know; the others are
    assert distances["attribute"] > 0.1 > distances["entity"]


def test_what_was_set_aside_and_how_to_ask_again_is_said(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statistics = {"tasks": {name: {"picked": 3, "fewer": 0, "set_aside": 1} for name in ("a", "b")}}
    monkeypatch.setattr("elva.data.mrbench.build", lambda *arguments, **options: statistics)
    out = tmp_path / "out"
    result = run("mrbench", "build", "--data", source, "--judge", "rules", "--out", out)
    assert result.exit_code == 0
    assert result.output.splitlines()[-1] == (
        f"2 set aside without a usable answer ({out}/mrbench/set_aside.jsonl says why); to ask them again, "
        f"remove {out} and give the same command: all answers are kept in {out}.answers.jsonl"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--judge", "rules", "--judge-model", "x"], "only a server"),
        (["--judge", "./absent"], "is no directory, expected one with a Qwen-VL checkpoint"),
        (["--judge", "http://127.0.0.1:9/v1"], "cannot be reached"),
        (["--judge", "rules", "--tasks", "flickr"], "no 'flickr'"),
    ],
)
def test_bad_arguments_are_one_line(source: Path, tmp_path: Path, options: list[str], message: str) -> None:
    result = run("mrbench", "build", "--data", source, "--out", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_review_refuses_other_directories_and_ports_in_use(source: Path, tmp_path: Path) -> None:
    result = run("mrbench", "review", source)
    assert result.exit_code == 2
    assert "no mrbench/judged.jsonl" in result.output
    run(
        "mrbench", "build", "--data", source, "--judge", "rules", "--out", tmp_path / "built", "--per-task", 2
    )
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = run("mrbench", "review", tmp_path / "built", "--port", taken.getsockname()[1])
    assert result.exit_code == 2
    assert "is in use; choose another with --port" in result.output


def test_build_and_review_import_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, elva.cli.mrbench, elva.data.mrbench, elva.data.mrbench.review, elva.data.mrbench.server\n"
        "print(sorted({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_a2_a_build_in_progress_is_not_joined(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "built"
    arguments = ("mrbench", "build", "--data", source, "--judge", "rules", "--out", out, "--per-task", 2)
    with lock_name(tmp_path / "built.answers.jsonl"):
        result = run(*arguments)
    assert result.exit_code == 2
    assert result.output.startswith(f"elva mrbench build: {out}.answers.jsonl is being written by ")
    assert run(*arguments).exit_code == 0
