"""uvicorn's HTTP protocol, with limits on how long and how much a client may keep it waiting.

Give it to uvicorn with `--http sopllm.http_protocol:LimitedHttpProtocol`.
"""

import asyncio
import contextlib
import socket
from typing import Any

from django.conf import settings
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 32 * 1024
# A client has to take so much of what waits for it in so many seconds, or all that there is.
UNREAD_TIMEOUT_SECONDS = 60.0
MIN_TAKEN_BYTES = 32 * 1024
# What the kernel takes of an answer, which it doubles for its own needs.
SEND_BUFFER_BYTES = 128 * 1024


class _WholeAnswers:
    """A transport that sends the head of an answer together with what follows it.

    Each write is a call of the kernel, and wakes the client.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self.plain = transport
        self._loop = loop
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)

    def write(self, data: bytes) -> None:
        if data.startswith(b"HTTP/1.1 ") and not self._head:
            self._head = data
            self._loop.call_soon(self._send_head)  # of a stream, whose text may come late
        else:
            data, self._head = self._head + data, b""
            self.plain.write(data)

    def close(self) -> None:
        self._send_head()
        self.plain.close()

    def _send_head(self) -> None:
        if self._head:
            self.write(b"")


class LimitedHttpProtocol(HttpToolsProtocol):
    """One connection: a new head has REQUEST_TIMEOUT_SECONDS from when it can be sent.

    Bodies have their time limit in the handler, which can answer in words.
    """

    # Connections without a request, the one that has waited longest first; of the whole process.
    _waiting: dict["LimitedHttpProtocol", None] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Above it requests get 503.
        self.limit_concurrency = settings.MAX_CONNECTIONS + 1
        self._head_timer: asyncio.TimerHandle | None = None
        self._num_head_bytes = 0
        self._unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > settings.MAX_CONNECTIONS and self._waiting:
            oldest = next(iter(self._waiting))
            oldest._stop_waiting()
            oldest.transport.abort()
        self.transport = _WholeAnswers(transport, self.loop)  # type: ignore[assignment]
        connection = transport.get_extra_info("socket")
        # The kernel would take megabytes for a client that reads nothing, and keep them for ever,
        # even after our close.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        with contextlib.suppress(OSError):  # a Unix socket has no such option
            milliseconds = int(UNREAD_TIMEOUT_SECONDS * 1000)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stop_unread_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._num_head_bytes += len(data)
        super().data_received(data)
        if self._num_head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The head is larger than {MAX_HEAD_BYTES} bytes.")

    def handle_websocket_upgrade(self) -> None:
        self._stop_unread_timer()
        self.transport = self.transport.plain  # type: ignore[attr-defined]
        super().handle_websocket_upgrade()

    def on_headers_complete(self) -> None:
        self._num_head_bytes = 0
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._num_head_bytes = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:  # else the next request has come already
            self._wait_for_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_unread()

    def resume_writing(self) -> None:
        self._stop_unread_timer()
        super().resume_writing()

    def _wait_for_head(self) -> None:
        # What is unread is still sent before the connection closes.
        self._head_timer = self.loop.call_later(
            settings.REQUEST_TIMEOUT_SECONDS, self.transport.close
        )
        self._waiting[self] = None

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
        self._waiting.pop(self, None)

    def _watch_unread(self) -> None:
        num_bytes = self.transport.get_write_buffer_size()
        self._unread_timer = self.loop.call_later(
            UNREAD_TIMEOUT_SECONDS, self._check_unread, num_bytes
        )

    def _check_unread(self, num_bytes_before: int) -> None:
        if self.transport.get_write_buffer_size() > num_bytes_before - MIN_TAKEN_BYTES:
            self.transport.abort()
        else:
            self._watch_unread()

    def _stop_unread_timer(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
