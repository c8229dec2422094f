"""WebSocket clients that only count: a thousand of them must cost less than the server's side."""

import asyncio
import json
import select
import socket
import time
from collections import Counter
from typing import Any

_MARK = b'"model":"'
_TEXT_FRAME = 0x81
_PING_FRAME = 0x89
_PING_START = b"\x89\x04"  # uvicorn's, of four bytes; in no event, since those are ASCII
_READ_BYTES = 1024 * 1024
_HANDSHAKE = (
    b"GET /ws/monitor HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: Upgrade\r\n"
    b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


class BareSocket(asyncio.Protocol):
    """Counts the events whose `model` is the time they were told at, in ns, and their delays."""

    def __init__(self, port: int) -> None:
        self.num_messages = 0
        self.delays_ms: list[float] = []
        self.greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._port = port
        self._buffer = b""
        self._has_shaken_hands = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(_HANDSHAKE % self._port)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._has_shaken_hands and b"\r\n\r\n" in self._buffer:
            self._buffer = self._buffer.partition(b"\r\n\r\n")[2]
            self._has_shaken_hands = True
        while self._has_shaken_hands and self._take_frame():
            pass

    def say(self, message_type: str, **fields: Any) -> None:
        """Send a command."""
        text = json.dumps({"type": message_type, **fields}).encode()
        self._send(_TEXT_FRAME, text)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _send(self, first_byte: int, payload: bytes) -> None:
        assert self._transport is not None
        self._transport.write(_frame(first_byte, payload))

    def _take_frame(self) -> bool:
        """Take one whole frame from the buffer, if there is one."""
        buffer = self._buffer
        if len(buffer) < 4:
            return False
        size, start = buffer[1], 2
        if size == 126:
            size, start = int.from_bytes(buffer[2:4]), 4
        elif size == 127:
            size, start = int.from_bytes(buffer[2:10]), 10
        if len(buffer) < start + size:
            return False
        self._take(buffer[0], buffer[start : start + size])
        self._buffer = buffer[start + size :]
        return True

    def _take(self, first_byte: int, payload: bytes) -> None:
        if first_byte == _PING_FRAME:
            self._send(0x8A, payload)
        elif not self.greeted.done():
            self.greeted.set_result(None)
        elif _MARK in payload:
            told_at = int(payload.partition(_MARK)[2].partition(b'"')[0])
            self.num_messages += 1
            self.delays_ms.append((time.monotonic_ns() - told_at) / 1e6)


class FloodedSockets:
    """Sockets of which no frame is taken apart: a million events a second cost half a core.

    Each event of a read counts with the delay of the oldest one in it, so none with too little.
    """

    def __init__(self, port: int, num_sockets: int, names: list[str]) -> None:
        self.delays: Counter[int] = Counter()  # in tenths of a millisecond
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._rests: dict[int, bytes] = {}
        self._buffer = bytearray(_READ_BYTES)
        self._view = memoryview(self._buffer)
        for _ in range(num_sockets):
            connection = socket.create_connection(("127.0.0.1", port))
            connection.sendall(_HANDSHAKE % port)
            greeting = b""
            while not greeting.endswith(b"}"):
                greeting += connection.recv(4096)
            subscribe = json.dumps({"type": "subscribe", "events": names}).encode()
            connection.sendall(_frame(_TEXT_FRAME, subscribe))
            self._sockets[connection.fileno()] = connection
            self._poll.register(connection, select.EPOLLIN)

    def read(self, num_messages: int, give_up_at: float) -> None:
        """Read until so many have come, all sockets together; or until that time."""
        while self.delays.total() < num_messages and time.monotonic() < give_up_at:
            for number, _ in self._poll.poll(0.1):
                self._read_one(number)

    def close(self) -> None:
        for connection in self._sockets.values():
            connection.close()
        self._poll.close()

    def _read_one(self, number: int) -> None:
        buffer, connection = self._buffer, self._sockets[number]
        rest = self._rests.pop(number, b"")
        buffer[: len(rest)] = rest
        num_read = connection.recv_into(self._view[len(rest) :])
        assert num_read, "the server has closed a socket"
        end = size = len(rest) + num_read
        if buffer[size - 1] != ord("}"):  # within a frame
            end = max(0, buffer.rfind(_TEXT_FRAME, 0, size))
            self._rests[number] = bytes(buffer[end:size])
        if num_events := buffer.count(_MARK, 0, end):
            start = buffer.find(_MARK, 0, end) + len(_MARK)
            told_at = int(buffer[start : buffer.index(b'"', start, end)])
            self.delays[(time.monotonic_ns() - told_at) // 100_000] += num_events
        ping = buffer.find(_PING_START, 0, size)
        if ping >= 0:
            connection.sendall(_frame(0x8A, bytes(buffer[ping + 2 : ping + 6])))


def _frame(first_byte: int, payload: bytes) -> bytes:
    """A masked frame, with a mask that changes nothing."""
    assert len(payload) < 126
    return bytes([first_byte, 0x80 | len(payload)]) + bytes(4) + payload


async def open_sockets(port: int, num_sockets: int, names: list[str]) -> list[BareSocket]:
    """Sockets that have subscribed."""
    loop = asyncio.get_running_loop()
    sockets: list[BareSocket] = []
    for _ in range(num_sockets):
        _, socket = await loop.create_connection(lambda: BareSocket(port), "127.0.0.1", port)
        await socket.greeted
        socket.say("subscribe", events=names)
        sockets.append(socket)
    return sockets
