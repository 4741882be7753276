"""A small HTTP server whose threads end with its `with` block: a served policy, the mock lab's cameras and judge."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any, Self

from srpo_robot.errors import ArmError

_POLL_S = 0.05  # how soon `serve_forever` sees that it should end
_PATIENCE_S = 5.0  # with a client that neither speaks nor reads

Answer = Callable[[BaseHTTPRequestHandler], None]  # reads the request, writes the whole response


class HttpServer:
    """Answers each request in a thread of its own by calling `answer`."""

    def __init__(self, answer: Answer, host: str = "127.0.0.1", port: int = 0) -> None:
        """`host`: loopback unless said otherwise. `port` 0: a free one, known once the server runs."""
        self._answer = answer
        self._place = (host, port)
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Its root, without a slash at the end. Raises ArmError where it is not running."""
        if self._server is None:
            raise ArmError("this server is not running; use it as a context manager: with server: ...")
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def __enter__(self) -> Self:
        """Raises ArmError where the port is taken."""
        host, port = self._place
        try:
            self._server = _Server((host, port), _handler(self._answer))
        except OSError as error:
            raise ArmError(f"cannot listen on {host}:{port} ({error.strerror}); give another port, or 0") from None
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_S,), name="http-server", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End, and wait for the answers under way: they must end by themselves."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server = self._thread = None


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = False  # so that `server_close` waits for them
    request_queue_size = 16

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is none."""


def _handler(answer: Answer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _PATIENCE_S

        def do_GET(self) -> None:
            answer(self)

        def do_POST(self) -> None:
            answer(self)

        def log_message(self, format: str, *args: Any) -> None: ...

    return Handler


def respond(handler: BaseHTTPRequestHandler, status: int, kind: str, content: bytes) -> None:
    """A whole response."""
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def respond_json(handler: BaseHTTPRequestHandler, content: object, status: int = 200) -> None:
    """A whole response in JSON."""
    respond(handler, status, "application/json", json.dumps(content).encode() + b"\n")


def refuse(handler: BaseHTTPRequestHandler, status: int, why: str) -> None:
    """An error as one line of text."""
    respond(handler, status, "text/plain; charset=utf-8", why.encode() + b"\n")


def body(handler: BaseHTTPRequestHandler) -> bytes:
    """What a client sent."""
    return handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
