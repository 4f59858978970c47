"""Processes of groups: what a case that fails, dies or hangs costs, and what the end of the time leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import workers
from benchmarks.gpu.cases import Setting
from benchmarks.gpu.workers import Line, Workers

ROOT = Path(__file__).resolve().parents[2]
GROUPS = """
import os, signal, sys, time, types
from unittest import SkipTest
from benchmarks.gpu.cases import Case

def case(name, run):
    return Case({"operator": "fake", "case": name, "dtype": "float32"}, run)

def good():
    return {"error": 0.5, "bound": 1.0, "of": "loss"}

def fails():
    raise RuntimeError("no such kernel")

def skips():
    raise SkipTest("not installed")

def plain(setting):
    yield case("good", good)
    yield case("raises", fails)
    yield case("wrong", lambda: {"error": 2.0, "bound": 1.0, "of": "loss"})
    yield case("no number", lambda: {"error": float("nan"), "bound": 1.0, "of": "loss"})
    yield case("skipped", skips)
    yield case("last", good)

def dying(setting):
    def leave():
        print("the last words")
        sys.stdout.flush()
        os._exit(3)
    yield case("first", good)
    yield case("exits", leave)
    yield case("between", good)
    yield case("is killed", lambda: os.kill(os.getpid(), signal.SIGKILL))
    yield case("last", good)

def slow(setting, seconds):
    yield case("first", good)
    yield case("sleeps", lambda: time.sleep(float(seconds)))
    yield case("last", good)

def poisoned(setting):
    def refuse(*arguments, **options):
        raise RuntimeError("device-side assert triggered")
    sys.modules["torch"] = types.SimpleNamespace(
        cuda=types.SimpleNamespace(synchronize=lambda: None, empty_cache=lambda: None), ones=refuse
    )
    yield case("first", good)
    yield case("poisons", fails)
    yield case("who", lambda: {"pid": os.getpid()})
    yield case("last", lambda: {"pid": os.getpid()})

def broken(setting):
    os._exit(5)

def unlisted(setting):
    raise ImportError("no such module")
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run groups of the module above by the names of their functions; the lines, and what was said."""
    (tmp_path / "fake_groups.py").write_text(GROUPS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(ROOT)

    def run(*names: str, seconds: float = 60.0, parallel: int = 2, device: str = "cpu"):
        lines: list[Line] = []
        said: list[str] = []
        begin = time.monotonic()
        setting = Setting(device, seconds, str(tmp_path / "lock"))
        groups = {name: f"fake_groups:{name}" for name in names}
        Workers(setting, parallel, lines.append, said.append).run(groups, begin + seconds)
        return lines, said

    return run


def outcomes(lines: list[Line]) -> dict[str, str]:
    return {line["case"]: line["status"] for line in lines}


def test_a_failing_case_carries_its_traceback_and_stops_nothing(run):
    lines, said = run("plain")
    assert outcomes(lines) == {
        "good": "ok",
        "raises": "failed",
        "wrong": "failed",
        "no number": "failed",
        "skipped": "skipped",
        "last": "ok",
    }
    raised, wrong = lines[1], lines[2]
    assert raised["reason"] == "RuntimeError: no such kernel"
    assert 'fake_groups.py", line' in raised["traceback"] and "in fails" in raised["traceback"]
    assert wrong["reason"] == "error 2 above its bound 1 (loss)"
    assert lines[4]["reason"] == "not installed"
    assert all(line["seconds"] >= 0 for line in lines)
    assert "FAILED fake / raises / float32: RuntimeError: no such kernel" in said
    assert said[-1].startswith("plain: 2 ok, 3 failed, 1 skipped in ")


def test_a_process_that_dies_loses_no_line_and_the_others_go_on(run):
    lines, _ = run("dying")
    assert outcomes(lines) == {
        "first": "ok",
        "exits": "failed",
        "between": "ok",
        "is killed": "failed",
        "last": "ok",
    }
    assert lines[1]["reason"] == "the process died: exit status 3: the last words"
    assert "the last words" in lines[1]["traceback"]
    assert lines[3]["reason"] == "the process died: signal 9 (SIGKILL)"


def test_the_end_of_the_time_is_listed(run):
    begin = time.monotonic()
    lines, _ = run("slow:60", "slow:61", "plain", "unlisted", seconds=2.0, parallel=1)
    assert time.monotonic() - begin < 6
    by_group = [line["status"] for line in lines]
    assert by_group[0] == "ok"
    assert lines[1]["status"] == "not reached" and lines[1]["reason"] == "it was running when the time was up"
    # Nothing is imported any more, so groups that never began are listed as a whole.
    assert set(by_group[1:]) == {"not reached"}
    assert lines[-1] == {
        "operator": "unlisted",
        "case": "all of them",
        "status": "not reached",
        "reason": "the time was up",
        "seconds": 0.0,
    }


def test_a_case_that_hangs_is_stopped(run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers, "CASE_SECONDS", 1.0)
    lines, _ = run("slow:60")
    assert outcomes(lines) == {"first": "ok", "sleeps": "failed", "last": "ok"}
    assert lines[1]["reason"] == "took longer than 1 s"


def test_a_poisoned_context_gets_a_new_process(run):
    lines, _ = run("poisoned", device="cuda")
    assert outcomes(lines) == {"first": "ok", "poisons": "failed", "who": "ok", "last": "ok"}
    assert lines[1]["reason"] == (
        "RuntimeError: no such kernel; CUDA answered no more: the next case has a new process"
    )
    assert lines[2]["pid"] == lines[3]["pid"]


def test_a_group_that_cannot_begin_is_one_failure(run):
    lines, _ = run("broken", "plain")
    broken = [line for line in lines if line["operator"] == "broken"]
    assert [(line["case"], line["status"]) for line in broken] == [("start", "failed")]
    assert broken[0]["reason"] == "the process died: exit status 5"
    assert outcomes(lines)["last"] == "ok"


def start_slow(tmp_path: Path) -> tuple[subprocess.Popen[str], list[str]]:
    """A process that runs a group which takes a minute, and the processes that it started."""
    (tmp_path / "fake_groups.py").write_text(GROUPS)
    code = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "from benchmarks.gpu.cases import Setting; from benchmarks.gpu.workers import Workers\n"
        "Workers(Setting('cpu', 60, 'lock'), 1, lambda line: print(line, flush=True), print)"
        ".run({'slow': 'fake_groups:slow:60'}, time.monotonic() + 60)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None and "'first'" in parent.stdout.readline()
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    return parent, children


def test_told_to_end_it_ends_its_processes(tmp_path: Path):
    parent, children = start_slow(tmp_path)
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(timeout=20) == 143
    assert children and not any(Path(f"/proc/{child}").exists() for child in children)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ends a process with its parent")
def test_killed_it_leaves_no_process_behind(tmp_path: Path):
    parent, children = start_slow(tmp_path)
    parent.kill()
    parent.wait(timeout=20)
    deadline = time.monotonic() + 10
    while any(running(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children and not any(running(child) for child in children)


def running(process: str) -> bool:
    """Whether it is there and not only waits to be collected."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("before", "kept"), [("SIG_IGN", True), ("SIG_DFL", False)])
def test_under_nohup_a_hang_up_stays_ignored(before: str, kept: bool, tmp_path: Path):
    code = (
        f"import signal, sys; signal.signal(signal.SIGHUP, signal.{before})\n"
        f"sys.argv = ['gpu', 'report', {str(tmp_path / 'nothing')!r}]\n"
        "from benchmarks.gpu.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.stdout.splitlines()[-1:] == [str(kept)], done.stderr
