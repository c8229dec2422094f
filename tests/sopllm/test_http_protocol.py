"""Slow, stuck and too many connections, with a real server."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pytest_django import Settings

from sopllm import http_protocol
from sopllm.handler import Receive, Send
from tests.conftest import Valkey, wait_until
from tests.live_server import LiveServer

# The threads of the server may have connections to the database from tests before.
pytestmark = pytest.mark.django_db(transaction=True)

LIMIT_SECONDS = 20.0
HEAD = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"
POST = b"POST /api/v1/tasks HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
# It earns the seconds that the rest of its body may take.
HALF_BODY = b" " * 256 * 1024


@pytest.fixture
def server(valkey: Valkey, settings: Settings) -> Iterator[LiveServer]:
    settings.REQUEST_TIMEOUT_SECONDS = 0.5
    with running(LiveServer()) as live_server:
        yield live_server


@contextlib.contextmanager
def running(live_server: LiveServer, **options: Any) -> Iterator[LiveServer]:
    live_server.start(**options)
    try:
        yield live_server
    finally:
        live_server.stop()


def connect(server: LiveServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), LIMIT_SECONDS)


def drip(connection: socket.socket, byte: bytes) -> bytes:
    """Send a byte now and then until the server closes; what it sent before that."""
    give_up_at = time.monotonic() + LIMIT_SECONDS
    received = b""
    connection.settimeout(0.05)
    while time.monotonic() < give_up_at:
        with contextlib.suppress(TimeoutError):
            try:
                if not (part := connection.recv(65536)):
                    return received
                received += part
            except ConnectionError:  # the server closed before it had read the last byte
                return received
        with contextlib.suppress(ConnectionError):
            connection.send(byte)
    raise AssertionError("still open")


def wait_until_time_is_over(server: LiveServer) -> None:
    """Until a connection that is idle from now on is closed."""
    with connect(server) as idle:
        assert idle.recv(1) == b""


@pytest.mark.parametrize(
    ("beginning", "byte"),
    [
        (b"", b""),
        (b"", b"\n"),
        (b"GET /", b"x"),
        (HEAD + b"X-Slow: ", b"x"),
        (b"GET /ws/monitor HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX: ", b"x"),
    ],
)
def test_slow_head_is_closed(server: LiveServer, beginning: bytes, byte: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(beginning)
        assert drip(connection, byte) == b""


@pytest.mark.parametrize(("beginning", "byte"), [(b"", b"\n"), (b"GET /", b"x")])
def test_slow_second_head_is_closed(server: LiveServer, beginning: bytes, byte: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(HEAD + b"\r\n" + beginning)
        received = drip(connection, byte)
    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.count(b"HTTP/1.1") == 1


def test_slow_body_is_refused_in_words(server: LiveServer) -> None:
    with connect(server) as connection:
        connection.sendall(POST + b"Content-Length: 100000\r\n\r\n")
        received = drip(connection, b"x")
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in head
    assert b'"error": "request_timeout"' in body
    assert b"send at least 65536 bytes a second" in body


def test_long_body_may_take_longer(server: LiveServer) -> None:
    with connect(server) as connection:
        length = f"Content-Length: {len(HALF_BODY) * 2}\r\n\r\n"
        connection.sendall(POST + length.encode() + HALF_BODY)
        wait_until_time_is_over(server)
        connection.sendall(HALF_BODY)
        assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")  # no JSON


def test_connection_is_kept_for_further_requests(server: LiveServer) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", trust_env=False) as client:
        for _ in range(3):
            assert client.get("/healthz").status_code == 200
            assert server.num_connections == 1


def test_requests_may_come_before_the_answer_to_the_one_before(server: LiveServer) -> None:
    last = HEAD + b"Connection: close\r\n\r\n"
    with connect(server) as connection:
        connection.sendall((HEAD + b"\r\n") * 2 + last)
        received = b""
        while part := connection.recv(65536):
            received += part
    assert received.count(b"HTTP/1.1 200 ") == 3


def test_open_websocket_has_no_time_limit(server: LiveServer) -> None:
    with server.client() as client:
        wait_until_time_is_over(server)
        client.pong()


def test_response_that_goes_on_has_no_time_limit(settings: Settings) -> None:
    settings.REQUEST_TIMEOUT_SECONDS = 0.5
    is_over = threading.Event()

    async def application(_: Any, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first, ", "more_body": True})
        await asyncio.to_thread(is_over.wait, LIMIT_SECONDS)
        await send({"type": "http.response.body", "body": b"last"})

    with running(LiveServer(application)) as server:
        url = f"http://127.0.0.1:{server.port}/"
        with httpx.stream("GET", url, trust_env=False) as response:
            parts = response.iter_bytes()
            assert next(parts) == b"first, "
            wait_until_time_is_over(server)
            is_over.set()
            assert next(parts) == b"last"


def test_answer_that_is_not_read_is_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(http_protocol, "UNREAD_TIMEOUT_SECONDS", 0.5)
    num_sent = 0

    async def application(_: Any, receive: Receive, send: Send) -> None:
        nonlocal num_sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        gone = asyncio.ensure_future(receive())
        while not gone.done():
            await send({"type": "http.response.body", "body": b" " * 1000, "more_body": True})
            num_sent += 1000

    # The kernel has no time limit for a Unix socket.
    path = str(tmp_path / "socket")
    with (
        running(LiveServer(application), uds=path) as server,
        socket.socket(socket.AF_UNIX) as stuck,
    ):
        stuck.connect(path)
        stuck.sendall(HEAD + b"\r\n")
        wait_until(lambda: num_sent)
        wait_until(lambda: server.num_connections == 0)
    assert num_sent < 2_000_000


def test_head_that_never_ends_is_refused(server: LiveServer) -> None:
    with connect(server) as connection:
        connection.sendall(HEAD + b"X-Long: ")
        received = drip(connection, b"x" * 10_000)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b"The head is larger than 32768 bytes." in received


def test_long_heads_of_one_connection_are_counted_each(server: LiveServer) -> None:
    headers = {"X-Long": "x" * 20_000}
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", trust_env=False) as client:
        for _ in range(3):
            assert client.get("/healthz", headers=headers).status_code == 200
            assert server.num_connections == 1


def test_oldest_idle_connection_makes_room(server: LiveServer, settings: Settings) -> None:
    settings.MAX_CONNECTIONS, settings.REQUEST_TIMEOUT_SECONDS = 3, 600
    with connect(server) as first, connect(server), connect(server), connect(server) as fourth:
        with contextlib.suppress(ConnectionResetError):
            assert first.recv(1) == b""
        fourth.sendall(HEAD + b"\r\n")
        assert fourth.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert server.num_connections == 3


def test_too_many_connections_in_use_are_refused(server: LiveServer, settings: Settings) -> None:
    settings.MAX_CONNECTIONS = 2
    with server.client(), server.client() as other:
        assert get(server).status_code == 503
        other.pong()
    wait_until(lambda: server.num_connections == 0)
    assert get(server).status_code == 200


def get(server: LiveServer) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{server.port}/healthz", trust_env=False)


def test_head_and_body_of_an_answer_come_in_one_piece(server: LiveServer) -> None:
    with connect(server) as connection:
        connection.sendall(HEAD + b"\r\n")
        head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert f"content-length: {len(body)}".encode() in head.lower()
    assert body
