"""The client itself: what it does when Redis is away, and in a process forked from another."""

import asyncio
import ctypes
import fcntl
import os
import signal
import socket
import struct
import termios
import threading
import time

import psutil
import pytest
import redis
import uvloop
from pytest_django import Settings

from monitoring.redis.client import async_client, client
from tests.conftest import Valkey, wait_until

SO_ATTACH_FILTER = 26


def test_call_fails_fast_without_redis(valkey: Valkey) -> None:
    client().ping()
    valkey.stop()
    started = time.monotonic()
    with pytest.raises(redis.ConnectionError):
        client().ping()
    assert time.monotonic() - started < 1


def test_connection_that_redis_has_closed_is_replaced(valkey: Valkey) -> None:
    client().ping()
    valkey.stop()
    valkey.start()
    assert client().ping()


def test_connection_that_the_kernel_gives_up_is_replaced(settings: Settings) -> None:
    silence = {socket.TCP_KEEPIDLE: 1, socket.TCP_KEEPINTVL: 1, socket.TCP_KEEPCNT: 1}
    settings.REDIS_KEEPALIVE = {"socket_keepalive": True, "socket_keepalive_options": silence}

    accepted: list[socket.socket] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers OK to everything."""
        accepted.append(writer.get_extra_info("socket"))
        while received := await reader.read(1000):
            writer.write(b"+OK\r\n" * received.count(b"*"))
            await writer.drain()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        settings.REDIS_URL = f"redis://127.0.0.1:{port}/0"
        redis_client = async_client()
        waiting = await redis_client.connection_pool.get_connection()
        await waiting.send_command("PING")
        await waiting.read_response()
        await asyncio.to_thread(wait_until, lambda: not num_unacknowledged(accepted[-1]))
        lose_all_packets(accepted[-1])
        await asyncio.to_thread(wait_until, lambda: not is_connected_to(port))
        with pytest.raises(redis.ConnectionError):
            await waiting.read_response(timeout=1)
        assert await redis_client.set("a", "b")
        await redis_client.aclose()
        server.close()

    uvloop.run(run())


def lose_all_packets(connection: socket.socket) -> None:
    """As if the other side had no power any more: the kernel drops what comes, and answers none."""
    drop = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0), 8)
    program = struct.pack("HxxxxxxP", 1, ctypes.addressof(drop))
    connection.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def num_unacknowledged(connection: socket.socket) -> int:
    """Bytes that were sent, and of which the other side has not said yet that they are there."""
    return int.from_bytes(fcntl.ioctl(connection, termios.TIOCOUTQ, b"\0" * 4), "little")


def is_connected_to(port: int) -> bool:
    found = psutil.Process().net_connections(kind="tcp")
    return any(each.raddr and each.raddr.port == port for each in found)


def test_forked_child_does_not_wait_for_a_lock_that_its_parent_held(valkey: Valkey) -> None:
    client().ping()
    held, done = threading.Event(), threading.Event()

    def hold_the_pool() -> None:
        with client().connection_pool._lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold_the_pool)
    thread.start()
    held.wait()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if client().ping() else 1)
    done.set()
    thread.join()
    assert exit_status(pid, limit_seconds=5) == 0


def exit_status(pid: int, limit_seconds: float) -> int:
    """The child's exit status; minus 9 when it had to be killed because it hung."""
    killer = threading.Timer(limit_seconds, os.kill, (pid, signal.SIGKILL))
    killer.start()
    _, status = os.waitpid(pid, 0)
    killer.cancel()
    return os.waitstatus_to_exitcode(status)
