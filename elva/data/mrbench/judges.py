"""Judges: who says which grains a query has, and how often each is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from elva.data.mrbench.answers import Answer, AnswerError, Question, parse_answer

ATTEMPTS = 3
LONGEST_ECHO = 4000
"""Characters of an unusable answer that its judge is shown again."""
RULES = "rules"


class Judge(Protocol):
    """Answers questions in text; what it says is checked by ``parse_answer``, whoever it is."""

    name: str
    """Names what the answers depend on; kept answers of another name are not used."""
    parallel: int
    """How many questions may be asked at a time."""

    def reads(self, question: Question) -> bool:
        """Whether it can say anything about this query at all."""
        ...

    def reply(self, question: Question, faults: list[tuple[str, str]]) -> str:
        """An answer, given its earlier ones with what was wrong about each.

        Raises JudgeFault where there is none this time, JudgeError where there will never be one.
        """
        ...


class JudgeFault(Exception):
    """No answer this time: a time-out, an overloaded server, an unreadable picture."""


class JudgeError(ValueError):
    """No answers at all: nobody listens, an unknown model, a wrong key. The build stops."""


@dataclass(frozen=True)
class Outcome:
    """One question's result: an answer after ``attempts`` tries, or None with the last ``reason``."""

    answer: Answer | None
    attempts: int
    reason: str | None = None


def ask(judge: Judge, question: Question) -> Outcome:
    """Ask until an answer can be used, at most ``ATTEMPTS`` times."""
    faults: list[tuple[str, str]] = []
    reason = ""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            reply = judge.reply(question, faults)
        except JudgeFault as fault:
            reason = str(fault)
            continue
        try:
            return Outcome(parse_answer(reply, question), attempt)
        except AnswerError as error:
            reason = str(error)
            faults.append((reply[:LONGEST_ECHO], reason))
    return Outcome(None, ATTEMPTS, reason)


def open_judge(judge: str, model: str | None = None) -> Judge:
    """``rules``, the base URL of an OpenAI-compatible server (``http://localhost:8000/v1``), or a Qwen-VL checkpoint.

    ``model`` names the model of a server; by default it is the one that the server lists.

    Raises:
        JudgeError: the server does not answer, or has no single model to choose.
        ValueError: ``model`` with a judge that is no server, or a checkpoint that cannot be loaded.
    """
    if judge.startswith(("http://", "https://")):
        from elva.data.mrbench.endpoint import EndpointJudge

        return EndpointJudge(judge, model)
    if model is not None:
        raise ValueError(f"the judge's model is {model!r}, but only a server (http://…) needs one")
    if judge == RULES:
        from elva.data.mrbench.rules import RulesJudge

        return RulesJudge()
    from elva.data.mrbench.checkpoint import CheckpointJudge

    return CheckpointJudge(judge)
