"""Judges that answer anything: an answer is checked or refused with a reason, and nothing else happens.

Case n of a run is the same in every run; `--fuzz-seconds` says how many there are.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("urllib3", reason="urllib3 is not installed")

from elva.data.mrbench.answers import KINDS, Answer, AnswerError, Question, parse_answer
from elva.data.mrbench.endpoint import EndpointJudge
from elva.data.mrbench.judges import JudgeError, Outcome, ask
from elva.data.mrbench.log import AnswerLog
from elva.data.mrbench.transport import LONGEST_BODY, Reply, TooLongError, TransportError

SECONDS = 20
TEXTS = (
    "a red dog on a red sofa",
    "zwei Hunde \N{DOG FACE} laufen",
    "un cafe\u0301 noir",
    'say "hi" \\ there',
)
STRANGE = (
    "",
    " ",
    "\ud800",
    "\udfff\ud800",
    "\x00",
    "\x1b[2J",
    "\u202e",
    "a" * 3000,
    "\N{DOG FACE}",
    "\n",
    '"',
    "{",
)
BLOWS = (
    '{"grains": ' + "[" * 3000,
    '{"a":' * 3000,
    "9" * 5000,
    "1e999",
    "NaN",
    "-",
    "\\ud83d",
    "\\",
    '"',
    "]}",
    ",",
)


def seconds(request: pytest.FixtureRequest) -> float:
    return request.config.getoption("--fuzz-seconds", default=None) or SECONDS


def cases(name: str, limit: float) -> Iterator[random.Random]:
    end, number = time.monotonic() + limit, 0
    while time.monotonic() < end:
        yield random.Random(f"{name}:{number}")
        number += 1
    assert number > 100


def value(draw: random.Random, depth: int = 0) -> Any:
    """Any JSON value, and some that are not."""
    kind = draw.randrange(9 if depth < 4 else 6)
    if kind == 0:
        return draw.choice([None, True, False, float("nan"), float("inf"), -1, 0, 3, 10**30, 0.5])
    if kind < 4:
        return draw.choice([*STRANGE, *KINDS, *TEXTS, "dog", "red", "Hunde"])
    if kind < 6:
        return draw.randrange(-3, 40)
    if kind == 6:
        return [value(draw, depth + 1) for _ in range(draw.randrange(5))]
    keys = (
        "grains",
        "kind",
        "text",
        "start",
        "end",
        "description",
        "choices",
        "message",
        "content",
        "id",
        "data",
    )
    return {draw.choice(keys): value(draw, depth + 1) for _ in range(draw.randrange(5))}


def grain(draw: random.Random, text: str) -> Any:
    start = draw.randrange(len(text))
    end = draw.randrange(start, len(text)) + 1
    found: dict[str, Any] = {"kind": draw.choice(KINDS), "text": text[start:end], "start": start, "end": end}
    for key in list(found):
        if draw.random() < 0.15:
            found[key] = value(draw)
        if draw.random() < 0.1:
            del found[key]
    return found if draw.random() < 0.95 else value(draw)


def reply(draw: random.Random, text: str) -> str:
    """Mostly an answer with something wrong in it."""
    listed: Any = [grain(draw, text) for _ in range(draw.randrange(6))]
    answer: Any = {"description": draw.choice([text, text, value(draw)]), "grains": listed}
    if draw.random() < 0.1:
        answer[draw.choice(list(answer))] = value(draw)
    written = json.dumps(answer if draw.random() < 0.95 else value(draw), ensure_ascii=draw.random() < 0.5)
    for _ in range(draw.choice([0, 0, 0, 1, 2])):
        place = draw.randrange(len(written) + 1)
        cut = place + draw.choice([0, 0, 1, 5])
        written = written[:place] + draw.choice([*BLOWS, *STRANGE]) + written[cut:]
    return draw.choice(["", "Sure! ", "```json\n"]) + written + draw.choice(["", "\n```", " {}"])


def sound(answer: Answer) -> None:
    answer.text.encode("utf-8")
    for found in answer.grains:
        assert found.key in KINDS
        assert answer.text[found.start : found.end] == found.value != ""
    assert all(left.end <= right.start for left, right in pairwise(answer.grains))


def told(reason: str | None) -> None:
    assert reason
    assert len(reason) < 1500
    reason.encode("utf-8")


@pytest.mark.slow
def test_answers(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    class Nobody:
        name = "nobody"

    log, taken, refused = AnswerLog(tmp_path / "answers.jsonl", Nobody()), [], 0  # type: ignore[arg-type]
    for draw in cases("answers", seconds(request) / 2):
        text = draw.choice(TEXTS)
        question = Question(f"9:{len(taken)}", text if draw.random() < 0.7 else None, None)
        try:
            answer = parse_answer(reply(draw, text), question)
        except AnswerError as error:
            refused += 1
            told(str(error))
            continue
        sound(answer)
        if len(taken) < 200:
            log.add(question, Outcome(answer, 1))
            taken.append((question, answer))
    log.close()
    again = AnswerLog(tmp_path / "answers.jsonl", Nobody())  # type: ignore[arg-type]
    assert [again.get(question) for question, _ in taken] == [Outcome(answer, 1) for _, answer in taken]
    again.close()
    assert taken and refused


class Wire:
    """What the transport may give or raise."""

    def __init__(self, draw: random.Random, text: str) -> None:
        self.draw, self.text = draw, text

    def send(self, url: str, body: bytes | None, headers: Any) -> Reply:
        draw = self.draw
        fate = draw.random()
        if fate < 0.05:
            raise TransportError("no whole answer within 1 s")
        if fate < 0.08:
            raise TransportError("Connection refused", connected=False)
        if fate < 0.1:
            raise TooLongError(f"the server's answer has more than {LONGEST_BODY} bytes")
        status = draw.choice([200] * 12 + [100, 204, 302, 400, 401, 404, 413, 429, 500, 503, 599, 999])
        after = draw.choice([None, None, 0.0, 700.0]) if status in (429, 503) else None
        return Reply(status, "Said", self.body(), after, "http://elsewhere/v1")

    def body(self) -> bytes:
        draw = self.draw
        content = reply(draw, self.text) if draw.random() < 0.9 else value(draw)
        whole: Any = {"choices": [{"message": {"content": content}}]} if draw.random() < 0.8 else value(draw)
        written = json.dumps(whole).encode()
        if draw.random() < 0.1:
            place = draw.randrange(len(written) + 1)
            written = written[:place] + draw.randbytes(draw.randrange(5)) + written[place + 1 :]
        return written


@pytest.mark.slow
def test_servers(request: pytest.FixtureRequest) -> None:
    judge = EndpointJudge("http://127.0.0.1:9/v1", "m", pause=0)
    ends: dict[str, int] = {"answer": 0, "set aside": 0, "stopped": 0}
    for draw in cases("servers", seconds(request) / 2):
        text = draw.choice(TEXTS)
        judge._transport = Wire(draw, text)  # type: ignore[assignment]
        judge._heard = draw.choice([-float("inf"), time.monotonic()])
        try:
            outcome = ask(judge, Question("9:1", text if draw.random() < 0.7 else None, None))
        except JudgeError as error:
            told(str(error))
            ends["stopped"] += 1
            continue
        if outcome.answer is not None:
            sound(outcome.answer)
            ends["answer"] += 1
        else:
            told(outcome.reason)
            ends["set aside"] += 1
    assert min(ends.values()) > 0
