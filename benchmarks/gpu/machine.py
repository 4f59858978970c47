"""The first line of every file of results: what the figures depend on, and nothing that tells whose machine it was."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.gpu.lines import ROOT, without_paths

PACKAGES = ("triton", "transformers", "numpy", "flash-attn", "xformers")
RIVALS = ("liger-kernel", "cut-cross-entropy", "inf-cl")
UNKNOWN = "unknown"
DIRTY, UNCHECKED = "-dirty", "-unchecked"
"""Behind a commit from which tracked files differ, and behind one where git is not there to tell."""


def machine_line(command: str, device: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Device, versions, commit, date and command line."""
    import torch

    import elva

    return {
        "command": command,
        "machine": device_name(device),
        "device": device,
        "capability": ".".join(map(str, torch.cuda.get_device_capability())) if device == "cuda" else None,
        "driver": driver() if device == "cuda" else None,
        "cuda": torch.version.cuda,
        "devices": torch.cuda.device_count() if device == "cuda" else 1,
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {
            "elva": elva.__version__,
            "torch": torch.__version__,
            **{name: _version(name) for name in (*PACKAGES, *RIVALS)},
        },
        "commit": revision(ROOT),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "arguments": without_paths(" ".join(["python -m benchmarks.gpu", command, *arguments])),
    }


def device_name(device: str) -> str:
    """The GPU's name, or the processor's."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def driver() -> str:
    """The version of NVIDIA's kernel module, where the system tells."""
    file = Path("/proc/driver/nvidia/version")
    found = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)\s", file.read_text()) if file.exists() else None
    return found[1] if found else UNKNOWN


def revision(root: Path) -> str:
    """The `commit`, with ``DIRTY`` or ``UNCHECKED`` behind that of a checkout that may not be what ran."""
    found = commit(root)
    if found != _checked_out(root / ".git"):
        return found
    # results that an earlier command wrote change no figure
    command = ["git", "-C", str(root), "--no-optional-locks", "status", "--porcelain", "--untracked-files=no"]
    command += ["--", ".", ":(exclude)benchmarks/results"]
    other = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        changes = subprocess.run(command, env=other, capture_output=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return found + UNCHECKED
    return found + DIRTY if changes else found


def commit(root: Path) -> str:
    """The commit of a checkout, read without git's binary; else ELVA_COMMIT; else "unknown"."""
    return _checked_out(root / ".git") or os.environ.get("ELVA_COMMIT") or UNKNOWN


def _checked_out(git: Path) -> str | None:
    try:
        if git.is_file():  # a worktree: "gitdir: …"
            git = (git.parent / git.read_text().removeprefix("gitdir:").strip()).resolve()
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        common = git / (git / "commondir").read_text().strip() if (git / "commondir").exists() else git
        for folder in (git, common):
            if (folder / name).exists():
                return (folder / name).read_text().strip()
        packed = (common / "packed-refs").read_text()
    except (OSError, ValueError):  # absent, or no text
        return None
    found = re.search(rf"^([0-9a-f]{{40,}}) {re.escape(name)}$", packed, re.MULTILINE)
    return found[1] if found else None


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
