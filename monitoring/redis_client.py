"""One Redis client a process. Everything kept in Redis may vanish: the database is the truth."""

import os
from functools import cache
from typing import Any

import redis
import redis.asyncio
from django.conf import settings
from redis.backoff import NoBackoff
from redis.retry import Retry

# redis-py's own annotations answer `bytes | str | Awaitable | None` to everything.
RedisClient = Any


def client() -> RedisClient:
    """The process's client (thread-safe pool); each call fails within REDIS_TIMEOUT_SECONDS."""
    return _client_of(os.getpid())


@cache
def _client_of(pid: int) -> RedisClient:
    """A forked child makes its own, and never touches the inherited one, not even to delete it.

    A thread of the parent may have held its lock at the fork; the child would wait for ever.
    """
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
