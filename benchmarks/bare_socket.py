"""WebSocket clients that only count: a thousand of them must cost less than the server's side."""

import asyncio
import json
import time
from typing import Any

_MARK = b'"model":"'
_TEXT_FRAME = 0x81
_PING_FRAME = 0x89


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
        transport.write(
            b"GET /ws/monitor HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n" % self._port
        )

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
        """A masked frame, with a mask that changes nothing."""
        assert self._transport is not None
        assert len(payload) < 126
        header = bytes([first_byte, 0x80 | len(payload)])
        self._transport.write(header + bytes(4) + payload)

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
