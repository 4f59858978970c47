"""The line of the machine tells what figures depend on, and neither whose machine it was nor where things lay."""

from __future__ import annotations

import getpass
import json
import math
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.lines import DamagedLines, LineFile, read_lines, without_paths
from benchmarks.gpu.machine import commit, machine_line, revision

ID = "0123456789abcdef0123456789abcdef01234567"


def test_it_names_versions_and_no_person_or_place(tmp_path: Path):
    line = machine_line("check", "cpu", ["--out", str(tmp_path / "runs"), "--seconds", "3"])
    assert line["versions"]["elva"] == "0.1.0" and line["python"] == sys.version.split()[0]
    assert line["arguments"] == "python -m benchmarks.gpu check --out .../runs --seconds 3"
    text = json.dumps(line)
    for private in (socket.gethostname(), str(Path.home()), str(tmp_path.parent), str(Path.cwd())):
        assert private not in text
    assert f'"{getpass.getuser()}"' not in text


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_commit_of_a_branch_packed_or_loose_or_of_a_detached_head(tmp_path: Path):
    git = tmp_path / ".git"
    write(git / "HEAD", "ref: refs/heads/main\n")
    write(git / "packed-refs", f"# pack-refs with: peeled\n{ID} refs/heads/main\n")
    assert commit(tmp_path) == ID
    loose = ID[::-1]
    write(git / "refs" / "heads" / "main", f"{loose}\n")
    assert commit(tmp_path) == loose
    write(git / "HEAD", f"{ID}\n")
    assert commit(tmp_path) == ID


def test_the_commit_of_a_worktree(tmp_path: Path):
    shared = tmp_path / "main" / ".git"
    write(shared / "refs" / "heads" / "gpu", f"{ID}\n")
    write(shared / "worktrees" / "wt" / "HEAD", "ref: refs/heads/gpu\n")
    write(shared / "worktrees" / "wt" / "commondir", "../..\n")
    write(tmp_path / "wt" / ".git", f"gitdir: {shared / 'worktrees' / 'wt'}\n")
    assert commit(tmp_path / "wt") == ID


def git(root: Path, *arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *who, "-C", str(root), *arguments], check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_tree_with_changes_is_not_called_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    git(tmp_path, "init", "-q")
    write(tmp_path / "kernel.py", "one")
    write(tmp_path / "benchmarks" / "results" / "old.json", "one")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "all")
    clean = revision(tmp_path)
    assert clean == commit(tmp_path) and len(clean) == 40
    write(tmp_path / "runs" / "check.jsonl", "untracked, as what a command writes")
    write(tmp_path / "benchmarks" / "results" / "old.json", "two")
    assert revision(tmp_path) == clean
    write(tmp_path / "kernel.py", "two")
    assert revision(tmp_path) == f"{clean}-dirty"
    git(tmp_path, "add", ".")
    assert revision(tmp_path) == f"{clean}-dirty"
    monkeypatch.setenv("PATH", "")
    assert revision(tmp_path) == f"{clean}-unchecked"


def test_without_a_checkout_no_changes_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ELVA_COMMIT", ID)
    assert revision(tmp_path) == ID


def test_without_git_the_environment_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("ELVA_COMMIT", raising=False)
    assert commit(tmp_path) == "unknown"
    monkeypatch.setenv("ELVA_COMMIT", ID)
    assert commit(tmp_path) == ID


def test_paths_of_the_machine_are_cut_from_tracebacks():
    package = json.__file__  # of the standard library
    root = Path(__file__).resolve().parents[2]
    text = f'File "{root}/elva/ops/infonce.py", line 3\nFile "{package}", line 4\nin /opt/nvidia/bin/ptxas: 1/2 of a/b'
    cut = without_paths(text)
    assert 'File "elva/ops/infonce.py", line 3' in cut
    assert str(Path(package).parents[1]) not in cut and "json/__init__.py" in cut
    assert ".../ptxas: 1/2 of a/b" in cut
    assert without_paths("see https://docs.python.org/3/library and refs/heads/main") == (
        "see https://docs.python.org/3/library and refs/heads/main"
    )
    assert str(Path.home()) not in without_paths(f"{Path.home()}/.triton/cache/x.ptx")


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path: Path):
    path = tmp_path / "folder" / "check.jsonl"
    with LineFile(path) as file:
        file.write({"command": "check", "status": "ok", "error": math.inf, "parts": [math.nan, 1.0]})
        expected = {"command": "check", "status": "ok", "error": "inf", "parts": ["nan", 1.0]}
        assert read_lines(path) == [expected]


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DamagedLines, match=r"absent\.jsonl: no such file"):
        read_lines(tmp_path / "absent.jsonl")
