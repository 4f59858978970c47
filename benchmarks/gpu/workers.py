"""Runs groups of cases in processes of their own, side by side, until they are done or the time is up."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import IO, Any

from benchmarks.gpu.cases import Setting
from benchmarks.gpu.child import POISONED, TRACE
from benchmarks.gpu.lines import without_paths

CASE_SECONDS = 90.0
"""A case that takes longer is stopped and counts as failed: a kernel may hang."""
Line = dict[str, Any]


@dataclass
class _Group:
    """A group, its present process and how far it has come."""

    name: str
    source: str
    keys: list[Line] = field(default_factory=list)
    first: int = 0
    done: int = 0
    running: int | None = None
    since: float = 0.0
    process: subprocess.Popen[bytes] | None = None
    told: bool = False
    output: IO[bytes] | None = None
    pipe: int = -1
    pending: bytes = b""
    began: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)

    def tail(self) -> str:
        """The end of what the process printed."""
        assert self.output is not None
        self.output.seek(0)
        return without_paths(self.output.read().decode(errors="replace"))[-TRACE:]


class Workers:
    """``write`` takes each line as it comes, ``say`` what a person should read at once."""

    def __init__(
        self, setting: Setting, parallel: int, write: Callable[[Line], None], say: Callable[[str], None]
    ) -> None:
        self._setting = setting
        self._parallel = parallel
        self._write = write
        self._say = say
        self._selector = selectors.DefaultSelector()

    def run(self, groups: Mapping[str, str], deadline: float) -> None:
        """Run all groups, in their order; what is unfinished at `deadline` (`time.monotonic`) is "not reached"."""
        waiting = [_Group(name, source) for name, source in groups.items()]
        active: list[_Group] = []
        try:
            while (waiting or active) and time.monotonic() < deadline:
                # One more than may run: it imports what it needs and waits.
                while waiting and len(active) <= self._parallel:
                    active.append(waiting.pop(0))
                    self._start(active[-1])
                for group in active[: self._parallel]:
                    self._tell(group)
                self._listen(active, deadline)
        finally:  # also where this process is told to end
            for group in active:
                self._kill(group)
        for group in active:
            while data := os.read(group.pipe, 1 << 16):
                self._receive(group, data)
            self._close(group)
        for group in (*active, *waiting):
            self._not_reached(group)

    def _listen(self, active: list[_Group], deadline: float) -> None:
        """Take what the processes send, for half a second at most, and stop those that hang."""
        left = deadline - time.monotonic()
        for ready, _ in self._selector.select(min(0.5, max(left, 0))):
            group: _Group = ready.data
            data = os.read(group.pipe, 1 << 16)
            if data:
                self._receive(group, data)
            elif self._ended(group):
                active.remove(group)
        for group in active:
            if group.running is not None and time.monotonic() - group.since > CASE_SECONDS:
                self._kill(group)  # its pipe ends then

    def _start(self, group: _Group) -> None:
        group.pipe, write = os.pipe()
        request = {"source": group.source, "first": group.done, "pipe": write}
        group.output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by _close
        group.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "benchmarks.gpu.child",
                json.dumps({**request, "setting": asdict(self._setting)}),
            ],
            stdin=subprocess.PIPE,
            stdout=group.output,
            stderr=subprocess.STDOUT,
            pass_fds=(write,),
            start_new_session=True,  # so that its compilers end with it
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        os.close(write)
        group.first, group.running, group.pending, group.told = group.done, None, b"", False
        self._selector.register(group.pipe, selectors.EVENT_READ, group)

    def _tell(self, group: _Group) -> None:
        """The word to begin."""
        if group.told:
            return
        assert group.process is not None and group.process.stdin is not None
        group.told, group.began = True, group.began or time.monotonic()
        with suppress(BrokenPipeError):  # it has died: its own pipe says so
            group.process.stdin.write(b"\n")
            group.process.stdin.close()

    def _receive(self, group: _Group, data: bytes) -> None:
        *lines, group.pending = (group.pending + data).split(b"\n")
        for message in map(json.loads, lines):
            if "keys" in message:
                group.keys = message["keys"]
            elif "begin" in message:
                group.running, group.since = message["begin"], time.monotonic()
            else:
                group.running, group.done = None, message["end"] + 1
                self._record(group, message["line"])

    def _record(self, group: _Group, line: Line) -> None:
        group.counts[line["status"]] += 1
        self._write(line)
        if line["status"] == "failed":
            names = " / ".join(str(value) for value in group.keys[group.done - 1].values())
            self._say(f"FAILED {names}: {line['reason']}")

    def _ended(self, group: _Group) -> bool:
        """The process is gone: go on in a new one if cases are left; True when the group is finished."""
        assert group.process is not None
        code, slow = group.process.wait(), False
        self._kill(group)  # what it may have left behind
        if group.running is not None:
            slow = time.monotonic() - group.since > CASE_SECONDS
        how = f"took longer than {CASE_SECONDS:.0f} s" if slow else f"the process died: {_said(code)}"
        tail = group.tail()
        how += f": {last[-1][:300]}" if (last := tail.strip().splitlines()) else ""
        failed = {"status": "failed", "reason": how, "traceback": tail}
        progress = group.running is not None or code in (0, POISONED) or group.done > group.first
        if group.running is not None:
            group.done = group.running + 1
            seconds = round(time.monotonic() - group.since, 4)
            self._record(group, {**group.keys[group.running], **failed, "seconds": seconds})
        self._close(group)
        if progress and group.done < len(group.keys):
            self._start(group)
            return False
        if not progress:  # not even begun: another try would end likewise
            group.keys = group.keys or [{"operator": group.name, "case": "start"}]
            group.done += 1
            self._record(group, {**group.keys[group.done - 1], **failed, "seconds": 0.0})
            self._not_reached(group, "the group's process died before it")
        self._finished(group)
        return True

    def _finished(self, group: _Group) -> None:
        counts = ", ".join(f"{count} {status}" for status, count in group.counts.items()) or "nothing"
        self._say(f"{group.name}: {counts} in {time.monotonic() - group.began:.0f} s")

    def _not_reached(self, group: _Group, reason: str = "") -> None:
        # Asking a group that has not begun for its cases would import what they need, after the time was up.
        group.keys = group.keys or [{"operator": group.name, "case": "all of them"}]
        for index in range(group.done, len(group.keys)):
            why = reason or ("it was running when the time was up" if index == group.running else "")
            line = {"status": "not reached", "reason": why or "the time was up", "seconds": 0.0}
            group.counts["not reached"] += 1
            self._write({**group.keys[index], **line})

    def _kill(self, group: _Group) -> None:
        assert group.process is not None
        with suppress(ProcessLookupError):
            os.killpg(group.process.pid, signal.SIGKILL)
        group.process.wait()

    def _close(self, group: _Group) -> None:
        """Stop listening to the group's process."""
        assert group.output is not None
        self._selector.unregister(group.pipe)
        os.close(group.pipe)
        group.output.close()


def _said(code: int) -> str:
    return f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit status {code}"
