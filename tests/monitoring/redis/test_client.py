"""The client itself: what it does when Redis is away, and in a process forked from another."""

import os
import signal
import threading
import time

import pytest
import redis

from monitoring.redis.client import client
from tests.conftest import Valkey


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
