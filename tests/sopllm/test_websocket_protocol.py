"""Frames that an application makes itself, behind a real uvicorn."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from monitoring.events.frames import EXTENSION, frame
from tests.conftest import wait_until
from tests.live_server import LiveServer
from tests.monitoring.test_websocket import handshake

TEXTS = ["x" * size for size in (0, 125, 126, 65_535, 65_536)] + ["é€😀" * 50]
LARGE = frame("x" * 50_000)
TOO_MUCH = 1000  # of the large frames: no kernel takes so many


class Application:
    """Accepts one socket and keeps its doors for the test, which runs in another thread."""

    def __init__(self) -> None:
        self.extensions: dict[str, Any] = {}
        self.has_ended = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._send: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        self._loop, self._send = asyncio.get_running_loop(), send
        self.extensions = scope["extensions"]
        while (await receive())["type"] != "websocket.disconnect":
            pass
        self.has_ended = True

    def write(self, frames: bytes) -> bool:
        async def write() -> bool:
            return bool(self.extensions[EXTENSION]["write"](frames))

        return asyncio.run_coroutine_threadsafe(write(), self.loop).result(20)

    def fill(self) -> int:
        """Write until the client is too slow; how many large frames that took."""
        number = next(number for number in range(TOO_MUCH) if not self.write(LARGE))
        assert number
        return number

    def send(self, frames: bytes) -> Any:
        """A future of the message."""
        sending = self._send({"type": EXTENSION, "frames": frames})
        return asyncio.run_coroutine_threadsafe(sending, self.loop)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        assert self._loop is not None
        return self._loop


@pytest.fixture
def application() -> Application:
    return Application()


@pytest.fixture
def server(application: Application) -> Iterator[LiveServer]:
    live_server = LiveServer(application)
    live_server.start()
    yield live_server
    live_server.stop()


@contextmanager
def silent_client(server: LiveServer, application: Application) -> Iterator[socket.socket]:
    """Reads nothing but its handshake."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(handshake(server.port))
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += connection.recv(1)
        wait_until(lambda: application.extensions)
        yield connection


def read_exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        more = connection.recv(size - len(data))
        assert more, f"closed after {len(data)} of {size} bytes"
        data += more
    return bytes(data)


def test_frames_of_any_length_arrive_in_order_with_usual_messages_between(
    server: LiveServer, application: Application
) -> None:
    with connect(f"ws://127.0.0.1:{server.port}/", proxy=None) as client:
        wait_until(lambda: application.extensions)
        assert application.write(b"".join(map(frame, TEXTS)))
        usual = application._send({"type": "websocket.send", "text": "usual"})
        asyncio.run_coroutine_threadsafe(usual, application.loop).result(20)
        application.send(frame("waits")).result(20)
        assert [client.recv(20) for _ in range(len(TEXTS) + 2)] == [*TEXTS, "usual", "waits"]


def test_slow_client_is_written_no_more_until_it_reads(
    server: LiveServer, application: Application
) -> None:
    with silent_client(server, application) as connection:
        num_written = application.fill()
        # What neither the kernel nor uvloop's 64 KiB take is refused.
        assert num_written * len(LARGE) < 4 * 1024 * 1024
        assert not application.write(LARGE)
        waiting = application.send(frame("waits"))
        assert not application.write(LARGE)
        assert not waiting.done()
        assert read_exactly(connection, num_written * len(LARGE)) == LARGE * num_written
        waiting.result(20)
        assert read_exactly(connection, len(frame("waits"))) == frame("waits")
        wait_until(lambda: application.write(frame("again")))
        assert read_exactly(connection, len(frame("again"))) == frame("again")


@pytest.mark.parametrize("how", ["client", "server"])
def test_close_ends_what_waits_for_a_slow_client(
    server: LiveServer, application: Application, how: str
) -> None:
    with silent_client(server, application) as connection:
        application.fill()
        waiting = application.send(frame("waits"))
        end: Callable[[], None] = connection.close if how == "client" else server.stop
        end()
        wait_until(waiting.done)
        assert waiting.cancelled() or isinstance(waiting.exception(), OSError)
    if how == "server":
        server.start()


def test_nothing_is_written_after_a_close_frame(
    server: LiveServer, application: Application
) -> None:
    with connect(f"ws://127.0.0.1:{server.port}/", proxy=None) as client:
        wait_until(lambda: application.extensions)
        closing = application._send({"type": "websocket.close", "code": 4000})

        async def close_and_write() -> bool:
            await closing
            return bool(application.extensions[EXTENSION]["write"](frame("late")))

        writing = asyncio.run_coroutine_threadsafe(close_and_write(), application.loop)
        assert not writing.result(20)
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(20)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4000


def test_client_that_has_gone_is_not_written_to(
    server: LiveServer, application: Application
) -> None:
    with silent_client(server, application):
        pass
    wait_until(lambda: application.has_ended)
    assert not application.write(frame("late"))
    assert isinstance(application.send(frame("late")).exception(20), OSError)


def test_compressed_connections_have_no_such_door(application: Application) -> None:
    server = LiveServer(application)
    server.start(ws_per_message_deflate=True)
    try:
        with connect(f"ws://127.0.0.1:{server.port}/", proxy=None):
            wait_until(lambda: application.extensions)
            assert EXTENSION not in application.extensions
    finally:
        server.stop()
