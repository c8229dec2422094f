"""The queues: what waits, what runs, and who works on them.

Tasks are known one floor up: settings.QUEUE_STATS names the function that reads them.
"""

from typing import TypedDict

from django.conf import settings
from django.utils.module_loading import import_string

from monitoring.shared_cache import cached

_CACHED_SECONDS = 1.0


class QueueState(TypedDict):
    """One queue. `workers` and `messages` are null while Redis is away.

    `by_priority`: the pending tasks of each exact priority, the most urgent 100 priorities.
    `messages`: what lies in the broker by Redis priority, 0 the most urgent; not the depth, since
    tasks that join a running session leave their messages behind until it ends.
    """

    pending: int
    processing: int
    workers: int | None
    oldest_wait_seconds: float | None
    by_priority: dict[str, int]
    messages: dict[str, int] | None


class Totals(TypedDict):
    """Tasks of all queues."""

    pending: int
    processing: int


class ProcessingTask(TypedDict):
    """A task that runs now; `started_at` is ISO 8601 in UTC."""

    task_id: str
    model: str
    queue: str
    attempt: int
    worker: str
    started_at: str
    priority: float


class QueueStats(TypedDict):
    """All queues; `processing_tasks`: up to 100 of the owner who asks, longest running first."""

    queues: dict[str, QueueState]
    totals: Totals
    processing_tasks: list[ProcessingTask]


def read(owner: str | None = None) -> QueueStats:
    """The queues, at most about a second ago; None sees no `processing_tasks`."""
    return cached(f"queue_stats:{owner or ''}", _CACHED_SECONDS, lambda: _source(owner))


def _source(owner: str | None) -> QueueStats:
    stats: QueueStats = import_string(settings.QUEUE_STATS)(owner)
    return stats
