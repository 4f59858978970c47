"""The review's page, served to this machine alone: no path of the client's ever names a file."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import io
import json
import re
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from elva.data.mrbench.answers import KINDS
from elva.data.mrbench.judged import Judged
from elva.data.mrbench.review import DatasheetError, Review, key
from elva.data.records import DataError

HOST = "127.0.0.1"
LONGEST_BODY = 1 << 16
LONGEST_SIDE = 1600
"""Pixels of a picture that is converted to be shown."""
NOTHING_RUNS = "default-src 'none'; frame-ancestors 'none'; sandbox"
"""The policy of what is no page: whatever it is, opened by itself it runs nothing."""
_PICTURE = re.compile(r"/picture/(\d{1,9})/(query|positive)")


def serve(review: Review, port: int) -> ThreadingHTTPServer:
    """A bound server (``serve_forever`` runs it) on 127.0.0.1; port 0 takes any free one.

    Raises OSError, saying what to do, where the port is taken or may not be used.
    """

    class Handler(_Handler):
        pass

    Handler.review = review
    try:
        return _Server((HOST, port), Handler)
    except OSError as error:
        if isinstance(error, PermissionError):
            raise PermissionError(
                f"port {port} is reserved for the system; choose one from 1024 on with --port, or 0 for any free one"
            ) from error
        if error.errno == errno.EADDRINUSE:
            raise OSError(
                f"port {port} is in use; choose another with --port, or 0 for any free one"
            ) from error
        raise


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # a page with all its pictures, in several tabs; the default of 5 turns some of them away
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        # whoever closes the page in the middle of a picture has done nothing wrong
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    review: Review
    timeout = 30

    def do_GET(self) -> None:
        if not self._is_local():
            return
        if self.path == "/":
            page = Path(__file__).with_name("page.html").read_bytes()
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", page, _page_policy(page))
        elif self.path == "/api/items":
            items = [self._item(number, item) for number, item in enumerate(self.review.items)]
            self._send_json(HTTPStatus.OK, {"kinds": KINDS, "items": items, "report": self.review.report()})
        elif match := _PICTURE.fullmatch(self.path):
            self._send_picture(int(match[1]), match[2])
        else:
            self._send_json(HTTPStatus.NOT_FOUND, {"error": "no such page"})

    def do_POST(self) -> None:
        if not self._is_local():
            return
        # A form of another site cannot send this type without asking first.
        if self.path != "/api/review" or self.headers.get_content_type() != "application/json":
            self._send_json(HTTPStatus.NOT_FOUND, {"error": "expected JSON at /api/review"})
            return
        try:
            report = self.review.decide(self._body())
        except DatasheetError as error:
            self._send_json(HTTPStatus.OK, {"report": error.report, "warning": str(error)})
        except (ValueError, RecursionError) as error:
            self._send_json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        except OSError as error:
            self._send_json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": f"cannot be written: {error}"})
        else:
            self._send_json(HTTPStatus.OK, {"report": report})

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: the terminal shows the result alone."""

    def _is_local(self) -> bool:
        # Another site's name that resolves to this machine must not read the pictures.
        host = (self.headers.get("Host") or "").rpartition(":")[0]
        if host in (HOST, "localhost"):
            return True
        self._send_json(HTTPStatus.FORBIDDEN, {"error": f"open http://{HOST} instead"})
        return False

    def _body(self) -> Any:
        length = self.headers.get("Content-Length") or ""
        if not (length.isascii() and length.isdigit() and int(length) <= LONGEST_BODY):
            raise ValueError(f"Content-Length is {length!r}, expected at most {LONGEST_BODY}")
        try:
            return json.loads(self.rfile.read(int(length)).decode("utf-8"))
        except ValueError as error:
            raise ValueError(f"the request is no JSON: {error}") from error

    def _item(self, number: int, item: Judged) -> dict[str, Any]:
        return {
            "key": key(item),
            "task": f"{item.dataset} task {item.task_id}",
            "text": item.text,
            "of_picture": item.of_picture,
            "grains": [{"kind": g.key, "text": g.value, "start": g.start, "end": g.end} for g in item.grains],
            "picture": f"/picture/{number}/query" if item.image else None,
            "positive_text": item.positive_text,
            "positive_picture": f"/picture/{number}/positive" if item.positive_image else None,
            "review": self.review.decision(item),
        }

    def _send_picture(self, number: int, which: str) -> None:
        items = self.review.items
        relative = None
        if number < len(items):
            relative = items[number].image if which == "query" else items[number].positive_image
        kind, content = None, b""
        if relative:
            with contextlib.suppress(OSError, DataError):
                kind, content = _shown(self.review.directory.path(relative))
        if kind is None:
            self._send_json(HTTPStatus.NOT_FOUND, {"error": "no such picture"})
        else:
            self._send(HTTPStatus.OK, kind, content)

    def _send_json(self, status: HTTPStatus, value: Any) -> None:
        self._send(status, "application/json", json.dumps(value).encode())

    def _send(
        self, status: HTTPStatus, content_type: str, content: bytes, policy: str = NOTHING_RUNS
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", policy)
        self.end_headers()
        self.wfile.write(content)


def _shown(path: Path) -> tuple[str | None, bytes]:
    """A picture as a browser shows it, as PNG where none shows its format; ``(None, b"")`` where it is none."""
    content = path.read_bytes() if path.is_file() else b""
    kind = picture_type(content)
    if kind is not None:
        return kind, content
    from elva.pictures import PictureError, read_rgb

    buffer = io.BytesIO()
    try:
        picture = read_rgb(path)
    except PictureError:
        return None, b""
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    picture.save(buffer, "PNG")
    return "image/png", buffer.getvalue()


def picture_type(content: bytes) -> str | None:
    """The type of a picture of pixels, by its first bytes; None for all else, such as SVG, which may hold scripts."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for start, kind in _PIXELS.items() if content.startswith(start)), None)


_PIXELS = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"BM": "image/bmp",
}


def _page_policy(page: bytes) -> str:
    """The page's own script runs, and no other."""
    script = page.split(b"<script>")[1].split(b"</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode("ascii")
    return (
        "default-src 'none'; connect-src 'self'; img-src 'self' data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
