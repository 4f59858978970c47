"""The server judge's manners: whom it sends its key, how long and how much it listens, what it makes of an outage."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from elva.data.mrbench import build, endpoint
from elva.data.mrbench.answers import AnswerError, Question, parse_answer
from elva.data.mrbench.endpoint import EndpointJudge
from elva.data.mrbench.judged import read_judged
from elva.data.mrbench.judges import JudgeError, JudgeFault, ask
from elva.data.mrbench.transport import LONGEST_BODY

QUESTION = Question("9:1", "a red dog on a sofa", None)
GOOD = {"grains": [{"kind": "entity", "text": "dog"}, {"kind": "attribute", "text": "red"}]}
Answering = Callable[[BaseHTTPRequestHandler, dict[str, Any] | None], None]


def completion(content: str) -> bytes:
    return json.dumps({"choices": [{"message": {"content": content}}]}).encode()


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


class Server:
    """Counts requests, keeps their headers, and leaves the answer to ``answering``."""

    def __init__(self, answering: Answering | None = None) -> None:
        self.answering = answering or (lambda handler, _: send(handler, 200, completion(json.dumps(GOOD))))
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.headers.append(dict(self.headers))
                outer.answering(self, None)

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.headers.append(dict(self.headers))
                outer.times.append(time.monotonic())
                outer.answering(self, request)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def judge(self, timeout: float = 20, pause: float = 0) -> EndpointJudge:
        return EndpointJudge(self.url, "m", timeout=timeout, pause=pause)


@pytest.fixture
def servers() -> Iterator[Callable[..., Server]]:
    made: list[Server] = []

    def make(answering: Answering | None = None) -> Server:
        made.append(Server(answering))
        return made[-1]

    yield make
    for server in made:
        server.server.shutdown()
        server.server.server_close()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_b18_the_key_follows_no_redirect(
    status: int, servers: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    thief = servers()
    place = f"{thief.url}/chat/completions"
    judge = servers(lambda handler, _: send(handler, status, Location=place)).judge()
    with pytest.raises(
        JudgeError, match=rf"answered {status} .* and points to {place}; the key is not sent there"
    ):
        judge.reply(QUESTION, [])
    with pytest.raises(JudgeError, match=f"/models answered {status} "):
        EndpointJudge(judge._url, pause=0)
    assert thief.headers == []


def test_b18_the_key_goes_to_the_judge(
    servers: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", " secret\n")
    server = servers()
    assert json.loads(server.judge().reply(QUESTION, [])) == GOOD
    assert [headers["Authorization"] for headers in server.headers] == ["Bearer secret"]
    monkeypatch.setenv("OPENAI_API_KEY", "sec\nret")
    with pytest.raises(JudgeError, match="OPENAI_API_KEY holds characters that cannot") as caught:
        server.judge().reply(QUESTION, [])
    assert "sec" not in str(caught.value)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/v1", "http:///v1", "http://h:99999/v1", "host/v1",
                                 "http://a b/v1", "http://host/\nv1"])  # fmt: skip
def test_b18_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(
        JudgeError, match=r"the judge's url is .*, expected http://HOST/v1 or https://HOST/v1"
    ):
        EndpointJudge(url, "m")


def test_b18_a_password_in_the_url_would_stand_in_the_datasheet() -> None:
    with pytest.raises(JudgeError, match="holds a user name, a password") as caught:
        EndpointJudge("https://me:hunter2@host/v1", "m")
    assert "hunter2" not in str(caught.value)


def test_b19_an_outage_is_waited_for(servers: Callable[..., Server]) -> None:
    asked: list[int] = []

    def answering(handler: BaseHTTPRequestHandler, _: Any) -> None:
        asked.append(1)
        bad = (500, 503, 429, 502)
        if len(asked) <= len(bad):
            send(handler, bad[len(asked) - 1])
        else:
            send(handler, 200, completion(json.dumps(GOOD)))

    outcome = ask(servers(answering).judge(), QUESTION)
    # an outage is no attempt of the judge's
    assert outcome.answer is not None and outcome.attempts == 1
    assert len(asked) == 5


def test_b19_pauses_grow_and_are_spread(
    servers: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    judge = servers(lambda handler, _: send(handler, 500)).judge(pause=1)
    monkeypatch.setattr(endpoint.time, "sleep", waited.append)
    monkeypatch.setattr(endpoint, "PATIENCE", 0)
    with pytest.raises(JudgeError):
        judge.reply(QUESTION, [])
    assert len(waited) == endpoint.TRIES - 1
    assert all(2**n / 2 <= pause <= 2**n for n, pause in enumerate(waited))
    assert len({pause / 2**n for n, pause in enumerate(waited)}) == len(waited)


@pytest.mark.parametrize("form", ["1", "date"])
def test_b19_retry_after_is_obeyed(form: str, servers: Callable[..., Server]) -> None:
    def answering(handler: BaseHTTPRequestHandler, _: Any) -> None:
        if len(server.times) == 1:
            at = time.time() + 2
            value = form if form == "1" else time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(at))
            send(handler, 429, Retry_After=value)
        else:
            send(handler, 200, completion(json.dumps(GOOD)))

    server = servers(answering)
    server.judge().reply(QUESTION, [])
    assert server.times[1] - server.times[0] >= (1 if form == "1" else 0.9)


@pytest.mark.parametrize("value", ["nonsense", "-3", "1e9", "99999999999"])
def test_b19_an_unusable_retry_after(value: str, servers: Callable[..., Server]) -> None:
    judge = servers(lambda handler, _: send(handler, 503, Retry_After=value)).judge()
    expected = "asks to be left alone for" if value == "99999999999" else "answered 503"
    with pytest.raises(JudgeError, match=expected):
        judge.reply(QUESTION, [])


def test_b19_a_question_that_breaks_the_server_is_set_aside(servers: Callable[..., Server]) -> None:
    """Others are answered meanwhile, so that it is no outage."""

    def answering(handler: BaseHTTPRequestHandler, request: Any) -> None:
        if "poison" in json.dumps(request):
            send(handler, 500)
        else:
            send(handler, 200, completion(json.dumps(GOOD)))

    judge = servers(answering).judge(pause=0.02)
    stop = threading.Event()

    def others() -> None:
        while not stop.is_set():
            judge.reply(QUESTION, [])

    thread = threading.Thread(target=others)
    thread.start()
    try:
        with pytest.raises(JudgeFault, match="answered 500"):
            judge.reply(Question("9:2", "a poison dart", None), [])
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("status", [500, 503, 429, 403])
def test_one_question_that_is_always_refused_does_not_block_the_build(
    status: int, servers: Callable[..., Server], paper_rows: Path, tmp_path: Path
) -> None:
    """Alone, too, as in the second build, where all others are kept."""
    from elva.data.mrbench.rules import mark

    poison: list[str] = []
    state = {"healed": False}

    def answering(handler: BaseHTTPRequestHandler, request: Any) -> None:
        content = request["messages"][0]["content"]
        text = content if isinstance(content, str) else content[-1]["text"].rsplit("\n", 1)[1]
        if isinstance(content, list) and not poison:
            poison.append(text)
        if poison == [text] and not state["healed"]:
            send(handler, status, Retry_After="0")
        else:
            send(handler, 200, completion(json.dumps({"description": "", "grains": mark(text)})))

    server = servers(answering)
    out = tmp_path / "out"
    for asked_again in (False, True):
        judge = server.judge()
        before = len(server.times)
        statistics = build(paper_rows, judge, out, per_task=4, tasks=["mscoco_task0"])
        assert statistics["tasks"]["mscoco_task0"]["picked"] == 4
        aside = (out / "mrbench/set_aside.jsonl").read_text(encoding="utf-8")
        assert aside.count("\n") == 1 and f"answered {status}" in aside
        assert not asked_again or len(server.times) - before <= 2 * 3 * endpoint.TRIES
        shutil.rmtree(out)
    state["healed"] = True
    assert build(paper_rows, server.judge(), out, per_task=4, tasks=["mscoco_task0"])
    assert (out / "mrbench/set_aside.jsonl").read_text(encoding="utf-8") == ""


def test_a_question_that_is_told_to_wait_for_hours_is_set_aside_where_others_are_not(
    servers: Callable[..., Server],
) -> None:
    def answering(handler: BaseHTTPRequestHandler, request: Any) -> None:
        if "poison" in json.dumps(request):
            send(handler, 429, Retry_After="9999")
        else:
            send(handler, 200, completion(json.dumps(GOOD)))

    with pytest.raises(JudgeFault, match="asks to be left alone for 9999 s"):
        servers(answering).judge().reply(Question("9:2", "a poison dart", None), [])


def test_a_busy_question_waits_as_long_as_others_may_need(servers: Callable[..., Server]) -> None:
    """A rate limit lets others through and comes to an end; it sets nothing aside."""

    def answering(handler: BaseHTTPRequestHandler, request: Any) -> None:
        if isinstance(request["messages"][0]["content"], list) and len(server.times) < 4 * endpoint.TRIES:
            send(handler, 429, Retry_After="0")
        else:
            send(handler, 200, completion(json.dumps(GOOD)))

    server = servers(answering)
    assert json.loads(server.judge(pause=0.02).reply(QUESTION, [])) == GOOD


def test_b19_what_an_outage_left_open_is_asked_again(
    servers: Callable[..., Server], paper_rows: Path, tmp_path: Path
) -> None:
    from elva.data.mrbench.rules import mark

    state, lock = {"left": 3, "down": True}, threading.Lock()

    def answering(handler: BaseHTTPRequestHandler, request: Any) -> None:
        assert request is not None
        with lock:
            state["left"] -= 1
            down = state["down"] and state["left"] < 0
        if down:
            send(handler, 502)
            return
        text = request["messages"][0]["content"][-1]["text"].rsplit("\n", 1)[1]
        send(handler, 200, completion(json.dumps({"description": "Two dogs run.", "grains": mark(text)})))

    server = servers(answering)
    judge = EndpointJudge(server.url, "m", pause=0)
    out, log = tmp_path / "out", tmp_path / "out.answers.jsonl"
    with pytest.raises(JudgeError, match=r"no answer to 9:\d+ in 5 attempts, nor to others: .* answered 502 .*"
                                         "the same command goes on there"):  # fmt: skip
        build(paper_rows, judge, out, per_task=4, tasks=["mscoco_task0"])
    kept = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert len(kept) == 3 and all("grains" in line for line in kept)
    assert not out.exists()
    state["down"] = False
    before = len(server.times)
    build(paper_rows, judge, out, per_task=4, tasks=["mscoco_task0"])
    assert (out / "mrbench/set_aside.jsonl").read_text() == ""
    assert len(server.times) - before == len(read_judged(out)) - len(kept)


def test_b19_failures_of_earlier_versions_are_asked_again(
    servers: Callable[..., Server], paper_rows: Path, tmp_path: Path
) -> None:
    line = {"key": "k", "qid": "9:1", "attempts": 3, "reason": "no answer within 120 s"}
    (tmp_path / "out.answers.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    server = servers(lambda handler, _: send(handler, 200, completion("I would rather not.")))
    with pytest.raises(
        JudgeError, match=r"no usable answer to any of \d+ questions; .* there is no JSON object"
    ):
        build(paper_rows, server.judge(), tmp_path / "out", per_task=3, tasks=["mscoco_task0"])
    assert (tmp_path / "out.answers.jsonl").read_text(encoding="utf-8").count("\n") == 1


def trickle(handler: BaseHTTPRequestHandler, _: Any) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    drip(handler)


def trickle_headers(handler: BaseHTTPRequestHandler, _: Any) -> None:
    handler.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
    drip(handler)


def drip(handler: BaseHTTPRequestHandler) -> None:
    try:
        for _ in range(100):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.1)
    except OSError:
        pass


@pytest.mark.parametrize("answering", [trickle, trickle_headers])
def test_b20_the_time_is_that_of_the_whole_answer(
    answering: Answering, servers: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "TRIES", 1)
    judge = servers(answering).judge(timeout=0.5)
    start = time.monotonic()
    with pytest.raises(JudgeError, match=r"no whole answer within 0.5 s"):
        judge.reply(QUESTION, [])
    assert time.monotonic() - start < 5


def negative_chunk(handler: BaseHTTPRequestHandler, _: Any) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n" + b" " * 4096)


def test_b20_a_chunk_of_negative_length_is_not_read_without_limit(
    servers: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "TRIES", 1)
    judge = servers(negative_chunk).judge(timeout=5)
    with pytest.raises(JudgeError, match=r"the connection broke: .*a chunk of -1 bytes"):
        judge.reply(QUESTION, [])


def endless(handler: BaseHTTPRequestHandler, _: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b" " * 65536)
    except OSError:
        pass


def test_b20_bytes_are_limited(servers: Callable[..., Server]) -> None:
    with pytest.raises(JudgeFault, match=f"the server's answer has more than {LONGEST_BODY} bytes"):
        servers(endless).judge().reply(QUESTION, [])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("x" * 60_000, "the answer has 60000 characters, at most 50000 allowed"),
        ('{"grains": ' + "[" * 20_000, "the answer is no JSON"),
        ('{"a":' * 8_000 + "1" + "}" * 8_000, "the answer is no JSON|must be a list"),
        ('{"grains": ' + "[" * 900 + "]" * 900 + "}", "every grain must be"),
        ('{"grains": [{"kind": "entity", "text": ' + "9" * 5000 + "}]}", "the answer is no JSON"),
        ('{"grains": [{"kind": "\\ud800", "text": "dog"}]}', "must be one of entity"),
        ('{"grains": [{"kind": "entity", "text": "\\udfff"}]}', "is not in the text"),
        ('{"grains": [{"kind": "entity", "text": "' + "y" * 40_000 + '"}]}', "is not in the text"),
    ],
)
def test_b20_answers_without_measure(content: str, reason: str, servers: Callable[..., Server]) -> None:
    outcome = ask(servers(lambda handler, _: send(handler, 200, completion(content))).judge(), QUESTION)
    assert outcome.answer is None and outcome.reason is not None
    with pytest.raises(AnswerError, match=reason):
        parse_answer(content, QUESTION)
    assert len(outcome.reason) < 400
    outcome.reason.encode("utf-8")


def test_b20_half_a_surrogate_pair_is_no_description() -> None:
    with pytest.raises(AnswerError, match="holds half of a surrogate pair") as caught:
        parse_answer('{"description": "a \\ud83d dog", "grains": []}', Question("9:1", None, None))
    str(caught.value).encode("utf-8")


@pytest.mark.parametrize("body", [b"[" * 100_000, b"\xff\xfe", b"9" * 6000, b"null", b"[]", b'"\\ud800"'])
def test_b20_a_body_that_is_no_completion(body: bytes, servers: Callable[..., Server]) -> None:
    with pytest.raises((JudgeFault, JudgeError)) as caught:
        servers(lambda handler, _: send(handler, 200, body)).judge().reply(QUESTION, [])
    assert len(str(caught.value)) < 400
    str(caught.value).encode("utf-8")


def test_b20_a_model_name_is_printable(servers: Callable[..., Server]) -> None:
    body = json.dumps({"data": [{"id": "evil\x1b[2J\ud800"}]}).encode()
    with pytest.raises(JudgeError, match="which is no name; name the judge's model") as caught:
        EndpointJudge(servers(lambda handler, _: send(handler, 200, body)).url)
    assert str(caught.value).isprintable()
