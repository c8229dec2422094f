"""Waking the long polls of a web process when a task ends."""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Iterator

import redis

from monitoring.redis_client import async_client
from monitoring.streams import ENDED_CHANNEL

logger = logging.getLogger(__name__)

_RECONNECT_SECONDS = 1.0


class EndedTasks:
    """One subscription for all waiters of a process; must live on one event loop."""

    def __init__(self) -> None:
        self._waiters: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._listener: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Subscribe, so that the first waiter misses nothing."""
        if self._listener is None:
            self._listener = asyncio.create_task(self._listen())

    @contextlib.contextmanager
    def waiting_for(self, task_id: str) -> Iterator[asyncio.Event]:
        """An event that is set when the task ends, from now on."""
        self.start()
        event = asyncio.Event()
        self._waiters[task_id].add(event)
        try:
            yield event
        finally:
            self._waiters[task_id].discard(event)
            if not self._waiters[task_id]:
                del self._waiters[task_id]

    async def _listen(self) -> None:
        while True:
            try:
                async with async_client() as client, client.pubsub() as pubsub:
                    await pubsub.subscribe(ENDED_CHANNEL)
                    async for message in pubsub.listen():
                        for event in self._waiters.get(str(message["data"]), ()):
                            event.set()
            except (redis.RedisError, OSError) as exc:
                logger.warning("Long polls look every few seconds only, no Redis: %s", exc)
                await asyncio.sleep(_RECONNECT_SECONDS)
