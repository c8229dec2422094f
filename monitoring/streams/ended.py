"""Waking the long polls of a web process when what they wait for has ended.

A task is announced by its id, anything else by a key that no task can have.
"""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Iterator

import redis

from monitoring.redis.client import async_client, client
from monitoring.streams.delta_stream import ENDED_CHANNEL

logger = logging.getLogger(__name__)

_RECONNECT_SECONDS = 1.0


def announce(key: str) -> None:
    """Wake everyone who waits for this; without Redis they look for themselves."""
    try:
        client().publish(ENDED_CHANNEL, key)
    except redis.RedisError as exc:
        logger.warning("The end of %s was not announced: %s", key, exc)


class Waiters:
    """One subscription for all waiters of a process; must live on one event loop."""

    def __init__(self) -> None:
        self._waiters: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._listener: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Subscribe, so that the first waiter misses nothing."""
        if self._listener is None:
            self._listener = asyncio.create_task(self._listen())

    @contextlib.contextmanager
    def waiting_for(self, key: str) -> Iterator[asyncio.Event]:
        """An event that is set when the end is announced, from now on."""
        self.start()
        event = asyncio.Event()
        self._waiters[key].add(event)
        try:
            yield event
        finally:
            self._waiters[key].discard(event)
            if not self._waiters[key]:
                del self._waiters[key]

    async def _listen(self) -> None:
        while True:
            try:
                async with async_client() as redis_client, redis_client.pubsub() as pubsub:
                    await pubsub.subscribe(ENDED_CHANNEL)
                    async for message in pubsub.listen():
                        for event in self._waiters.get(str(message["data"]), ()):
                            event.set()
            except (redis.RedisError, OSError) as exc:
                logger.warning("Long polls look every few seconds only, no Redis: %s", exc)
                await asyncio.sleep(_RECONNECT_SECONDS)
