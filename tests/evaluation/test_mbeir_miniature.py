"""`elva eval --benchmark mbeir` over all sixteen rows: one command, a kill, two processes; a real model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from elva.cli import eval as command
from elva.evaluation import embedding_store
from elva.evaluation.mbeir_table import ROWS
from elva.evaluation.results import Results
from elva.models import MultimodalEncoder, tiny
from tests.evaluation import miniature

ELVA = (sys.executable, "-c", "from elva.cli import run; run()", "eval")
SIZES = {
    "text": {
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 64,
    },
    "vision": {"depth": 1, "embed_dim": 32, "num_heads": 1},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.build(tmp_path_factory.mktemp("mbeir") / "data")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    encoder = tiny.create([miniature.text(number) for number in range(50)], preset=SIZES, image_size=24)
    encoder.save_pretrained(path)
    return path


def arguments(model: Path, data: Path, out: Path) -> list[str]:
    options = ["--benchmark", "mbeir", "--mode", "direct", "--batch-size", "100"]
    return [str(model), "--data", str(data), *options, "--out", str(out)]


def run(model: Path, data: Path, out: Path) -> Result:
    app = typer.Typer()
    app.command()(command.evaluate_command)
    return CliRunner().invoke(app, arguments(model, data, out))


def outcome(out: Path) -> dict[str, Any]:
    """Everything that an evaluation writes and that does not tell the time or the place."""
    record = json.loads((out / "results.json").read_text(encoding="utf-8"))
    del record["seconds"]
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted((out / "trec").iterdir())}
    return {"results": record, "table": (out / "mbeir.md").read_text(encoding="utf-8"), **texts}


class Killed(MultimodalEncoder):
    """Dies at the ninth call, in the middle of the rows."""

    calls = 0

    def encode(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls == 9:
            raise KeyboardInterrupt
        return super().encode(*arguments, **options)


@pytest.fixture(scope="module")
def whole(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    result = run(model, data, out)
    assert result.exit_code == 0, result.output
    assert "unreachable" in result.output
    return out


def test_all_sixteen_rows(whole: Path) -> None:
    results = Results.from_json((whole / "results.json").read_text(encoding="utf-8"))
    assert {(row.dataset, row.task_id) for row in results.rows} == set(ROWS)
    assert {(row.pool_size, row.num_queries) for row in results.rows} == {(200, miniature.QUERIES)}
    assert all(row.k == (10 if row.dataset in ("fashion200k", "fashioniq") else 5) for row in results.rows)
    assert {
        (r.dataset, r.task_id): r.unreachable for r in results.rows if r.unreachable
    } == miniature.UNREACHABLE
    assert len({tuple(row.ranks) for row in results.rows}) == 16, "rows alike would hide an exchange of two"
    assert 0 < results.mean_hit_rate < 1
    line = (whole / "mbeir.md").read_text(encoding="utf-8").splitlines()[2]
    assert len(line.split("|")) == 1 + 1 + 16 + 1 + 1
    assert float(line.split("|")[-2]) == pytest.approx(100 * results.mean_hit_rate, abs=0.05)
    assert len(list((whole / "trec").glob("*.run"))) == len(list((whole / "trec").glob("*.qrels"))) == 16
    assert len((whole / "trec/mscoco_task0.run").read_text().splitlines()) == 100 * miniature.QUERIES


def test_the_run_files_give_the_same_hit_rates(whole: Path) -> None:
    results = Results.from_json((whole / "results.json").read_text(encoding="utf-8"))
    for row in results.rows:
        judged = {
            (qid, did)
            for qid, _, did, _ in map(str.split, (whole / f"trec/{row.name}.qrels").read_text().splitlines())
        }
        hit = {
            qid
            for qid, _, did, rank, _, _ in map(
                str.split, (whole / f"trec/{row.name}.run").read_text().splitlines()
            )
            if int(rank) <= row.k and (qid, did) in judged
        }
        assert len(hit) / row.num_queries == row.hit_rate, row.name


@pytest.mark.slow  # ranx compiles its metrics for a minute
@pytest.mark.filterwarnings("ignore")
def test_ranx_reads_the_files_and_agrees(whole: Path) -> None:
    ranx = pytest.importorskip("ranx", reason="ranx is not installed")
    results = Results.from_json((whole / "results.json").read_text(encoding="utf-8"))
    for row in results.rows:
        judged = ranx.Qrels.from_file(str(whole / f"trec/{row.name}.qrels"), kind="trec")
        found = ranx.Run.from_file(str(whole / f"trec/{row.name}.run"), kind="trec")
        hit_rate = ranx.evaluate(judged, found, f"hit_rate@{row.k}")
        assert float(hit_rate) == pytest.approx(row.hit_rate, abs=1e-12), row.name


def test_an_interruption_and_the_same_command_again(
    model: Path, data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(command, "load_encoder", Killed.from_pretrained)
        assert run(model, data, tmp_path).exit_code != 0
    assert not (tmp_path / "results.json").exists()
    kept = {path.name: path.read_bytes() for path in (tmp_path / "embeddings").iterdir()}
    assert len(kept) == 8
    written = []
    save = embedding_store._save
    monkeypatch.setattr(
        embedding_store, "_save", lambda path, *rest: (written.append(path.name), save(path, *rest))
    )
    assert run(model, data, tmp_path).exit_code == 0
    assert written and not set(written) & set(kept)
    assert outcome(tmp_path) == outcome(whole)


@pytest.mark.slow
def test_a_kill_and_the_same_command_again(model: Path, data: Path, whole: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*ELVA, *arguments(model, data, tmp_path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    embeddings = tmp_path / "embeddings"
    while process.poll() is None and len(list(embeddings.glob("*"))) < 4:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "results.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in embeddings.iterdir() if not path.name.startswith(".")}
    assert kept
    assert run(model, data, tmp_path).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert outcome(tmp_path) == outcome(whole)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_processes(launcher: str, model: Path, data: Path, whole: Path, tmp_path: Path) -> None:
    launch = {
        "torchrun": "torch.distributed.run --nproc-per-node 2 --no-python",
        "accelerate": "accelerate.commands.launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no "
        "--dynamo_backend no --no_python",
    }[launcher].split()
    elva = [*ELVA, *arguments(model, data, tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", *launch, *elva],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("results.json") == 1, "only the first process writes"
    assert outcome(tmp_path) == outcome(whole)
