"""One Redis client a process. Everything kept in Redis may vanish: the database is the truth."""

import asyncio
import contextlib
from functools import cache
from typing import Any

import redis
import redis.asyncio
from django.conf import settings
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

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
    made: RedisClient = redis.asyncio.Redis.from_url(
        settings.REDIS_URL,
        decode_responses=True,
        socket_timeout=None,
        socket_connect_timeout=settings.REDIS_TIMEOUT_SECONDS,
        health_check_interval=30,
        **settings.REDIS_KEEPALIVE,
        # Once, for a connection that Redis has closed meanwhile; the default goes on for minutes.
        retry=AsyncRetry(NoBackoff(), 1),
    )
    pool = made.connection_pool
    pool.connection_class = _that_notices_its_loss(pool.connection_class)
    return made


@cache
def _that_notices_its_loss(connection_class: Any) -> Any:
    """The class of connections, whose loss is a redis.ConnectionError on uvloop as well.

    There a write to a connection that the kernel has given up is a RuntimeError.
    """

    class Connection(connection_class):  # type: ignore[misc]
        async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
            try:
                await super().send_packed_command(*args, **kwargs)
            except RuntimeError as exc:
                await self.disconnect(nowait=True)
                raise redis.ConnectionError("The connection was lost.") from exc

    return Connection


async def cancel(*tasks: asyncio.Task[None] | None) -> None:
    """End tasks that use an async client: it may swallow a cancel that comes while it connects."""
    while left := [task for task in tasks if task and not task.done()]:
        for task in left:
            task.cancel()
        # The loop itself may be about to end, and cancel this too.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait(left, timeout=_CANCEL_AGAIN_SECONDS)
