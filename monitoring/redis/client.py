"""One Redis client a process. Everything kept in Redis may vanish: the database is the truth."""

import asyncio
import contextlib
from typing import Any

import redis
import redis.asyncio
from django.conf import settings
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from monitoring.redis.connections import connection_class
from monitoring.redis.per_process import PerProcess

_CANCEL_AGAIN_SECONDS = 0.1

# redis-py's own annotations answer `bytes | str | Awaitable | None` to everything.
RedisClient = Any


@PerProcess
def client() -> RedisClient:
    """The process's client (thread-safe pool); each call fails within REDIS_TIMEOUT_SECONDS.

    There must never be another one that is thrown away: it would close its connections, in use or
    not.
    """
    return redis.Redis.from_url(
        settings.REDIS_URL,
        decode_responses=True,
        socket_timeout=settings.REDIS_TIMEOUT_SECONDS,
        socket_connect_timeout=settings.REDIS_TIMEOUT_SECONDS,
        health_check_interval=30,
        # Once, for a connection that Redis has closed meanwhile; the default takes many seconds.
        retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    )


def async_client() -> RedisClient:
    """A new client for the running event loop, without a read timeout: it waits for messages."""
    return redis.asyncio.Redis.from_url(
        settings.REDIS_URL,
        decode_responses=True,
        socket_timeout=None,
        socket_connect_timeout=settings.REDIS_TIMEOUT_SECONDS,
        health_check_interval=30,
        **settings.REDIS_KEEPALIVE,
        # Once, for a connection that Redis has closed meanwhile; the default goes on for minutes.
        retry=AsyncRetry(NoBackoff(), 1),
        connection_class=connection_class(settings.REDIS_URL),
    )


async def cancel(*tasks: asyncio.Task[None] | None) -> None:
    """End tasks that use an async client: it may swallow a cancel that comes while it connects."""
    while left := [task for task in tasks if task and not task.done()]:
        for task in left:
            task.cancel()
        # The loop itself may be about to end, and cancel this too.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait(left, timeout=_CANCEL_AGAIN_SECONDS)
