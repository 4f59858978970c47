from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from elva.cli.data import app
from elva.data import Candidate, MBEIRWriter, Query
from elva.locks import lock_directory, lock_name

runner = CliRunner()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    with MBEIRWriter(root) as writer:
        writer.add_instruction("text", "image", "scenes", 20, ["Find the picture."])
        writer.add_query("test", "scenes", Query("20:1", "a ball", None, "text", 0, ("20:1",)))
        writer.add_candidate("test", "scenes", 0, Candidate("20:1", None, "mbeir_images/a.png", "image"))
        writer.save_image("mbeir_images/a.png", Image.new("RGB", (4, 4)))
    return root


def test_check_is_silent_on_a_sound_directory(directory: Path) -> None:
    result = runner.invoke(app, ["check", str(directory)])
    assert result.exit_code == 0
    assert result.stdout == ""
    assert result.stderr.strip() == f"{directory}: 0 problems"


def test_check_prints_one_unwrapped_line_per_problem(directory: Path) -> None:
    """In a process of its own, in a narrow terminal without UTF-8."""
    pool = directory / "cand_pool/local/mbeir_scenes_task0_test_cand_pool.jsonl"
    long = "ü" * 100
    pool.write_text(pool.read_text().replace("a.png", f"{long}.png"), encoding="utf-8")
    (directory / "qrels/test/mbeir_scenes_task0_test_qrels.txt").unlink()
    program = f"from elva.cli.data import app; app(['check', {str(directory)!r}])"
    environment = {"PYTHONIOENCODING": "ascii", "COLUMNS": "20", "PATH": ""}
    repository = Path(__file__).resolve().parents[2]
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=repository, env=environment
    )
    assert run.returncode == 1, run.stderr
    escaped = "\\xfc" * 100
    assert run.stdout.splitlines() == [
        "query/test/mbeir_scenes_task0_test.jsonl:0: -: "
        "no qrels: qrels/test/mbeir_scenes_task0_test_qrels.txt is missing",
        "cand_pool/local/mbeir_scenes_task0_test_cand_pool.jsonl:1: 20:1: "
        f"missing image: mbeir_images/{escaped}.png is not there",
    ]
    assert "2 problems" in run.stderr


def test_unseen_lists_converts_and_explains(tmp_path: Path) -> None:
    listed = runner.invoke(app, ["unseen"])
    assert listed.exit_code == 0 and "circo (mAP@5): CIRCO needs annotations/val.json" in listed.stdout
    assert runner.invoke(app, ["unseen", "urban1k"]).exit_code == 2
    source, out = tmp_path / "source", tmp_path / "out"
    (source / "caption").mkdir(parents=True)
    (source / "caption/1.txt").write_text("A street.\n")
    arguments = ["unseen", "urban1k", "--source", str(source), "--out", str(out)]
    failed = runner.invoke(app, arguments)
    assert failed.exit_code == 1 and "image/1.jpg: not there. Urban-1k needs" in failed.stderr
    (source / "image").mkdir()
    Image.new("RGB", (4, 4)).save(source / "image/1.jpg")
    assert runner.invoke(app, arguments).exit_code == 0
    assert runner.invoke(app, ["check", str(out)]).exit_code == 0
    assert "exists already" in runner.invoke(app, arguments).stderr


def test_check_of_no_directory_fails(tmp_path: Path) -> None:
    result = runner.invoke(app, ["check", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert "not an M-BEIR directory" in result.stdout


def test_nli_counts_and_writes(tmp_path: Path) -> None:
    source, out = tmp_path / "nli.csv", tmp_path / "out" / "nli.jsonl"
    source.write_text("sent0,sent1,hard_neg\na dog,an animal,a cat\n")
    result = runner.invoke(app, ["nli", str(source), "--out", str(out)])
    assert result.exit_code == 0
    assert result.stdout == "1 triplets\nanchor: a dog\npositive: an animal\nnegative: a cat\n"
    assert out.read_text() == '{"anchor": "a dog", "positive": "an animal", "negative": "a cat"}\n'


def test_nli_reports_the_line_and_writes_nothing(tmp_path: Path) -> None:
    source, out = tmp_path / "nli.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"anchor": "a"}\n')
    result = runner.invoke(app, ["nli", str(source), "--out", str(out)])
    assert result.exit_code == 1
    assert f"error: {source}:1: -: positive is None" in result.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("module", "function", "arguments", "expected"),
    [
        ("scenes", "generate", ["scenes", "--size", "7", "--seed", "3"], {"size": 7, "seed": 3}),
        (
            "catalog",
            "convert",
            ["from-catalog", "items.jsonl", "--grains", "color, kind", "--alt-image-field", "second"],
            {
                "items": Path("items.jsonl"),
                "grains": ["color", "kind"],
                "image_field": "image",
                "alt_image_field": "second",
                "text_field": "text",
                "split_by": "combinations",
                "seed": 0,
            },
        ),
    ],
)
def test_makers_get_their_arguments(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    module: str,
    function: str,
    arguments: list[str],
    expected: dict[str, Any],
) -> None:
    calls: list[dict[str, Any]] = []
    fake = ModuleType(module)
    setattr(fake, function, lambda **given: calls.append(given))
    monkeypatch.setitem(sys.modules, f"elva.data.{module}", fake)
    result = runner.invoke(app, [*arguments, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert calls == [expected | {"out": tmp_path}]


def test_from_catalog_refuses_empty_grains_and_unknown_splits(tmp_path: Path) -> None:
    base = ["from-catalog", "items.jsonl", "--out", str(tmp_path), "--grains"]
    assert runner.invoke(app, [*base, ", "]).exit_code == 2
    assert runner.invoke(app, [*base, "color", "--split-by", "people"]).exit_code == 2


def test_an_existing_output_is_an_error_in_one_line(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ModuleType("scenes")
    setattr(fake, "generate", lambda out, size, seed: MBEIRWriter(out))  # noqa: B010
    monkeypatch.setitem(sys.modules, "elva.data.scenes", fake)
    result = runner.invoke(app, ["scenes", "--out", str(directory), "--size", "7"])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "exists already" in result.stderr


def test_a2_an_output_in_use_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with lock_name(out):
        result = runner.invoke(app, ["scenes", "--out", str(out), "--size", "20"])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {out} is being written by ")
    (tmp_path / "source").mkdir()
    with lock_directory(out):
        result = runner.invoke(
            app, ["unseen", "urban1k", "--source", str(tmp_path / "source"), "--out", str(out)]
        )
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {out} is being written by ")


def test_a11_from_catalog_says_what_it_left_out(tmp_path: Path) -> None:
    lines = []
    for n in range(24):
        Image.new("RGB", (6, 6), (max(n, 1), 0, 0)).save(tmp_path / f"{n}.png")
        material = "nan" if n == 9 else f"m{n // 2 % 3}"
        lines.append(f'{{"image": "{n}.png", "colour": "c{n % 2}", "material": "{material}"}}\n')
    items = tmp_path / "items.jsonl"
    items.write_text("".join(lines))
    arguments = ["from-catalog", str(items), "--grains", "colour,material", "--out", str(tmp_path / "out")]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines() == [
        f"note: {items}: items left out, copies of pictures of the catalogue: 1",
        f"note: {items}: material: 'nan' read as no value: 1 times",
        f"wrote {tmp_path / 'out'}",
    ]
    assert runner.invoke(app, ["check", str(tmp_path / "out")]).exit_code == 0
