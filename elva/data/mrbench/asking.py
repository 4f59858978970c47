"""Ask a judge many questions, several at a time, and keep its answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from elva.data.mrbench.answers import Question
from elva.data.mrbench.judges import Judge, JudgeError, Outcome, ask
from elva.data.mrbench.log import AnswerLog

HOPELESS = 25
"""So many questions without a usable answer in a row: the fault is the judge's, not the questions'."""


class Asker:
    """Gives outcomes in the order of the questions; those in ``log`` are not asked again."""

    def __init__(self, judge: Judge, log: AnswerLog) -> None:
        self._judge, self._log = judge, log
        self._aside: list[tuple[Question, Outcome]] = []

    def __call__(self, questions: Sequence[Question]) -> Iterator[Outcome]:
        """Raises JudgeError after ``HOPELESS`` failures in a row. Failures are not kept, but asked again next time."""
        pool = ThreadPoolExecutor(self._judge.parallel)
        asked = [
            None if self._log.get(question) else pool.submit(ask, self._judge, question)
            for question in questions
        ]
        try:
            for question, future in zip(questions, asked, strict=True):
                if future is not None:
                    self._keep(question, future.result())
                yield self._outcome(question)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            self._keep_finished(questions, asked)

    def _keep_finished(self, questions: Sequence[Question], asked: Sequence[Future[Outcome] | None]) -> None:
        """Keep what was answered out of order before the build stopped."""
        for question, future in zip(questions, asked, strict=True):
            if future is None or future.cancelled() or future.exception() or self._log.get(question):
                continue
            if (outcome := future.result()).answer is not None:
                self._log.add(question, outcome)

    def _keep(self, question: Question, outcome: Outcome) -> None:
        if outcome.answer is None:
            self._aside.append((question, outcome))
            if len(self._aside) == HOPELESS:
                raise JudgeError(
                    f"{self._judge.name}: no usable answer to {HOPELESS} questions in a row; the last time "
                    f"({question.qid}) because: {outcome.reason}; what it answered before is kept, and the same "
                    "command goes on there"
                )
        else:
            self._aside.clear()
            self._log.add(question, outcome)

    def _outcome(self, question: Question) -> Outcome:
        outcome = self._log.get(question)
        return next(kept for asked, kept in self._aside if asked == question) if outcome is None else outcome
