"""A receiver of webhooks: a real HTTP server that answers as it is told."""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook


@dataclass(frozen=True, slots=True)
class WebhookCall:
    """A request as it arrived."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def webhook_id(self) -> str:
        return self.headers["webhook-id"]

    def verified(self, secret: str) -> dict[str, Any]:
        """The payload; raises WebhookVerificationError."""
        payload: dict[str, Any] = Webhook(secret).verify(self.body, self.headers)
        return payload


@dataclass(frozen=True, slots=True)
class Reply:
    """What one request is answered with; `act`, if given, writes to the connection instead."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"ok"
    act: Callable[[socket.socket], None] | None = None


class Receiver:
    """Listens on loopback. Gives `replies` in their order, then 200 for ever."""

    def __init__(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.calls: list[WebhookCall] = []
        self.replies: list[Reply] = []
        self._stopped = threading.Event()
        self._server = _server(self, port)
        if tls is not None:
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def url(self, path: str = "/hook", scheme: str = "http", host: str = "127.0.0.1") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    def drip(self, connection: socket.socket, head: bytes = b"") -> None:
        """After the head, a byte now and then, until somebody hangs up."""
        with contextlib.suppress(OSError):
            connection.sendall(head)
            while not self._stopped.is_set():
                connection.sendall(b"x")
                time.sleep(0.05)

    def stop(self) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(20)

    def answer(self, call: WebhookCall) -> Reply:
        self.calls.append(call)
        return self.replies.pop(0) if self.replies else Reply()


@contextlib.contextmanager
def receiving(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """A receiver, which is gone when the block ends."""
    receiver = Receiver(tls=tls)
    try:
        yield receiver
    finally:
        receiver.stop()


def _server(receiver: Receiver, port: int) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = receiver.answer(WebhookCall(self.path, headers, body))
            if reply.act is not None:
                reply.act(self.connection)
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in {"content-length": str(len(reply.body)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(reply.body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nobody reads it."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients that hang up, or like no certificate, are part of the tests."""

    return Server(("127.0.0.1", port), Handler)
