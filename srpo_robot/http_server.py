"""A small HTTP server for served policies and for the mock lab's cameras and judge.

Its threads end with its `with` block.
"""

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

_POLL_S = 0.05  # interval at which `serve_forever` checks for shutdown
_PATIENCE_S = 5.0  # timeout for a client that neither sends nor reads

Answer = Callable[[BaseHTTPRequestHandler], None]  # reads the request, writes the whole response


class HttpServer:
    """Answers each request by calling `answer` in a separate thread."""

    def __init__(self, answer: Answer, host: str = "127.0.0.1", port: int = 0) -> None:
        """Stores the address. With `port` 0 the system picks a free port, which `url` shows once the server runs."""
        self._answer = answer
        self._address = (host, port)
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Root URL without a trailing slash. Raises ArmError if the server is not running."""
        if self._server is None:
            raise ArmError("this server is not running; use it as a context manager: with server: ...")
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def __enter__(self) -> Self:
        """Starts the server. Raises ArmError if the port is taken."""
        host, port = self._address
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
        """Stops the server and waits for running answers, which must end by themselves."""
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
        """Ignores disconnected clients."""


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
    """Sends a complete response of content type `kind`."""
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def respond_json(handler: BaseHTTPRequestHandler, content: object, status: int = 200) -> None:
    """Sends a complete JSON response."""
    respond(handler, status, "application/json", json.dumps(content).encode() + b"\n")


def refuse(handler: BaseHTTPRequestHandler, status: int, why: str) -> None:
    """Sends an error as one line of text."""
    respond(handler, status, "text/plain; charset=utf-8", why.encode() + b"\n")


def body(handler: BaseHTTPRequestHandler) -> bytes:
    """Returns the body of the request."""
    return handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
