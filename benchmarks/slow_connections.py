"""What slow connections cost the others: `python benchmarks/slow_connections.py [--json FILE]`.

Starts the whole service and holds 1,000 connections of clients without a key that are idle, send a
head or a body a byte at a time, or read nothing of a long answer; one that is closed is opened
again. Beside them another client submits and reads tasks, each on a new connection. One minute.
"""

import asyncio
import contextlib
import http.client
import json
import multiprocessing
import os
import resource
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.figures import Figures, machine, report
from benchmarks.running_service import WEB, RunningService, resident_bytes, wait_for
from benchmarks.service import percentiles

NUM_SLOW = 1000
DRIP_SECONDS = 3.0
OPENING_SECONDS = 9.0
REOPEN_SECONDS = 0.1
MEASURED_SECONDS = 20.0
# What the figures have to stay below.
LIMIT_P95_MS = 100.0
LIMIT_GROWTH_MB = 100.0
NUM_FILES = 4096

HOST = b"Host: 127.0.0.1\r\n"
LONG_ANSWER = b"/static/drf_spectacular_sidecar/redoc/bundles/redoc.standalone.js.map"

Slow = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def idle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send nothing."""
    await reader.read()


async def slow_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET /api/v1/tasks HTTP/1.1\r\n" + HOST + b"X-Slow: ")
    await drip(reader, writer)


async def slow_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    length = b"Content-Length: 100000\r\n"
    writer.write(b"POST /api/v1/tasks HTTP/1.1\r\n" + HOST + length + b"\r\n")
    await drip(reader, writer)


async def read_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Ask for a long answer, and leave it unread."""
    transport: Any = writer.transport
    transport.pause_reading()
    writer.write(b"GET " + LONG_ANSWER + b" HTTP/1.1\r\n" + HOST + b"\r\n")
    connection = writer.get_extra_info("socket")
    while connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
        await asyncio.sleep(DRIP_SECONDS)


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A byte each few seconds, until the server closes."""
    closed = asyncio.ensure_future(reader.read())
    try:
        while not (await asyncio.wait([closed], timeout=DRIP_SECONDS))[0]:
            writer.write(b"x")
    finally:
        closed.cancel()


KINDS: tuple[Slow, ...] = (idle, slow_head, slow_body, read_nothing)


class SlowClients:
    """The slow connections, in a process of their own; counted by kind."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.num_open = multiprocessing.Array("i", len(KINDS))
        self.num_closed = multiprocessing.Array("i", len(KINDS))

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        process = multiprocessing.Process(target=self._run, daemon=True)
        process.start()
        try:
            wait_for(lambda: sum(self.num_open[:]) > NUM_SLOW * 0.9, 60)
            yield
        finally:
            process.kill()
            process.join()

    def _run(self) -> None:
        asyncio.run(self._hold_all())

    async def _hold_all(self) -> None:
        await asyncio.gather(*map(self._hold, range(NUM_SLOW)))

    async def _hold(self, number: int) -> None:
        """Open one again and again; they begin one after another, and are so closed."""
        kind = number % len(KINDS)
        await asyncio.sleep(number / NUM_SLOW * OPENING_SECONDS)
        while True:
            with contextlib.suppress(OSError):
                connection = socket.socket()
                # The kernels hold little, and the server the rest of what is not read.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.connect(("127.0.0.1", self._port))
                reader, writer = await asyncio.open_connection(sock=connection)
                self.num_open[kind] += 1
                try:
                    await KINDS[kind](reader, writer)
                finally:
                    self.num_open[kind] -= 1
                    self.num_closed[kind] += 1
                    writer.transport.abort()
            await asyncio.sleep(REOPEN_SECONDS)


def latencies(service: RunningService, seconds: float) -> dict[str, Any]:
    """GET and POST of one client, and the most memory that the web processes had meanwhile."""
    body = json.dumps({"model": "echo", "prompt": "a few words"})
    task_id = service.submit("a few words", "echo")
    gets, posts, memory = [], [], 0.0
    give_up_at = time.monotonic() + seconds
    while time.monotonic() < give_up_at:
        gets.append(request_ms(service.port, "GET", f"/api/v1/tasks/{task_id}"))
        posts.append(request_ms(service.port, "POST", "/api/v1/tasks", body))
        memory = max(memory, web_mb(service))
        time.sleep(0.02)
    return {"GET": percentiles(gets), "POST": percentiles(posts), "web memory, MB": memory}


def request_ms(port: int, method: str, path: str, body: str | None = None) -> float:
    started = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read()
    assert response.status in (200, 201), text
    return (time.perf_counter() - started) * 1000


def web_mb(service: RunningService) -> float:
    """Resident memory of all web processes."""
    return round(sum(map(resident_bytes, service.pids(WEB))) / 2**20, 1)


def measure() -> dict[str, Any]:
    """All figures of one run."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(NUM_FILES, hard), hard))
    load = os.getloadavg()[0]
    service = RunningService()
    try:
        service.start("--no-demo")
        service.register_echo()
        latencies(service, MEASURED_SECONDS / 4)  # a warm-up
        before = latencies(service, MEASURED_SECONDS)
        slow = SlowClients(service.port)
        with slow.running():
            during = latencies(service, MEASURED_SECONDS)
            num_open, num_closed = counts(slow.num_open[:]), counts(slow.num_closed[:])
    finally:
        service.close()
    growth = during["web memory, MB"] - before["web memory, MB"]
    return {
        "machine": machine() | {"load before": load},
        "without slow connections": before,
        f"with {NUM_SLOW} slow connections": during,
        "closed by the service": num_closed,
        "open at the end": num_open,
        "limits": limits(during, growth),
    }


def counts(by_kind: Iterable[int]) -> Figures:
    return {kind.__name__: count for kind, count in zip(KINDS, by_kind, strict=True)}


def limits(during: dict[str, Any], growth: float) -> dict[str, Figures]:
    """Each figure beside what it has to stay below."""
    return {
        "GET p95, ms": {"is": during["GET"]["p95_ms"], "limit": LIMIT_P95_MS},
        "POST p95, ms": {"is": during["POST"]["p95_ms"], "limit": LIMIT_P95_MS},
        "growth of web memory, MB": {"is": round(growth, 1), "limit": LIMIT_GROWTH_MB},
    }


def main() -> None:
    report(__doc__, measure)


if __name__ == "__main__":
    main()
