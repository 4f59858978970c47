"""The human check without a browser: decisions, the report, and the server's manners."""

from __future__ import annotations

import base64
import errno
import hashlib
import http.client
import io
import json
import re
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from elva.data.mrbench import build
from elva.data.mrbench.review import Review, key
from elva.data.mrbench.rules import RulesJudge
from elva.data.mrbench.server import _Handler, serve
from elva.data.records import DataError
from elva.intervals import wilson
from elva.pictures import FORMATS


@pytest.fixture
def built(paper_rows: Path, tmp_path: Path) -> Path:
    build(paper_rows, RulesJudge(), tmp_path / "mrbench", per_task=3)
    return tmp_path / "mrbench"


def test_sample_is_seeded_and_holds_both_verdicts(built: Path) -> None:
    first, again, larger = Review(built, 4), Review(built, 4), Review(built, 5)
    assert first.items == again.items
    assert first.items != Review(built, 4, seed=1).items
    states = [item.state for item in first.items]
    assert states.count("picked") == 4
    assert states.count("fewer") == 1
    assert {key(item) for item in first.items if item.state == "picked"} < {
        key(item) for item in larger.items
    }


def test_decisions_are_kept_and_reported(built: Path) -> None:
    review = Review(built, 4)
    picked = [item for item in review.items if item.state == "picked"]
    fewer = next(item for item in review.items if item.state == "fewer")
    grain = {"kind": "entity", "text": picked[1].text[:3], "start": 0, "end": 3}
    review.decide({"key": key(picked[0]), "decision": "accepted"})
    review.decide({"key": key(picked[1]), "decision": "corrected", "grains": [grain]})
    review.decide({"key": key(picked[2]), "decision": "rejected"})
    report = review.decide({"key": key(fewer), "decision": "accepted"})
    counts = [
        report[name] for name in ("sample", "reviewed", "looked_at", "accepted", "corrected", "rejected")
    ]
    assert counts == [4, 3, 4, 1, 1, 1]
    assert report["acceptance_rate"] == pytest.approx(1 / 3)
    assert report["interval"] == pytest.approx(wilson(1 / 3, 3))
    # the person sees two grains in one of the three picked ones and none in the fourth: (2/4 − 3/8) / (1 − 3/8)
    assert report["agreement"]["kappa"] == pytest.approx(0.2)
    again = Review(built, 4)
    assert again.report() == json.loads(json.dumps(report)) | {"interval": report["interval"]}
    assert again.decision(picked[1]) == {"decision": "corrected", "grains": [grain]}
    datasheet = (built / "README.md").read_text(encoding="utf-8")
    assert "3 picked queries looked at: 1 accepted, 1 corrected, 1 rejected; acceptance 33.3 %" in datasheet
    assert "| people | 4 |" in datasheet
    # a change of mind replaces the former decision
    assert again.decide({"key": key(picked[2]), "decision": "accepted"})["accepted"] == 2


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ([], "a list given"),
        ({"key": "nobody", "decision": "accepted"}, "key is 'nobody'"),
        ({"key": ["x"], "decision": "accepted"}, "key is"),
        ({"decision": "fine"}, "decision is 'fine', expected one of accepted, corrected, rejected"),
        ({"decision": "corrected"}, '"grains" must be a list'),
        ({"decision": "corrected", "grains": [{"kind": "x", "text": "y"}]}, "grains: "),
    ],
)
def test_nonsense_changes_nothing(built: Path, request_: Any, message: str) -> None:
    review = Review(built, 4)
    if isinstance(request_, dict):
        request_ = {"key": key(review.items[0]), **request_}
    with pytest.raises(ValueError, match=message):
        review.decide(request_)
    assert not (built / "mrbench/review.json").exists()
    assert review.report()["looked_at"] == 0


def test_other_directories_and_damaged_reviews_are_refused(paper_rows: Path, built: Path) -> None:
    with pytest.raises(DataError, match=r"no mrbench/judged\.jsonl"):
        Review(paper_rows)


def change(file: Path, **changes: Any) -> None:
    """The second line of a file, changed; a field that is ``...`` is taken out."""
    lines = file.read_text(encoding="utf-8").splitlines()
    record = {name: value for name, value in (json.loads(lines[1]) | changes).items() if value is not ...}
    lines[1] = json.dumps(record)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


GRAIN = {"key": "entity", "value": "x", "start": 0, "end": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qid": 7}, "qid is 7, expected a string"),
        ({"text": None}, "text is None, expected a string"),
        ({"of_picture": "no"}, "of_picture is 'no', expected true or false"),
        ({"image": 3}, "image is 3, expected a string or null"),
        ({"task_id": "0"}, "task_id is '0', expected one of 0, 1, "),
        ({"task_id": 5}, "task_id is 5, expected one of 0, 1, "),
        ({"state": []}, "state is [], expected one of picked, spare, fewer"),
        ({"state": ...}, "the fields state are missing or unknown, expected dataset, grains, "),
        ({"grains": 4}, "grains is '4', expected a list of objects"),
        ({"grains": ["x"]}, "grains[0] is 'x', expected a key (entity, "),
        ({"text": "a dog", "grains": [GRAIN]}, "grains[0] is '{"),
        ({"text": "x y", "grains": [GRAIN | {"key": "colour"}]}, "grains[0] is '{"),
        ({"text": "x y", "grains": [GRAIN | {"end": 1.0}]}, "grains[0] is '{"),
        ({"text": "x y", "grains": [GRAIN, GRAIN]}, "the grains 'x' and 'x' overlap"),
    ],
)
def test_a_judged_query_that_no_build_wrote_names_its_line(
    built: Path, changes: dict[str, Any], message: str
) -> None:
    change(built / "mrbench/judged.jsonl", **changes)
    expected = f"^mrbench/judged.jsonl:2: -: no record of a judged query: {re.escape(message)}[^\n]*$"
    with pytest.raises(DataError, match=expected):
        Review(built)


def test_a_query_is_judged_once(built: Path) -> None:
    file = built / "mrbench/judged.jsonl"
    first = file.read_text(encoding="utf-8").splitlines()[0]
    change(file, **json.loads(first))
    with pytest.raises(DataError, match=r"^mrbench/judged.jsonl:2: \S+: a second record of this query"):
        Review(built)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "malformed JSON: Expecting property name .* line 1 column 2"),
        ("[]", "expected an object with an object decisions"),
        ({"decisions": []}, "expected an object with an object decisions"),
        ({"decisions": {"nobody/9:1": {}}}, "decisions: 'nobody/9:1' is no query of mrbench/judged.jsonl"),
        ({"decisions": {"QUERY": 3}}, "decisions: QUERY: 3, expected an object"),
        (
            {"decisions": {"QUERY": {"decision": "fine"}}},
            "decisions: QUERY: decision is 'fine', expected one of",
        ),
        ({"decisions": {"QUERY": {"decision": "corrected", "grains": 3}}}, "decisions: QUERY: grains: "),
    ],
)
def test_a_damaged_review_is_refused(built: Path, content: Any, message: str) -> None:
    """Also where it speaks of a query outside of the sample."""
    name = next(
        iter({key(item) for item in Review(built, 9).items} - {key(item) for item in Review(built, 1).items})
    )
    text = content if isinstance(content, str) else json.dumps(content)
    (built / "mrbench/review.json").write_text(text.replace("QUERY", name), encoding="utf-8")
    message = message.replace("QUERY", re.escape(name))
    with pytest.raises(DataError, match=rf"review.json: no review of this directory \({message}[^\n]*$"):
        Review(built, 1)


@pytest.mark.parametrize("content", [None, "[]", "{}", "{"])
def test_what_is_saved_is_not_called_lost_where_the_datasheet_cannot_be_written(
    port: int, built: Path, content: str | None
) -> None:
    statistics = built / "mrbench/statistics.json"
    statistics.unlink()
    if content is not None:
        statistics.write_text(content, encoding="utf-8")
    name = key(Review(built, 4).items[0])
    body = json.dumps({"key": name, "decision": "accepted"}).encode()
    status, answer = send(port, "POST", "/api/review", body, Content_Type="application/json")
    assert status == 200
    found = json.loads(answer)
    assert found["report"]["looked_at"] == 1
    assert found["warning"].startswith("saved, but README.md is not brought up to date: ")
    assert "statistics.json" in found["warning"]
    assert Review(built, 4).report()["looked_at"] == 1


def test_a_client_that_goes_away_is_no_news(
    port: int, built: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()

    def gone(handler: Any, *_: Any) -> None:
        answered.set()
        raise BrokenPipeError

    monkeypatch.setattr(_Handler, "_send", gone)
    connection = socket.create_connection(("127.0.0.1", port), timeout=5)
    connection.sendall(b"GET / HTTP/1.0\r\nHost: 127.0.0.1:1\r\n\r\n")
    assert connection.recv(1) == b""
    connection.close()
    assert answered.is_set()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_of_every_accepted_format_is_served_as_browsers_show_it(built: Path, kind: str) -> None:
    image = built / "picture"
    try:
        Image.new("RGB", (8, 8), "red").save(image, kind)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {kind}")
    change(built / "mrbench/judged.jsonl", image="picture", text="x y", grains=[], state="picked")
    review = Review(built)
    place = next(number for number, item in enumerate(review.items) if item.image == "picture")
    server = serve(review, 0)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    status, headers, body = fetch(server.server_port, f"/picture/{place}/query")
    server.shutdown()
    server.server_close()
    assert status == 200
    served = {
        "image/png": "PNG",
        "image/jpeg": "JPEG",
        "image/webp": "WEBP",
        "image/gif": "GIF",
        "image/bmp": "BMP",
    }
    with Image.open(io.BytesIO(body)) as shown:
        assert shown.format == served[headers["Content-Type"]]
        red, green, blue = shown.convert("RGB").getpixel((4, 4))
    assert red > 200 and max(green, blue) < 50


@pytest.fixture
def port(built: Path) -> Iterator[int]:
    server = serve(Review(built, 4), 0)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def send(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content


def test_pages_items_and_pictures(port: int, built: Path) -> None:
    status, page = send(port, "GET", "/")
    assert status == 200
    assert b"http://" not in page
    assert b"https://" not in page
    items = json.loads(send(port, "GET", "/api/items")[1])["items"]
    assert len(items) == 5
    shown = next(item for item in items if item["positive_picture"])
    assert send(port, "GET", shown["positive_picture"])[1].startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/picture/../../../etc/passwd",
        "/picture/0/../../secret",
        "/picture/99999/query",
        "/picture/-1/query",
        "/picture/%2e%2e/query",
        "/mbeir_images/1.png",
        "//etc/passwd",
        "/page.html",
    ],
)
def test_no_other_file_is_served(port: int, path: str) -> None:
    assert send(port, "GET", path)[0] == 404


def test_a_picture_outside_of_the_directory_is_not_served(built: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    file = built / "mrbench/judged.jsonl"
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps({**record, "positive_image": "../secret.png"}) for record in records]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    server = serve(Review(built, 4), 0)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    status, content = send(server.server_port, "GET", "/picture/0/positive")
    server.shutdown()
    server.server_close()
    assert status == 404
    assert b"secret" not in content


def test_only_json_from_this_machine_is_taken(port: int, built: Path) -> None:
    json_type = {"Content_Type": "application/json"}
    assert send(port, "POST", "/api/review", b"{", **json_type)[0] == 400
    assert send(port, "POST", "/api/review", b"\xff", **json_type)[0] == 400
    assert send(port, "POST", "/api/review", b"[" * 60_000, **json_type)[0] == 400
    assert send(port, "POST", "/api/review", b"{}", **json_type, Content_Length="999999999")[0] == 400
    assert send(port, "POST", "/api/review", b"{}", Content_Type="text/plain")[0] == 404
    assert send(port, "POST", "/elsewhere", b"{}", **json_type)[0] == 404
    assert send(port, "GET", "/api/items", Host="evil.example:80")[0] == 403
    assert not (built / "mrbench/review.json").exists()


def test_a_port_in_use_says_so(port: int, built: Path) -> None:
    with pytest.raises(OSError, match=f"port {port} is in use; choose another with --port"):
        serve(Review(built, 4), port)


def fetch(port: int, path: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path)
    response = connection.getresponse()
    found = response.status, dict(response.getheaders()), response.read()
    connection.close()
    return found


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


@pytest.mark.parametrize(
    ("name", "content", "served"),
    [
        ("a.svg", SVG, None),
        ("a.png", SVG, None),
        ("a.jpg", b"<html><script>alert(1)</script>", None),
        ("a.png", b"", None),
        ("a.txt", b"\x89PNG\r\n\x1a\n", "image/png"),
        ("a.jpg", b"RIFF0000WEBPVP8 ", "image/webp"),
    ],
)
def test_b23_only_pixels_are_served_as_a_picture(
    built: Path, name: str, content: bytes, served: str | None
) -> None:
    (built / name).write_bytes(content)
    file = built / "mrbench/judged.jsonl"
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps({**record, "positive_image": name}) for record in records]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    server = serve(Review(built, 4), 0)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    status, headers, body = fetch(server.server_port, "/picture/0/positive")
    server.shutdown()
    server.server_close()
    assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'; sandbox"
    assert headers["X-Content-Type-Options"] == "nosniff"
    if served is None:
        assert status == 404 and b"script" not in body
    else:
        assert (status, headers["Content-Type"], body) == (200, served, content)


def test_b23_the_page_runs_its_own_script_alone(port: int) -> None:
    _, headers, page = fetch(port, "/")
    policy = headers["Content-Security-Policy"]
    script = page.split(b"<script>")[1].split(b"</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert page.count(b"<script") == 1 and "default-src 'none'" in policy


def test_b23_a_reserved_port_says_so(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socketserver.TCPServer) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socketserver.TCPServer, "server_bind", refuse)
    with pytest.raises(
        PermissionError, match=r"^port 80 is reserved for the system; choose one from 1024 on with"
    ):
        serve(Review(built, 4), 80)


def test_b23_many_connections_at_once_are_taken(built: Path) -> None:
    """All before the server looks at the first of them."""
    server = serve(Review(built, 4), 0)
    assert server.request_queue_size == 128
    waiting = [socket.create_connection(("127.0.0.1", server.server_port), timeout=5) for _ in range(40)]
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    for connection in waiting:
        connection.sendall(b"GET / HTTP/1.0\r\nHost: 127.0.0.1:1\r\n\r\n")
    assert all(connection.recv(100).startswith(b"HTTP/1.0 200") for connection in waiting)
    for connection in waiting:
        connection.close()
    server.shutdown()
    server.server_close()


def test_b23_two_servers_lose_no_decision(built: Path) -> None:
    first, second = Review(built, 4), Review(built, 4)
    threads = [
        threading.Thread(target=review.decide, args=({"key": key(item), "decision": "accepted"},))
        for review, items in ((first, first.items[::2]), (second, second.items[1::2]))
        for item in items
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Review(built, 4).report()["looked_at"] == len(first.items) == 5
    assert not (built / "mrbench/.lock").exists()


def test_b23_a_correction_is_stored_as_read_and_a_refused_one_not_at_all(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    review = Review(built, 4)
    one, other = review.items[:2]
    grain = {"kind": "entity", "text": one.text[:3], "start": 0, "end": 3}
    poisoned = {**grain, "\ud800": "\udfff", "note": ["x"] * 50}
    review.decide({"key": key(one), "decision": "corrected", "grains": [poisoned]})
    assert review.decision(one) == {"decision": "corrected", "grains": [grain]}
    assert Review(built, 4).decision(one) == {"decision": "corrected", "grains": [grain]}

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left"):
            review.decide({"key": key(other), "decision": "accepted"})
    assert review.decision(other) is None
    assert review.decide({"key": key(other), "decision": "rejected"})["looked_at"] == 2


def test_b23_a_full_disk_is_told_to_the_page(port: int, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    name = key(Review(built, 4).items[0])
    monkeypatch.setattr(Path, "write_text", full)
    body = json.dumps({"key": name, "decision": "accepted"}).encode()
    status, answer = send(port, "POST", "/api/review", body, Content_Type="application/json")
    assert (status, json.loads(answer)["error"]) == (
        500,
        "cannot be written: [Errno 28] No space left on device",
    )
