"""Ask a judge many questions, several at a time, and keep its answers."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import Future

from elva.data.mrbench.answers import Question
from elva.data.mrbench.judges import Judge, JudgeError, Outcome, ask
from elva.data.mrbench.log import AnswerLog
from elva.data.mrbench.pool import Pool

HOPELESS = 25
"""So many questions without a usable answer in a row: the fault is the judge's, not the questions'."""


class Asker:
    """Gives outcomes in the order of the questions; those in ``log`` are not asked again."""

    def __init__(self, judge: Judge, log: AnswerLog) -> None:
        self._judge, self._log = judge, log
        self._aside: list[tuple[Question, Outcome]] = []

    def __call__(self, questions: Sequence[Question]) -> Generator[Outcome, None, None]:
        """Raises JudgeError after ``HOPELESS`` failures in a row. Failures are not kept, but asked again next time."""
        if self._judge.parallel > 1:
            yield from self._several(questions)
            return
        for question in questions:
            if not self._log.get(question):
                self._keep(question, ask(self._judge, question))
            yield self._outcome(question)

    def _several(self, questions: Sequence[Question]) -> Generator[Outcome, None, None]:
        pool = Pool(self._judge.parallel, ask)
        asked = [
            None if self._log.get(question) else pool.submit(self._judge, question) for question in questions
        ]
        try:
            for question, future in zip(questions, asked, strict=True):
                if future is not None:
                    self._keep(question, future.result())
                yield self._outcome(question)
        except JudgeError:
            pool.stop()
            pool.join()
            raise
        finally:
            # A user who interrupts does not wait for answers under way.
            pool.stop()
            self._keep_finished(questions, asked)

    def _keep_finished(self, questions: Sequence[Question], asked: Sequence[Future[Outcome] | None]) -> None:
        """Keep what was answered out of order before the build stopped."""
        for question, future in zip(questions, asked, strict=True):
            if future is None or not future.done() or future.cancelled() or future.exception():
                continue
            if (outcome := future.result()).answer is not None and not self._log.get(question):
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
