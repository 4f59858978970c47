"""The human check: a seeded sample of a build's queries, each accepted, corrected or rejected."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from elva.data.lines import parse_json_line
from elva.data.mbeir import MBEIRDirectory
from elva.data.mrbench.agreement import agreement
from elva.data.mrbench.answers import AnswerError, grains_from_json
from elva.data.mrbench.datasheet import REVIEW, write_datasheet
from elva.data.mrbench.judged import FEWER, JUDGED, PICKED, Judged, read_judged
from elva.data.records import DataError, Grain, described
from elva.files import atomic_file
from elva.intervals import wilson
from elva.locks import LockedError, lock_directory

DECISIONS = ("accepted", "corrected", "rejected")
LONGEST_TURN = 10.0
FEWER_SHARE = 4
"""One query with fewer than two grains for every so many picked ones: kappa needs both verdicts."""


class DatasheetError(OSError):
    """A decision is kept, and in ``report``, but the datasheet could not be written anew."""

    def __init__(self, report: dict[str, Any], cause: Exception) -> None:
        super().__init__(f"saved, but README.md is not brought up to date: {cause}")
        self.report = report


class Review:
    """The sample (``items``) and what has been decided about it; every decision is on disk before ``decide`` returns.

    Picked queries and, a quarter as many, queries that the judge turned down, mixed. The benchmark stays as it is.
    Raises DataError where ``root`` is no directory of ``elva mrbench build`` or its review.json is malformed.
    """

    def __init__(self, root: str | Path, sample: int = 100, seed: int = 0) -> None:
        self.directory = MBEIRDirectory(root)
        self.root = Path(root)
        generator = random.Random(seed)
        judged = read_judged(root)
        self.items: list[Judged] = []
        for state, count in ((PICKED, sample), (FEWER, -(-sample // FEWER_SHARE))):
            fitting = [record for record in judged if record.state == state]
            self.items += generator.sample(fitting, len(fitting))[:count]
        generator.shuffle(self.items)
        self._by_key = {key(item): item for item in self.items}
        self._all = {key(item): item for item in judged}
        self._decisions = self._read()
        self._lock = threading.Lock()

    def decision(self, item: Judged) -> dict[str, Any] | None:
        """``{"decision": …, "grains": […]}``, or None where nobody has looked."""
        return self._decisions.get(key(item))

    def decide(self, request: Any) -> dict[str, Any]:
        """Take ``{"key", "decision"}``, with ``grains`` where corrected; returns the new report.

        What others have decided about the directory meanwhile is kept. Raises ValueError for anything else, and OSError
        where it cannot be written, and then changes nothing; DatasheetError where only README.md could not.
        """
        if not isinstance(request, Mapping):
            raise ValueError(f"a {type(request).__name__} given, expected an object with key and decision")
        name = request.get("key")
        item = self._by_key.get(name) if isinstance(name, str) else None
        if item is None:
            raise ValueError(f"key is {name!r}, expected one of the sample's")
        record = _decision(request, item)
        with self._lock, _turn((self.root / REVIEW).parent):
            decisions = {**self._read(), key(item): record}
            report = self._report(decisions)
            with atomic_file(self.root / REVIEW) as temporary:
                content = {"report": report, "decisions": decisions}
                temporary.write_text(
                    json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
                )
            self._decisions = decisions
            try:
                write_datasheet(self.root)
            except (OSError, ValueError) as error:
                raise DatasheetError(report, error) from error
        return report

    def report(self) -> dict[str, Any]:
        """Counts over the picked queries, the rate of unchanged ones with its 95% Wilson interval, and agreement."""
        return self._report(self._decisions)

    def _report(self, decisions: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        seen = [(item, decisions[key(item)]) for item in self.items if key(item) in decisions]
        counts = Counter(record["decision"] for item, record in seen if item.state == PICKED)
        total = sum(counts.values())
        rate = counts["accepted"] / total if total else None
        interval = wilson(rate, total) if rate is not None else None
        found = agreement([(item.grains, _human_grains(item, record)) for item, record in seen])
        return {
            "sample": sum(item.state == PICKED for item in self.items),
            "reviewed": total,
            "looked_at": len(seen),
            **{decision: counts[decision] for decision in DECISIONS},
            "acceptance_rate": rate,
            "interval": interval,
            "agreement": asdict(found) if found else None,
            "sentence": _sentence(counts, total, rate, interval),
        }

    def _read(self) -> dict[str, dict[str, Any]]:
        path = self.root / REVIEW
        if not path.is_file():
            return {}
        try:
            content = parse_json_line(path.read_bytes())
            decisions = content.get("decisions") if isinstance(content, dict) else None
            if not isinstance(decisions, dict):
                raise ValueError("expected an object with an object decisions")
            return {name: self._kept(name, record) for name, record in decisions.items()}
        except ValueError as error:
            raise DataError(
                f"{path}: no review of this directory ({error}); remove it to begin anew"
            ) from error

    def _kept(self, name: str, record: Any) -> dict[str, Any]:
        if name not in self._all:
            raise ValueError(f"decisions: {described(name)} is no query of {JUDGED}")
        if not isinstance(record, dict):
            raise ValueError(f"decisions: {name}: {described(record)}, expected an object")
        try:
            return _decision(record, self._all[name])
        except ValueError as error:
            raise ValueError(f"decisions: {name}: {error}") from error


def key(item: Judged) -> str:
    """Names a query among all tasks."""
    return f"{item.dataset}_task{item.task_id}/{item.qid}"


def _decision(request: Mapping[str, Any], item: Judged) -> dict[str, Any]:
    decision = request.get("decision")
    if decision not in DECISIONS:
        raise ValueError(f"decision is {decision!r}, expected one of {', '.join(DECISIONS)}")
    if decision != "corrected":
        return {"decision": decision}
    try:
        grains = grains_from_json(request.get("grains"), item.text)
    except AnswerError as error:
        raise ValueError(f"grains: {error}") from error
    # what we read of them, and nothing that came along
    kept = [
        {"kind": grain.key, "text": grain.value, "start": grain.start, "end": grain.end} for grain in grains
    ]
    return {"decision": decision, "grains": kept}


@contextmanager
def _turn(directory: Path) -> Iterator[None]:
    """Wait until no other server of this directory writes. Raises LockedError after ``LONGEST_TURN`` seconds."""
    begin = time.monotonic()
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(lock_directory(directory))
                break
            except LockedError:
                if time.monotonic() - begin > LONGEST_TURN:
                    raise
                time.sleep(0.01)
        yield


def _human_grains(item: Judged, record: Mapping[str, Any]) -> tuple[Grain, ...]:
    """What the person sees in the query; a rejected one has no grains worth asking for."""
    if record["decision"] == "accepted":
        return item.grains
    return grains_from_json(record["grains"], item.text) if record["decision"] == "corrected" else ()


def _sentence(
    counts: Mapping[str, int], total: int, rate: float | None, interval: tuple[float, float] | None
) -> str:
    if rate is None or interval is None:
        return "No picked query has been looked at yet."
    low, high = interval
    return (
        f"{total} picked queries looked at: {counts['accepted']} accepted, {counts['corrected']} corrected, "
        f"{counts['rejected']} rejected; acceptance {100 * rate:.1f} % "
        f"(95% interval {100 * low:.1f} to {100 * high:.1f})."
    )
