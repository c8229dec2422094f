"""One Redis client a process. Everything kept in Redis may vanish: the database is the truth."""

import os
from typing import Any

import redis
import redis.asyncio
from django.conf import settings
from redis.backoff import NoBackoff
from redis.retry import Retry

# redis-py's own annotations answer `bytes | str | Awaitable | None` to everything.
RedisClient = Any


# By process: a forked child makes its own, and never touches the inherited one, not even to delete
# it. A thread of the parent may have held its lock at the fork; the child would wait for ever.
_clients: dict[int, RedisClient] = {}


def client() -> RedisClient:
    """The process's client (thread-safe pool); each call fails within REDIS_TIMEOUT_SECONDS.

    Threads that come first at once may each make one, but all take the same: another one would
    close its connections, in use or not, when it is thrown away.
    """
    pid = os.getpid()
    if pid not in _clients:
        _clients.setdefault(pid, _new_client())
    return _clients[pid]


def _new_client() -> RedisClient:
    return redis.Redis.from_url(
        settings.REDIS_URL,
        decode_responses=True,
        socket_timeout=settings.REDIS_TIMEOUT_SECONDS,
        socket_connect_timeout=settings.REDIS_TIMEOUT_SECONDS,
        health_check_interval=30,
        retry=_retry_once(),
    )


def _retry_once() -> Retry:
    """For a connection that Redis has closed meanwhile; the default goes on for many seconds."""
    return Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))


def async_client() -> RedisClient:
    """A new client for the running event loop, without a read timeout: it waits for messages."""
    return redis.asyncio.Redis.from_url(
        settings.REDIS_URL,
        decode_responses=True,
        socket_timeout=None,
        socket_connect_timeout=settings.REDIS_TIMEOUT_SECONDS,
        health_check_interval=30,
    )
