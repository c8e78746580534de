"""/metrics, /healthz and /readyz over HTTP, for scrapers and orchestrators."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from kvstore.errors import Unavailable
from kvstore.metrics import Metrics

TEXT = "text/plain; version=0.0.4; charset=utf-8"
REQUEST_S = 5.0  # a client that says nothing holds a thread no longer


class Probes:
    """Answers from the moment it listens: alive at once, ready when it is told."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._is_ready = False
        self._note: Callable[[], str] = str
        self._server: ThreadingHTTPServer | None = None

    def set_ready(self, is_ready: bool, note: Callable[[], str] = str) -> None:
        """Whether callers should be sent here; `note` gives the text that follows then."""
        self._is_ready, self._note = is_ready, note

    def listen(self, address: str) -> int:
        """Serve HOST:PORT in threads; the port. Errors: Unavailable."""
        host, _, port = address.rpartition(":")
        try:
            server = ThreadingHTTPServer((host.strip("[]"), int(port)), self._handler())
        except OSError as error:
            raise Unavailable(f"serve.metrics={address!r}: cannot listen there: {error}") from None
        server.daemon_threads = True
        self._server = server
        threading.Thread(target=server.serve_forever, name="kvstore-probes", daemon=True).start()
        return int(server.server_address[1])

    def close(self) -> None:
        """Stop listening. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def answer(self, path: str) -> tuple[HTTPStatus, bytes]:
        """Status and body for a path."""
        if path == "/metrics":
            return HTTPStatus.OK, self._metrics.text()
        if path == "/healthz":
            return HTTPStatus.OK, b"alive\n"
        if path == "/readyz":
            if self._is_ready:
                return HTTPStatus.OK, f"ready\n{self._note()}".encode()
            return HTTPStatus.SERVICE_UNAVAILABLE, b"not ready\n"
        return HTTPStatus.NOT_FOUND, b"there are /metrics, /healthz and /readyz\n"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        answer = self.answer

        class Handler(BaseHTTPRequestHandler):
            """One request."""

            timeout = REQUEST_S

            def do_GET(self) -> None:
                status, body = answer(self.path.partition("?")[0])
                self.send_response(status)
                self.send_header("Content-Type", TEXT)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Scrapes are no news."""

        return Handler
