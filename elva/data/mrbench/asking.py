"""Ask a judge many questions, several at a time, and keep what it says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

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
        """Raises JudgeError after ``HOPELESS`` failures in a row; these will be asked again next time."""
        pool = ThreadPoolExecutor(self._judge.parallel)
        try:
            asked = [
                None if self._log.get(question) else pool.submit(ask, self._judge, question)
                for question in questions
            ]
            for question, future in zip(questions, asked, strict=True):
                if future is not None:
                    self._keep(question, future.result())
                yield self._outcome(question)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def finish(self) -> None:
        """Keep the last failures, too: they were the questions' own."""
        for question, outcome in self._aside:
            self._log.add(question, outcome)
        self._aside.clear()

    def _keep(self, question: Question, outcome: Outcome) -> None:
        if outcome.answer is None:
            self._aside.append((question, outcome))
            if len(self._aside) == HOPELESS:
                raise JudgeError(
                    f"{self._judge.name}: no usable answer to {HOPELESS} questions in a row; the last time "
                    f"({question.qid}) because: {outcome.reason}"
                )
        else:
            self.finish()
            self._log.add(question, outcome)

    def _outcome(self, question: Question) -> Outcome:
        outcome = self._log.get(question)
        return next(kept for asked, kept in self._aside if asked == question) if outcome is None else outcome
