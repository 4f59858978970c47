"""Threads that nobody has to wait for, so that Ctrl-C ends a build in the middle of a judge's time-out."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Pool(Generic[P, T]):
    """Runs ``function`` on ``count`` threads, which do not keep the process alive as ThreadPoolExecutor's do."""

    def __init__(self, count: int, function: Callable[P, T]) -> None:
        self._function = function
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._futures: list[Future[T]] = []
        self._threads = [Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, *arguments: P.args, **options: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        self._futures.append(future)
        self._calls.put(lambda: self._call(future, *arguments, **options))
        return future

    def stop(self) -> None:
        """Begin no further call; those that run go on."""
        for future in self._futures:
            future.cancel()
        for _ in self._threads:
            self._calls.put(None)

    def join(self) -> None:
        """Wait, after ``stop``, for the calls that run."""
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

    def _call(self, future: Future[T], *arguments: P.args, **options: P.kwargs) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(self._function(*arguments, **options))
        except BaseException as error:
            future.set_exception(error)
