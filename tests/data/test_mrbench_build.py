"""`build` as a whole: with rules, with a server that often answers rubbish, and after a kill."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from elva.data.check import check
from elva.data.mbeir import DataError, MBEIRDirectory
from elva.data.mrbench import asking, build, open_judge
from elva.data.mrbench.endpoint import EndpointJudge
from elva.data.mrbench.judged import read_judged
from elva.data.mrbench.judges import JudgeError
from elva.data.mrbench.rules import RulesJudge, mark


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
    }


def sizes(root: Path) -> dict[str, int]:
    directory = MBEIRDirectory(root)
    return {task.name: len(directory.queries("test", *task)) for task in directory.tasks("test")}


def test_rules_pick_equally_many_of_the_rows_they_can_read(paper_rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    statistics = build(paper_rows, RulesJudge(), out, per_task=6)
    # CIRR has three queries with two grains; NIGHTS has no text at all; WebQA is none of the paper's rows.
    assert sizes(out) == {"cirr task7": 3, "mscoco task0": 3, "mscoco task3": 3}
    assert list(check(out)) == []
    assert statistics["per_task"] == 3
    assert statistics["tasks"]["nights_task4"] | {"sha256": ""} == {
        "queries": 8,
        "unreachable": 0,
        "unreadable": 8,
        "answered": 0,
        "retried": 0,
        "set_aside": 0,
        "fewer": 0,
        "picked": 0,
        "sha256": "",
    }
    for query in MBEIRDirectory(out).queries("test", "mscoco", 0):
        assert len(query.grains) >= 2
        assert all(query.text[grain.start : grain.end] == grain.value for grain in query.grains)
    for query in MBEIRDirectory(out).queries("test", "mscoco", 3):
        assert query.grains == ()
    pictures = {record.qid: record for record in read_judged(out) if record.task_id == 3}
    assert all(
        record.of_picture and len(record.grains) >= 2
        for record in pictures.values()
        if record.state != "fewer"
    )
    datasheet = (out / "README.md").read_text(encoding="utf-8")
    assert "Left out, because no query with two grains was found there: nights_task4." in datasheet
    assert "6 queries a task were asked for" in datasheet
    assert sum(statistics["kinds"].values()) == sum(
        len(record.grains) for record in read_judged(out) if record.state == "picked"
    )


def test_a_seed_gives_one_directory_and_another_seed_another(paper_rows: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        build(paper_rows, RulesJudge(), tmp_path / name, per_task=2, seed=seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


def test_names_are_no_html_in_the_datasheet(paper_rows: Path, tmp_path: Path) -> None:
    source = paper_rows.rename(tmp_path / "<img src=x>")
    judge = RulesJudge()
    judge.name = "<b>rules`"
    build(source, judge, tmp_path / "out", per_task=2)
    text = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "directory &lt;img src=x> in which the judge (&lt;b>rules\\`)" in text
    assert "<" not in text


def test_pictures_that_exist_are_not_copied(paper_rows: Path, tmp_path: Path) -> None:
    build(paper_rows, RulesJudge(), tmp_path / "out", per_task=1)
    assert os.path.samefile(paper_rows / "mbeir_images/3.png", tmp_path / "out/mbeir_images/3.png")


def test_bad_input_is_refused_before_anything_is_written(paper_rows: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x", encoding="utf-8")
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match="already exists and is not empty"):
        build(paper_rows, RulesJudge(), tmp_path / "full")
    with pytest.raises(ValueError, match="per_task must be at least 1, got 0"):
        build(paper_rows, RulesJudge(), tmp_path / "out", per_task=0)
    with pytest.raises(ValueError, match="no 'flickr'"):
        build(paper_rows, RulesJudge(), tmp_path / "out", tasks=["flickr"])
    with pytest.raises(ValueError, match="only a server"):
        open_judge("rules", "qwen")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["statistics.json", "set_aside.jsonl", "judged.jsonl", "picture.png"])
def test_pictures_in_the_benchmarks_own_folder_are_refused(
    paper_rows: Path, tmp_path: Path, name: str
) -> None:
    (paper_rows / "mbeir_images/3.png").rename(paper_rows / "mbeir_images/other.png")
    (paper_rows / "mrbench").mkdir()
    theirs = paper_rows / "mrbench" / name
    theirs.write_bytes((paper_rows / "mbeir_images/other.png").read_bytes())
    before = theirs.read_bytes()
    for file in paper_rows.rglob("*.jsonl"):
        if file != theirs:
            file.write_text(file.read_text().replace("mbeir_images/3.png", f"mrbench/{name}"))
    with pytest.raises(DataError, match=rf"mrbench/{name}: mrbench/ is the benchmark's own"):
        build(paper_rows, RulesJudge(), tmp_path / "out", per_task=6)
    assert theirs.read_bytes() == before


def test_no_multigrain_query_is_an_error(paper_rows: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="rules 1 found no query with two grains in nights_task4"):
        build(paper_rows, RulesJudge(), tmp_path / "out", tasks=["nights"])
    assert not (tmp_path / "out").exists()


class Stub:
    """An OpenAI-compatible server: for each query a fixed row of faults (often none), then the rules' answer."""

    FAULTS = ("", "", "broken json", "wrong kind", "status 500", "hangs up", "no completion", "always wrong")

    def __init__(self, constant: str | None = None) -> None:
        self.constant = constant
        self.faults = self.FAULTS
        self.asked: Counter[str] = Counter()
        self.pictures = 0
        self.corrections = 0
        self.lock = threading.Lock()
        self.stalls_after: int | None = None
        self.released = threading.Event()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(200, {"data": [{"id": "stub-vl"}]})

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stub.answer(self, request)

            def _send(self, status: int, value: object) -> None:
                body = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with suppress(BrokenPipeError):  # the client was interrupted
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler, request: dict) -> None:
        content = request["messages"][0]["content"]
        identity = json.dumps(content)
        with self.lock:
            self.asked[identity] += 1
            attempt = self.asked[identity]
            self.pictures += content[0]["type"] == "image_url"
            self.corrections += len(request["messages"]) > 1
        if self.stalls_after is not None and sum(self.asked.values()) > self.stalls_after:
            self.released.wait()
        choice = hashlib.blake2b(identity.encode(), digest_size=2).digest()[0]
        fault = self.constant or self.faults[choice % len(self.faults)]
        if fault == "always wrong" or (fault and attempt == 1):
            self.fail(handler, fault)
            return
        prompt = content[-1]["text"]
        of_picture = "The query is the picture" in prompt
        text = f"Two red dogs run {choice} times." if of_picture else prompt.rsplit("\n", 1)[1]
        reply = {"description": text, "grains": mark(text)}
        handler._send(200, {"choices": [{"message": {"content": json.dumps(reply)}}]})

    def fail(self, handler: BaseHTTPRequestHandler, fault: str) -> None:
        say = {
            "broken json": '{"grains": [',
            "wrong kind": '{"description": "a", "grains": [{"kind": "x", "text": "a"}]}',
        }
        if fault == "status 500":
            handler._send(500, {})
        elif fault == "status 401":
            handler._send(401, {})
        elif fault == "silence":
            time.sleep(0.8)
        elif fault == "hangs up":
            handler.connection.close()
        elif fault == "no completion":
            handler._send(200, b"<html>")
        else:
            handler._send(200, {"choices": [{"message": {"content": say.get(fault, "I would rather not.")}}]})


@pytest.fixture
def stub() -> Iterator[Stub]:
    server = Stub()
    yield server
    server.server.shutdown()
    server.server.server_close()


def judge_at(stub: Stub, timeout: float = 30) -> EndpointJudge:
    return EndpointJudge(stub.url, timeout=timeout, pause=0)


def test_a_server_that_answers_rubbish_still_gives_a_valid_directory(
    paper_rows: Path, tmp_path: Path, stub: Stub
) -> None:
    out = tmp_path / "out"
    stub.faults = (*Stub.FAULTS, "silence")
    statistics = build(paper_rows, judge_at(stub, timeout=0.5), out, per_task=5)
    assert list(check(out)) == []
    numbers = sizes(out)
    assert set(numbers) == {"cirr task7", "mscoco task0", "mscoco task3", "nights task4"}
    assert set(numbers.values()) == {statistics["per_task"]}
    rows = statistics["tasks"].values()
    assert sum(row["retried"] for row in rows) > 3
    aside = [json.loads(line) for line in (out / "mrbench/set_aside.jsonl").read_text().splitlines()]
    assert len(aside) == sum(row["set_aside"] for row in rows) > 0
    assert all("there is no JSON object" in record["reason"] for record in aside)
    picked = {record.qid for record in read_judged(out) if record.state == "picked"}
    assert picked.isdisjoint(record["qid"] for record in aside)
    assert max(stub.asked.values()) == 3
    assert stub.pictures > 0
    assert stub.corrections > 0
    # the stub's answers about texts are the rules' own
    agreement = statistics["agreement_with_rules"]
    assert (agreement["span_f1"], agreement["kind_f1"]) == (1, 1)
    assert "stub-vl at http" in (out / "README.md").read_text(encoding="utf-8")


def test_kept_answers_are_not_asked_again(paper_rows: Path, tmp_path: Path, stub: Stub) -> None:
    whole = build(paper_rows, judge_at(stub), tmp_path / "out", per_task=5)
    log = tmp_path / "out.answers.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    # what a kill leaves: some answers, and half of a line
    (tmp_path / "again.answers.jsonl").write_bytes(b"".join(lines[:7]) + lines[7][:20])
    stub.asked.clear()
    assert build(paper_rows, judge_at(stub), tmp_path / "again", per_task=5) == whole
    assert contents(tmp_path / "again") == contents(tmp_path / "out")
    unusable = (tmp_path / "out/mrbench/set_aside.jsonl").read_bytes().count(b"\n")
    assert len(stub.asked) == len(lines) - 7 + unusable
    assert (tmp_path / "again.answers.jsonl").read_bytes() == log.read_bytes()


def test_a_killed_build_goes_on_to_the_same_directory(paper_rows: Path, tmp_path: Path, stub: Stub) -> None:
    build(paper_rows, judge_at(stub), tmp_path / "whole", per_task=5)
    code = (
        "import sys; from elva.data.mrbench import build; from elva.data.mrbench.endpoint import EndpointJudge\n"
        "build(sys.argv[1], EndpointJudge(sys.argv[3], timeout=30, pause=0), sys.argv[2], per_task=5)"
    )
    out, log = tmp_path / "out", tmp_path / "out.answers.jsonl"
    stub.asked.clear()
    stub.stalls_after = 12
    process = subprocess.Popen([sys.executable, "-c", code, paper_rows, out, stub.url])
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_bytes().count(b"\n") >= 3) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    stub.stalls_after = None
    stub.released.set()
    kept = log.read_bytes().count(b"\n")
    assert kept >= 3
    assert not out.exists()
    stub.asked.clear()
    build(paper_rows, judge_at(stub), out, per_task=5)
    assert contents(out) == contents(tmp_path / "whole")


def test_an_interrupted_build_ends_at_once_and_keeps_its_answers(
    paper_rows: Path, tmp_path: Path, stub: Stub
) -> None:
    out, log = tmp_path / "out", tmp_path / "out.answers.jsonl"
    stub.faults = ("",)
    stub.stalls_after = 12
    command = [sys.executable, "-m", "elva.cli.main", "mrbench", "build", "--data", paper_rows]
    command += ["--judge", stub.url, "--out", out, "--per-task", "5"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        try:
            deadline = time.monotonic() + 60
            while sum(stub.asked.values()) <= stub.stalls_after and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(0.3)  # for the other answers to come in
            begin = time.monotonic()
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert time.monotonic() - begin < 10  # the answers would be waited for for two minutes
    assert process.returncode not in (0, 2)
    assert b"Traceback" not in said
    assert not out.exists()
    kept = [json.loads(line)["key"] for line in log.read_text(encoding="utf-8").splitlines()]
    assert len(kept) == len(set(kept)) >= 10
    stub.stalls_after = None
    stub.released.set()


def test_a_judge_that_never_answers_stops_the_build_and_is_asked_again_later(
    paper_rows: Path, tmp_path: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "HOPELESS", 4)
    stub.constant = "always wrong"
    with pytest.raises(
        JudgeError, match=r"no usable answer to 4 questions in a row.*there is no JSON object"
    ):
        build(paper_rows, judge_at(stub), tmp_path / "out", per_task=5)
    assert (tmp_path / "out.answers.jsonl").read_text() == ""
    stub.constant = None
    build(paper_rows, judge_at(stub), tmp_path / "out", per_task=5)
    assert list(check(tmp_path / "out")) == []


def test_a_wrong_key_and_a_closed_port_stop_at_once(paper_rows: Path, tmp_path: Path, stub: Stub) -> None:
    stub.constant = "status 401"
    with pytest.raises(JudgeError, match="answered 401"):
        build(paper_rows, judge_at(stub), tmp_path / "out", per_task=5)
    with pytest.raises(JudgeError, match="cannot be reached"):
        build(paper_rows, open_judge("http://127.0.0.1:9/v1", "any"), tmp_path / "out2", per_task=5)
    with pytest.raises(JudgeError, match="cannot be reached"):
        open_judge("http://127.0.0.1:9/v1")


KEPT = {"key": "k", "qid": "9:1", "attempts": 1, "text": "a dog", "grains": []}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{}", "key is None, expected a string"),
        ("[]", r"a record is \[\], expected an object"),
        ("{", "malformed JSON"),
        ("", "malformed JSON"),
        (json.dumps(KEPT | {"attempts": "1"}), "attempts is '1', expected a number from 1 on"),
        (json.dumps(KEPT | {"text": 3}), "text is 3, expected a string"),
        (
            json.dumps(KEPT | {"grains": [{"key": "entity", "value": "cat", "start": 2, "end": 5}]}),
            r"grains\[0\] is ",
        ),
    ],
)
def test_a_damaged_log_names_its_line(paper_rows: Path, tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "out.answers.jsonl").write_text(f"{json.dumps(KEPT)}\n{line}\n", encoding="utf-8")
    expected = (
        rf"out.answers.jsonl:2: no line of a build's answers: {message}.*; remove the line to ask again$"
    )
    with pytest.raises(ValueError, match=expected):
        build(paper_rows, RulesJudge(), tmp_path / "out")
