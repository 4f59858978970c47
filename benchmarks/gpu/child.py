"""The process of one group: runs its cases one after the other and sends each line up a pipe as it ends.

Started by `workers.py`. A device-side assertion leaves a CUDA context in which every later call fails: the process then
ends with POISONED, and another one goes on with the next case.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from typing import Any, TextIO
from unittest import SkipTest

from benchmarks.gpu.cases import Case, Setting, load
from benchmarks.gpu.lines import dumped, without_paths

POISONED = 77
TRACE = 6000
"""Characters of a traceback that are kept: its end."""


def main() -> None:
    _end_with_parent()
    request = json.loads(sys.argv[1])
    setting = Setting(**request["setting"])
    os.set_inheritable(request["pipe"], False)  # the pipe ends with this process, not with its compilers
    with os.fdopen(request["pipe"], "w", encoding="utf-8") as pipe:
        cases = load(request["source"], setting)
        _send(pipe, {"keys": [case.key for case in cases]})
        if not sys.stdin.readline():  # the word to begin; nobody is there any more to give it
            return
        for index in range(request["first"], len(cases)):
            _send(pipe, {"begin": index})
            line = outcome(cases[index], setting.device)
            lost = line["status"] == "failed" and setting.device == "cuda" and poisoned()
            if lost:
                line["reason"] += "; CUDA answered no more: the next case has a new process"
            _send(pipe, {"end": index, "line": line})
            if lost:
                break
        else:
            lost = False
    sys.stdout.flush()
    sys.stderr.flush()
    # Without the interpreter's tidying up, which a poisoned context can make hang.
    os._exit(POISONED if lost else 0)


def _end_with_parent() -> None:
    """Linux ends this process, even one that hangs in a kernel, as soon as the command's own is gone."""
    if sys.platform == "linux":
        parent_death_signal = 1
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)


def outcome(case: Case, device: str) -> dict[str, Any]:
    """The line of a case that has been run."""
    begin = time.perf_counter()
    line: dict[str, Any] = {**case.key, "status": "ok", "reason": "", "traceback": ""}
    try:
        line |= case.run()
        if device == "cuda":
            import torch

            torch.cuda.synchronize()  # an error of the device belongs to this case
    except SkipTest as skipped:
        line |= {"status": "skipped", "reason": str(skipped)}
    except Exception as error:
        line |= failure(error)
    else:
        if "bound" in line and not line["error"] <= line["bound"]:
            reason = f"error {line['error']:.3g} above its bound {line['bound']:.3g} ({line.get('of', '')})"
            line |= {"status": "failed", "reason": reason}
    line["seconds"] = round(time.perf_counter() - begin, 4)
    return line


def failure(error: Exception) -> dict[str, str]:
    """Status, reason and traceback of a case that raised."""
    message = " ".join(str(error).split())[:500]
    trace = without_paths("".join(traceback.format_exception(error)))
    return {
        "status": "failed",
        "reason": without_paths(f"{type(error).__name__}: {message}"),
        "traceback": trace[-TRACE:],
    }


def poisoned() -> bool:
    """Whether the CUDA context answers no more; gives back the memory of the failed case on the way."""
    import torch

    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.ones(2, device="cuda").sum().item() != 2.0
    except Exception:
        return True


def _send(pipe: TextIO, message: dict[str, Any]) -> None:
    pipe.write(dumped(message) + "\n")
    pipe.flush()


if __name__ == "__main__":
    main()
