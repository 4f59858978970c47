"""The answers so far, one line each, so that a killed build asks nothing twice."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from elva.data.lines import parse_json_line
from elva.data.mrbench import prompt
from elva.data.mrbench.answers import KINDS, Answer, Question, stored_grains
from elva.data.mrbench.judges import Judge, Outcome
from elva.data.records import described


class AnswerLog:
    """Answers by judge, prompt and question; each is on disk before the next question counts.

    Only answers that can be used are kept, so that what a judge's outage left open is asked again.
    """

    def __init__(self, path: Path, judge: Judge) -> None:
        self._path = path
        self._judge = f"{judge.name}\0{prompt.TASK}{prompt.FORM}{KINDS}"
        self._outcomes: dict[str, Outcome] = {}
        self._pictures: dict[Path, str] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._read()
        self._file = path.open("a", encoding="utf-8")

    def get(self, question: Question) -> Outcome | None:
        return self._outcomes.get(self._key(question))

    def add(self, question: Question, outcome: Outcome) -> None:
        """``outcome`` with an answer."""
        assert outcome.answer is not None
        key = self._key(question)
        self._outcomes[key] = outcome
        record = {"key": key, "qid": question.qid, **_to_json(outcome.answer, outcome.attempts)}
        line = json.dumps(record, ensure_ascii=False)
        self._file.write(line + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _key(self, question: Question) -> str:
        picture = "" if question.image is None else self._picture(question.image)
        parts = (self._judge, question.qid, question.text or "", picture, question.caption or "")
        return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()

    def _picture(self, path: Path) -> str:
        """By content, read once: another picture may come under the same name."""
        if path not in self._pictures:
            content = path.read_bytes() if path.is_file() else b""
            self._pictures[path] = hashlib.blake2b(content, digest_size=16).hexdigest()
        return f"{path.name} {self._pictures[path]}"

    def _read(self) -> None:
        if not self._path.exists():
            return
        whole = self._path.read_bytes()
        # What stands behind the last line break is what a kill left of a line.
        kept = whole[: whole.rfind(b"\n") + 1]
        if len(kept) < len(whole):
            os.truncate(self._path, len(kept))
        for number, line in enumerate(kept.split(b"\n")[:-1], start=1):
            try:
                record = parse_json_line(line)
                if not isinstance(record, dict):
                    raise ValueError(f"a record is {described(record)}, expected an object")
                if record.get("reason") is None:  # earlier versions kept failures, too
                    key, outcome = _from_json(record)
                    self._outcomes[key] = outcome
            except ValueError as error:
                raise ValueError(
                    f"{self._path}:{number}: no line of a build's answers: {error}; remove the line to ask again"
                ) from error


def _to_json(answer: Answer, attempts: int) -> dict[str, Any]:
    grains = [grain.to_json() for grain in answer.grains]
    return {"attempts": attempts, "text": answer.text, "grains": grains}


def _from_json(record: dict[str, Any]) -> tuple[str, Outcome]:
    """The key and what it stands for. Raises ValueError for a field that is not what ``add`` writes."""
    key, text, attempts = record.get("key"), record.get("text"), record.get("attempts")
    for name, value in (("key", key), ("text", text)):
        if not isinstance(value, str):
            raise ValueError(f"{name} is {described(value)}, expected a string")
    if type(attempts) is not int or attempts < 1:
        raise ValueError(f"attempts is {described(attempts)}, expected a number from 1 on")
    assert isinstance(key, str) and isinstance(text, str)
    return key, Outcome(Answer(text, stored_grains(record.get("grains"), text)), attempts)
