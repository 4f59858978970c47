import subprocess
import sys

import pytest

WITHOUT_TYPER = "import sys; sys.modules['typer'] = None; from elva.cli import run; run()"


def test_without_the_extra_the_command_says_what_to_install():
    result = subprocess.run([sys.executable, "-c", WITHOUT_TYPER], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.strip() == (
        'elva: typer is not installed; the command needs the extra "train": pip install "elva[train]"'
    )


def test_help_names_every_command():
    pytest.importorskip("typer", reason="typer is not installed")
    result = subprocess.run([sys.executable, "-m", "elva.cli.main", "--help"], capture_output=True, text=True)
    assert result.returncode == 0
    assert all(command in result.stdout for command in ("data", "train", "eval", "demo", "doctor"))


def test_the_command_starts_without_torch():
    pytest.importorskip("typer", reason="typer is not installed")
    code = "import sys, elva.cli.main; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
