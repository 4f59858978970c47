"""What a GPU is asked in the minutes that it is there: is everything right, how fast is it, what does a step cost.

    python -m benchmarks.gpu check --out DIR --seconds 150    # every operator against float64
    python -m benchmarks.gpu bench --out DIR --seconds 200    # every operator against its rivals
    python -m benchmarks.gpu step --out DIR                   # the RL step, fast against plain
    python -m benchmarks.gpu report DIR [DIR …]               # docs/gpu.md from what they wrote

From a bare checkout with PYTHONPATH=. ; every line is written as its case ends, so that a run cut short loses none, and
an earlier file in DIR is set aside, not overwritten. On a machine without a GPU they run at small sizes
(`make gpu-rehearsal`). The modules of that name say more.
"""

from __future__ import annotations

import importlib
import signal
import sys
import traceback

from benchmarks.gpu.lines import without_paths

COMMANDS = ("check", "bench", "step", "report")


def main() -> int:
    """Hand the arguments to the command's module."""
    command, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    if command in ("-h", "--help"):
        print(__doc__)
        return 0
    if command not in COMMANDS:
        print(__doc__, file=sys.stderr)
        given = f"got {command!r}" if command else "no command"
        print(f"benchmarks.gpu: {given}, expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    # Told to end, or left alone by its terminal, a command first ends the processes that it started.
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        status: int = importlib.import_module(f"benchmarks.gpu.{command}").main(arguments)
    except (OSError, ImportError) as error:
        where = without_paths(traceback.format_exception(error)[-2].strip().splitlines()[0])
        print(f"benchmarks.gpu {command}: {type(error).__name__}: {error} ({where})", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
