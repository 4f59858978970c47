"""docs/gpu.md from lines: tables, ratios, failures with their messages, and what was not reached."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.lines import LineFile
from benchmarks.gpu.report import HEADER, NOTHING, main

ROOT = Path(__file__).resolve().parents[2]
MACHINE = {
    "machine": "NVIDIA H100 80GB HBM3",
    "device": "cuda",
    "capability": "9.0",
    "driver": "580.1",
    "python": "3.12.1",
    "versions": {"elva": "0.1.0", "torch": "2.11.0"},
    "commit": "0123456789abcdef0123",
    "date": "2026-12-01T10:00:00+00:00",
    "arguments": "python -m benchmarks.gpu check --out runs",
}


def case(operator: str, name: str, status: str, **more: Any) -> dict[str, Any]:
    line = {"operator": operator, "case": name, "dtype": "bfloat16", "status": status, "reason": ""}
    return {"command": "check", **line, "traceback": "", "seconds": 0.1, **more}


def timing(contender: str, milliseconds: float, **more: Any) -> dict[str, Any]:
    return {
        "command": "bench",
        "operator": "infonce",
        "size": "paper",
        "shape": "B,D = 960, 3584",
        "contender": contender,
        "dtype": "bfloat16",
        "pass": "forward and backward",
        "status": "ok",
        "median_ms": milliseconds,
        "low_ms": 0.9 * milliseconds,
        "high_ms": 1.1 * milliseconds,
        "peak_extra_bytes": 5_000_000,
        "floor_ms": 0.1,
        "share_of_ceiling": 0.1 / milliseconds,
        "bound_by": "products",
        "flops": 2e10,
        "bytes": 3e7,
        "error": 0.002,
        "bound": 0.02,
        **more,
    }


FIRST = json.dumps({"command": "check", **MACHINE}) + "\n"
TRACE = "Traceback\n  in kernel\nRuntimeError: a|b"
CHECK = [
    case("infonce", "forward and backward", "ok", error=0.002, bound=0.005, of="loss, norm"),
    case("infonce", "dot", "failed", reason="error 1 above its bound 0.1 (loss, norm)"),
    case("rank_reward", "ties", "failed", reason="RuntimeError: a|b", traceback=TRACE),
    case("rank_reward", "a second device", "skipped", reason="needs a second GPU"),
    case("tiered_rank", "edges", "not reached", reason="the time was up"),
]
BENCH = [
    {"command": "bench", "operator": "ceiling", "contender": "copy", "status": "ok", "rate": 4.3e12},
    {"command": "bench", "operator": "ceiling", "contender": "bfloat16", "status": "ok", "rate": 7.7e14},
    timing("elva", 0.5),
    timing("eager", 1.25),
    timing("Inf-CL", 1.0, status="failed", reason="error 0.3 above its bound 0.02 (result 0, norm)"),
    timing("torch.compile", 1.0, status="not reached", reason="the time was up"),
]
STEP = [
    {
        "command": "step",
        "preset": "2B",
        "step": "fast",
        "phases": {"rollout": 1.5, "update": 2.5},
        "whole_seconds": 4.0,
        "peak_bytes": 31e9,
        "tokens_per_second": 12_000,
        "mfu": 0.31,
        "error": 0.004,
        "max_rel_grad_diff": 0.02,
        "bound": 0.01,
        "status": "ok",
    },
    {
        "command": "step",
        "preset": "2B",
        "step": "plain",
        "phases": {"rollout": 6.0},
        "whole_seconds": 18.0,
        "status": "ok",
    },
    {"command": "step", "preset": "7B", "step": "plain", "status": "not reached"},
]


def write(
    folder: Path, machine: dict[str, Any] = MACHINE, whole: bool = True, **commands: list[dict[str, Any]]
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for command, lines in commands.items():
        text = [{"command": command, **machine}, *lines]
        text += [{"command": command, "closed": True}] if whole else []
        (folder / f"{command}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in text))
    return folder


@pytest.fixture
def report(tmp_path: Path):
    """Run the command on folders; its exit status, and the page."""

    def run(*folders: Path) -> tuple[int, str]:
        places = ["--docs", str(tmp_path / "docs"), "--results", str(tmp_path / "results")]
        status = main([*map(str, folders), *places])
        page = tmp_path / "docs" / "gpu.md"
        return status, page.read_text() if page.exists() else ""

    return run


def test_all_three_commands_make_a_page(report, tmp_path: Path):
    status, page = report(write(tmp_path / "runs", check=CHECK, bench=BENCH, step=STEP))
    assert status == 0
    assert "## NVIDIA H100 80GB HBM3, 2026-12-01" in page
    assert "elva 0.1.0, torch 2.11.0; compute capability 9.0, driver 580.1; commit 0123456789ab" in page
    # check
    assert "1 ok, 2 failed, 1 skipped, 1 not reached." in page
    assert "| infonce | bfloat16 | 1 | 1 | 0 | 0 |" in page
    assert "| infonce | forward and backward | bfloat16 | 2.0e-03 | 5.0e-03 | loss, norm |" in page
    assert "**Failed: infonce, dot, bfloat16**: error 1 above its bound 0.1 (loss, norm)" in page
    assert "  in kernel\nRuntimeError: a|b\n```" in page
    assert "Skipped, needs a second GPU: rank_reward, a second device (bfloat16)." in page
    assert "Not reached: tiered_rank, edges (bfloat16)." in page
    # bench
    assert "copy 4.30 TB/s, bfloat16 products 770.0 TFLOP/s" in page
    assert "B,D = 960, 3584; bfloat16, forward and backward, bound by products, floor 0.1 ms." in page
    assert "| elva | 0.5 | 0.45 to 0.55 | 1.00 | 5 | 20 % | 2.0e-03 | 2.0e-02 |" in page
    assert "| eager | 1.25 | 1.12 to 1.38 | 2.50 | 5 | 8 % | 2.0e-03 | 2.0e-02 |" in page
    assert "| Inf-CL |" not in page
    assert "**Failed: infonce, paper, Inf-CL, bfloat16**: error 0.3 above" in page
    assert "Not reached: infonce, paper, torch.compile (bfloat16)." in page
    # step
    assert (
        "| preset | step | seconds | rollout | update | peak (GB) | tokens/s | MFU | gradients differ by | status |"
        in page
    )
    assert (
        "| 2B | fast | 4 | 1.5 | 2.5 | 31 | 12,000 | 31.0 % | "
        "4.0e-03 (allowed 1.0e-02); 2.0e-02 in the worst tensor | ok |"
    ) in page
    assert "| 2B | plain | 18 | 6 | – | – | – | – | – | ok |" in page
    assert "2B: the plain step takes 4.50 times as long as the fast one." in page
    assert "![Roofline](gpu-roofline.png)" in page
    assert (tmp_path / "docs" / "gpu-roofline.png").read_bytes().startswith(b"\x89PNG")


def test_lines_are_kept_and_the_page_can_be_written_from_them(report, tmp_path: Path):
    folder = write(tmp_path / "runs", check=CHECK, bench=BENCH)
    _, page = report(folder)
    (kept,) = (tmp_path / "results").iterdir()
    assert kept.name == "gpu-nvidia-h100-80gb-hbm3-2026-12-01.jsonl"
    written = [json.loads(line) for name in ("check", "bench") for line in (folder / f"{name}.jsonl").open()]
    assert [json.loads(line) for line in kept.open()] == written
    assert report() == (0, page)


def test_two_devices_have_a_section_and_a_picture_each(report, tmp_path: Path):
    folders = [write(tmp_path / name, bench=BENCH) for name in ("one", "two")]
    other = (folders[1] / "bench.jsonl").read_text().replace("H100 80GB", "H200")
    (folders[1] / "bench.jsonl").write_text(other)
    _, page = report(*folders)
    assert page.count("## NVIDIA H") == 2 and "(gpu-roofline-2.png)" in page
    assert len(list((tmp_path / "results").iterdir())) == 2


def test_a_command_run_again_replaces_its_lines_and_no_others(report, tmp_path: Path):
    report(write(tmp_path / "one", check=CHECK, bench=BENCH))
    _, page = report(write(tmp_path / "two", check=CHECK[:1]))
    assert "1 ok, 0 failed, 0 skipped, 0 not reached." in page
    assert "| elva | 0.5 |" in page
    assert page.count("## NVIDIA H100") == page.count("### Check") == 1


@pytest.mark.parametrize(
    ("later", "whole", "counts"),
    [
        ([CHECK[0], CHECK[4]], True, False),  # less was reached
        (CHECK[:3], False, False),  # cut off
        ([*CHECK[:4], case("tiered_rank", "edges", "ok")], False, True),  # cut off, but more was reached
        (CHECK[:1], True, True),  # whole: there are fewer cases now
    ],
)
def test_a_later_run_counts_unless_it_reached_less(report, tmp_path: Path, later, whole: bool, counts: bool):
    report(write(tmp_path / "one", check=CHECK))
    second = {**MACHINE, "date": "2026-12-01T11:00:00+00:00"}
    _, page = report(write(tmp_path / "two", machine=second, whole=whole, check=later))
    assert ("2026-12-01T11:00:00" in page) is counts
    assert ("2026-12-01T10:00:00" in page) is not counts


def test_a_run_that_was_set_aside_is_read_too(report, tmp_path: Path):
    folder = write(tmp_path / "runs", check=CHECK)
    (folder / "check.jsonl").rename(folder / "check.1.jsonl")
    second = {**MACHINE, "date": "2026-12-01T11:00:00+00:00"}
    _, page = report(write(folder, machine=second, check=[CHECK[4]]))
    assert "1 ok, 2 failed, 1 skipped, 1 not reached." in page


def test_machines_in_one_folder_are_kept_apart(report, tmp_path: Path):
    folder = write(tmp_path / "runs", check=CHECK)
    write(folder, machine={**MACHINE, "machine": "NVIDIA H200"}, bench=BENCH)
    _, page = report(folder)
    h100, h200 = page.index("## NVIDIA H100"), page.index("## NVIDIA H200")
    assert h100 < page.index("### Check") < h200 < page.index("### Bench")
    assert len(list((tmp_path / "results").iterdir())) == 2


def test_a_run_that_was_cut_off_says_so(report, tmp_path: Path):
    folder = write(tmp_path / "runs", whole=False, check=CHECK)
    # The disk was full, or the process ended, in the middle of a line.
    with (folder / "check.jsonl").open("a") as file:
        file.write('{"command": "check", "operator": "infon')
    status, page = report(folder)
    assert status == 0
    assert "**Cut off**: the command did not reach its end" in page
    assert "1 ok, 2 failed, 1 skipped, 1 not reached." in page
    _, page = report(write(tmp_path / "again", check=CHECK))
    assert "Cut off" not in page


def test_a_rehearsal_is_called_one_and_not_kept(report, tmp_path: Path):
    cpu = {**MACHINE, "machine": "AMD EPYC", "device": "cpu"}
    status, page = report(write(tmp_path / "runs", machine=cpu, check=CHECK))
    assert status == 0
    assert "**Not measured.**" in page
    assert (
        "## AMD EPYC, 2026-12-01 (a rehearsal on a CPU at small sizes; it says nothing about a GPU)" in page
    )
    assert not list((tmp_path / "results").glob("*"))


def test_without_matplotlib_there_is_a_page_without_a_picture(report, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, page = report(write(tmp_path / "runs", bench=BENCH))
    assert status == 0 and "| elva | 0.5 |" in page and "Roofline" not in page
    assert "matplotlib is not installed" in capsys.readouterr().out


def test_without_results_it_says_so_and_names_the_commands(report):
    status, page = report()
    assert status == 0
    assert page == HEADER + NOTHING
    assert "**Not measured.**" in page
    for command in ("check", "bench", "step"):
        assert f"python -m benchmarks.gpu {command} --out DIR" in page


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "check.jsonl:1: the file is empty; expected the line of the machine first"),
        (
            '{"command": "check", "status": "ok"}\n',
            "check.jsonl:1: a line of 'check' before the line of its machine",
        ),
        (FIRST + '{"command": "che\n', "check.jsonl:2: no JSON"),
        (FIRST + "\n", "check.jsonl:2: no JSON"),
        (FIRST + "[1]\n", 'check.jsonl:2: expected an object whose "command" is one of check, bench, step'),
        (FIRST + '{"command": ["check"]}\n', 'expected an object whose "command" is one of'),
        (FIRST + '{"command": "check"}\n', 'expected a "status" of ok, failed, skipped, not reached'),
        (FIRST + '{"command": "check", "status": "banana"}\n', 'expected a "status" of'),
        (
            FIRST + '{"command": "check", "status": "ok", "error": [1], "bound": 1}\n',
            'expected a number as "error"',
        ),
    ],
)
def test_a_damaged_line_is_named(report, tmp_path: Path, capsys, text: str, message: str):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "check.jsonl").write_text(text)
    status, page = report(tmp_path / "runs")
    assert (status, page) == (1, "")
    assert message in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_bytes_that_are_no_text_are_named(report, tmp_path: Path, capsys):
    folder = write(tmp_path / "runs", check=CHECK)
    (folder / "check.jsonl").write_bytes(FIRST.encode() + b"\xff\n")
    assert report(folder)[0] == 1
    assert "check.jsonl:2: no JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ("-dirty", "commit 0123456789ab with changes that it does not hold; 2026"),
        ("-unchecked", "commit 0123456789ab and perhaps changes that it does not hold; 2026"),
    ],
)
def test_changes_beside_the_commit_are_said(report, tmp_path: Path, mark: str, said: str):
    machine = {"command": "check", **MACHINE, "commit": f"{MACHINE['commit']}{mark}"}
    (tmp_path / "runs").mkdir()
    lines = [machine, case("infonce", "dot", "ok", error=0.0, bound=0.0)]
    (tmp_path / "runs" / "check.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    status, page = report(tmp_path / "runs")
    assert status == 0 and said in page


def test_a_second_run_sets_the_first_ones_lines_aside(tmp_path: Path):
    path = tmp_path / "check.jsonl"
    for number in range(3):
        with LineFile(path) as file:
            file.write({"number": number})
            with pytest.raises(BlockingIOError, match=r"check\.jsonl: another run is writing it"):
                LineFile(path)
    names = ("check.1.jsonl", "check.2.jsonl", "check.jsonl")
    assert [json.loads((tmp_path / name).read_text())["number"] for name in names] == [0, 1, 2]


def test_a_folder_without_lines_is_named(report, tmp_path: Path, capsys):
    assert report(tmp_path / "nowhere")[0] == 1
    expected = "nowhere: expected a folder with at least one of check.jsonl, bench.jsonl, step.jsonl"
    assert expected in capsys.readouterr().err


def test_infinities_in_lines_do_not_stop_it(report, tmp_path: Path):
    lines = [
        case("infonce", "dot", "failed", error="inf", bound=0.0, reason="error inf above its bound 0 ()"),
        case("infonce", "cosine", "ok", error="inf", bound="inf", reason="a line\u2028in two"),
    ]
    status, page = report(write(tmp_path / "runs", check=lines))
    assert status == 0 and "error inf above its bound 0" in page


def test_the_committed_page_is_what_the_kept_results_give(tmp_path: Path):
    """Nobody edits it by hand."""
    assert main(["--docs", str(tmp_path)]) == 0
    assert (tmp_path / "gpu.md").read_text() == (ROOT / "docs" / "gpu.md").read_text()
