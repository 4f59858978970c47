"""A judge behind an OpenAI-compatible server (vLLM, SGLang, …): chat completions over HTTP."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from elva.data.mrbench.answers import Question
from elva.data.mrbench.judges import JudgeError, JudgeFault
from elva.data.mrbench.prompt import correction, render

LONGEST_SIDE = 1024
# What the next query may not meet again: too long, too large, too many at once, the server's own trouble.
_PASSING = frozenset({400, 408, 409, 413, 422, 429})


class EndpointJudge:
    """Asks ``model`` at ``url`` (with its ``/v1``); the key, if one is needed, is in ``OPENAI_API_KEY``.

    ``timeout`` and ``pause`` (before a question is repeated after a fault) are in seconds.
    Raises JudgeError where the server does not answer, or lists no single model and none is given.
    """

    parallel = 8

    def __init__(
        self, url: str, model: str | None = None, timeout: float = 120.0, pause: float = 1.0
    ) -> None:
        self._url, self._timeout, self._pause = url.rstrip("/"), timeout, pause
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
        try:
            completion = self._request("/chat/completions", request)
        except JudgeFault:
            time.sleep(self._pause)
            raise
        try:
            text = completion["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError) as error:
            raise JudgeFault(f"the server's answer is no chat completion: {str(completion)[:80]}") from error
        if not isinstance(text, str):
            raise JudgeFault("the server's answer holds no text")
        return text

    def _only_model(self) -> str:
        try:
            names = [entry["id"] for entry in self._request("/models", None)["data"]]
        except (JudgeFault, KeyError, TypeError) as error:
            raise JudgeError(
                f"{self._url}/models lists no models ({error}); name the judge's model"
            ) from error
        if len(names) != 1:
            raise JudgeError(
                f"{self._url} serves {', '.join(map(str, names)) or 'no model'}; name the judge's model"
            )
        return str(names[0])

    def _request(self, path: str, body: Any) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(self._url + path, data, headers)
            with urllib.request.urlopen(request, timeout=self._timeout) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            said = f"{self._url}{path} answered {error.code} {error.reason}"
            if error.code >= 500 or error.code in _PASSING:
                raise JudgeFault(said) from error
            raise JudgeError(said) from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise JudgeFault(f"no answer within {self._timeout:g} s") from error
            raise JudgeError(f"{self._url} cannot be reached: {error.reason}") from error
        except TimeoutError as error:
            raise JudgeFault(f"no answer within {self._timeout:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise JudgeFault(f"the connection broke: {error}") from error
        except ValueError as error:
            raise JudgeFault(f"the server's answer is no JSON: {error}") from error


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
