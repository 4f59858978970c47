"""A judge behind an OpenAI-compatible server (vLLM, SGLang, …): chat completions over HTTP."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from elva.data.mrbench.answers import Question
from elva.data.mrbench.judges import JudgeError, JudgeFault
from elva.data.mrbench.prompt import correction, render
from elva.data.mrbench.transport import Reply, TooLongError, Transport, TransportError, printable

LONGEST_SIDE = 1024
TRIES = 5
LONGEST_PAUSE = 60.0
LONGEST_RETRY_AFTER = 600.0
PATIENCE = 120
"""Pauses (of ``pause`` seconds) without an answer to any question, after which the judge counts as gone."""
TURNED_AWAY = 40
"""Pauses for which the server is too busy for one question alone, after which that attempt at it has failed."""
_PROBE = {"messages": [{"role": "user", "content": "Answer with yes."}], "temperature": 0, "max_tokens": 1}
# What the next question may not meet again: its own length, size or content.
_QUESTIONS_OWN = frozenset({400, 413, 422})
# The server's trouble, which passes.
_PASSING = frozenset({408, 409, 425, 429})


class _Outage(JudgeFault):
    """The server's trouble, not the question's. ``busy``: it said itself that it takes no more for now."""

    def __init__(self, reason: str, busy: bool = False, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.busy, self.retry_after = busy, retry_after


class _Refusal(JudgeError):
    """A status that says no for good, such as 401: to everybody, or to one question (a filter's 403)."""


class EndpointJudge:
    """Asks ``model`` at ``url`` (with its ``/v1``); the key, if one is needed, is in ``OPENAI_API_KEY``.

    ``timeout`` is for a whole answer, ``pause`` the first of the growing ones before a question is repeated after the
    server's fault, both in seconds. The key is sent to the url's own origin alone: a redirect is an error.

    Raises JudgeError for a url or a key that cannot be used, and where the server does not answer, or lists no single
    model and none is given.
    """

    parallel = 8

    def __init__(
        self, url: str, model: str | None = None, timeout: float = 120.0, pause: float = 1.0
    ) -> None:
        self._url, self._pause = _checked(url), pause
        self._transport = Transport(self._url, timeout)
        self._heard = -float("inf")  # when it answered last, whomever
        self._model = self._only_model() if model is None else model
        self.name = f"{self._model} at {self._url}"

    def reads(self, question: Question) -> bool:
        return True

    def reply(self, question: Question, faults: list[tuple[str, str]]) -> str:
        content: list[dict[str, Any]] = [{"type": "text", "text": render(question)}]
        if question.image is not None:
            content.insert(0, {"type": "image_url", "image_url": {"url": _data_uri(question.image)}})
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        for answer, problem in faults:
            messages.append({"role": "assistant", "content": answer})
            messages.append({"role": "user", "content": correction(problem)})
        request = {"model": self._model, "messages": messages, "temperature": 0, "max_tokens": 1024}
        completion = self._patiently(question, request)
        try:
            text = completion["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError) as error:
            shown = printable(repr(completion), 80)
            raise JudgeFault(f"the server's answer is no chat completion: {shown}") from error
        if not isinstance(text, str):
            raise JudgeFault("the server's answer holds no text")
        return text

    def _patiently(self, question: Question, request: Any) -> Any:
        """Ask through an outage, with growing pauses.

        Raises JudgeFault where the server answers others meanwhile, and JudgeError where it answers nobody.
        """
        begin, previous, attempt = time.monotonic(), -float("inf"), 0
        while True:
            asked = time.monotonic()
            try:
                return self._request("/chat/completions", request)
            except _Refusal as refusal:
                if self._answers_probe():
                    raise JudgeFault(str(refusal)) from refusal
                raise
            except _Outage as outage:
                attempt += 1
                if attempt >= TRIES:
                    self._check_patience(question, attempt, outage, begin, previous)
                previous = asked
                time.sleep(self._wait(attempt, outage))

    def _check_patience(
        self, question: Question, attempt: int, outage: _Outage, begin: float, previous: float
    ) -> None:
        """Raises JudgeFault or JudgeError where another attempt would be one too many."""
        if self._heard > previous or self._answers_probe():
            turned_away = time.monotonic() - begin
            if not outage.busy or turned_away >= TURNED_AWAY * self._pause:
                raise JudgeFault(str(outage)) from outage
        elif time.monotonic() - max(begin, self._heard) >= PATIENCE * self._pause:
            raise JudgeError(self._gone(question, attempt, outage)) from outage

    def _answers_probe(self) -> bool:
        """Whether it answers another question: a small one, so that nobody else's has to be under way."""
        try:
            self._request("/chat/completions", {"model": self._model, **_PROBE})
        except (JudgeFault, JudgeError):
            return False
        return True

    def _wait(self, attempt: int, outage: _Outage) -> float:
        # spread out, so that the questions of all threads do not come back at once
        pause = min(self._pause * 2 ** (attempt - 1), LONGEST_PAUSE) * random.uniform(0.5, 1)
        if outage.retry_after is None:
            return pause
        if outage.retry_after > LONGEST_RETRY_AFTER:
            said = f"{self._url} asks to be left alone for {outage.retry_after:.0f} s"
            raise JudgeFault(said) if self._answers_probe() else JudgeError(f"{said}; go on after that")
        return outage.retry_after + random.uniform(0, self._pause)

    def _gone(self, question: Question, attempts: int, outage: _Outage) -> str:
        return (
            f"{self.name}: no answer to {question.qid} in {attempts} attempts, nor to others: {outage}; "
            "what it answered before is kept, and the same command goes on there"
        )

    def _only_model(self) -> str:
        try:
            names = [entry["id"] for entry in self._request("/models", None)["data"]]
        except (JudgeFault, KeyError, TypeError) as error:
            raise JudgeError(
                f"{self._url}/models lists no models ({error}); name the judge's model"
            ) from error
        if len(names) != 1:
            shown = printable(", ".join(map(str, names)) or "no model")
            raise JudgeError(f"{self._url} serves {shown}; name the judge's model")
        if not isinstance(names[0], str) or printable(names[0]) != names[0]:
            raise JudgeError(
                f"{self._url} serves {printable(repr(names[0]))}, which is no name; name the judge's model"
            )
        return names[0]

    def _request(self, path: str, body: Any) -> Any:
        data = None if body is None else json.dumps(body).encode()
        try:
            reply = self._transport.send(self._url + path, data, _headers())
        except TooLongError as error:
            raise JudgeFault(str(error)) from error
        except TransportError as error:
            if error.connected:
                raise _Outage(str(error)) from error
            said = f"{self._url} cannot be reached: {error}"
            # whoever was there before may come back
            raise JudgeError(said) if self._heard < 0 else _Outage(said) from error
        self._check_status(path, reply)
        try:
            found = json.loads(reply.body)
        except (ValueError, RecursionError) as error:
            raise _Outage(f"the server's answer is no JSON: {printable(str(error))}") from error
        self._heard = time.monotonic()
        return found

    def _check_status(self, path: str, reply: Reply) -> None:
        if reply.status == 200:
            return
        said = f"{self._url}{path} answered {reply.status} {reply.reason}".rstrip()
        if reply.status in _QUESTIONS_OWN:
            raise JudgeFault(said)
        if reply.status >= 500 or reply.status in _PASSING:
            busy = reply.status in (429, 503)
            raise _Outage(said, busy, reply.retry_after)
        if 300 <= reply.status < 400:
            raise JudgeError(
                f"{said} and points to {reply.location or 'nowhere'}; the key is not sent there: "
                "give that server's own /v1 as the judge if you mean it"
            )
        raise _Refusal(said)


def _checked(url: str) -> str:
    shown = printable(url)
    try:
        parts = urlsplit(url)
        well_formed = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        well_formed = False
    if not well_formed or shown != url or " " in url:
        raise JudgeError(f"the judge's url is {shown!r}, expected http://HOST/v1 or https://HOST/v1")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        # it would stand in the datasheet
        raise JudgeError(
            "the judge's url holds a user name, a password, a query or a fragment, expected http://HOST/v1; "
            "the key belongs in OPENAI_API_KEY"
        )
    return url.rstrip("/")


def _headers() -> dict[str, str]:
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("OPENAI_API_KEY", "").strip():
        if not (key.isascii() and key.isprintable()):
            raise JudgeError("OPENAI_API_KEY holds characters that cannot stand in a header, expected a key")
        headers["Authorization"] = f"Bearer {key}"
    return headers


def _data_uri(path: Path) -> str:
    """The picture as JPEG, at most ``LONGEST_SIDE`` pixels wide and high."""
    from elva.pictures import PictureError, read_rgb

    buffer = io.BytesIO()
    try:
        small = read_rgb(path)
    except PictureError as error:
        raise JudgeFault(f"the picture cannot be read: {error}") from error
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    small.save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
