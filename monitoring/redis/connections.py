"""Connections of redis-py's async clients, which notice that they are lost. Settings name them."""

from functools import cache
from typing import Any

import redis
from redis.asyncio.connection import Connection, parse_url


@cache
def connection_class(url: str) -> Any:
    """The class of connections to this address, whose loss is a redis.ConnectionError at once.

    The kernel's ETIMEDOUT is a TimeoutError, which redis-py takes for "nothing to read": who waits
    for messages would ask again without end, and hold up the event loop. And uvloop's error of a
    write to such a connection is a RuntimeError.
    """
    base: Any = parse_url(url).get("connection_class", Connection)

    class NoticingConnection(base):  # type: ignore[misc]
        async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
            await self._check()
            await super().send_packed_command(*args, **kwargs)

        async def can_read_destructive(self) -> bool:
            await self._check()
            return bool(await super().can_read_destructive())

        async def read_response(self, *args: Any, **kwargs: Any) -> Any:
            response = await super().read_response(*args, **kwargs)
            if response is None:
                await self._check()
            return response

        async def _check(self) -> None:
            lost = self._reader.exception() if self._reader is not None else None
            if lost is not None:
                await self.disconnect(nowait=True)
                raise redis.ConnectionError(f"The connection was lost: {lost}") from lost

    return NoticingConnection
