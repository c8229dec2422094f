"""The readings that web processes take by themselves, for sockets that have asked for them."""

from collections.abc import Mapping
from typing import Any

from channels.db import database_sync_to_async

from monitoring import events, gpu, queue_stats
from monitoring.event_log import LoggedEvent
from monitoring.events import EventType

TYPES = (EventType.GPU_STATS, EventType.QUEUE_STATS)


async def read(event_type: EventType, owner: str | None) -> LoggedEvent:
    """GPU_STATS for everyone, or QUEUE_STATS for one owner."""
    take = database_sync_to_async(_take, thread_sensitive=False)
    data = await take(event_type, owner)
    return LoggedEvent(event_type, events.now(), dict(data), owner)


def _take(event_type: EventType, owner: str | None) -> Mapping[str, Any]:
    return gpu.stats() if event_type == EventType.GPU_STATS else queue_stats.read(owner)
