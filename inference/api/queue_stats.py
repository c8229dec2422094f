"""Pending and running tasks by queue, from the rows and the broker's lists."""

from collections import Counter, defaultdict
from contextlib import suppress
from datetime import datetime
from typing import Any, TypedDict

import redis
from django.db.models import Count, Min
from django.utils import timezone

from inference import dispatch
from inference.models import GenerationTask, Queue
from monitoring.events import events
from monitoring.hardware import workers
from monitoring.redis.cache import cached

_CACHED_SECONDS = 1.0
_MAX_PRIORITIES = 100
_MAX_PROCESSING_TASKS = 100
# Other queues are shown while they have tasks or workers.
_ALWAYS_SHOWN = (Queue.GPU, Queue.API)

_RUNNING_FIELDS = (
    *("id", "owner", "model_name", "queue", "attempt", "worker", "started_at", "priority"),
)

# A priority, how many tasks have it, and the oldest of them.
_Waiting = tuple[float, int, datetime]


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
    started_at: events.Timestamp
    priority: float


class QueueStats(TypedDict):
    """All queues; `processing_tasks`: up to 100 of the owner who asks, longest running first."""

    queues: dict[str, QueueState]
    totals: Totals
    processing_tasks: list[ProcessingTask]


def read(owner: str | None = None) -> QueueStats:
    """The queues, at most about a second ago; None sees no `processing_tasks`."""
    return cached(f"queue_stats:{owner or ''}", _CACHED_SECONDS, lambda: read_now(owner))


def read_now(owner: str | None) -> QueueStats:
    """All queues; of the tasks that run, the owner's alone are named.

    Two queries, each by an index that holds the pending or the processing tasks alone.
    """
    waiting = _waiting()
    held = GenerationTask.objects.filter(lease_until__isnull=False)  # by the index of the leases
    processing = held.filter(status=GenerationTask.Status.PROCESSING)
    running = list(processing.order_by("started_at", "id").values(*_RUNNING_FIELDS))
    messages: dict[str, dict[str, int]] = {}
    num_workers: dict[str, int] = {}
    with suppress(redis.RedisError):
        messages = dispatch.messages_by_priority(Queue.values)
        num_workers = workers.count(Queue.values)
    num_running = Counter(task["queue"] for task in running)
    queues = {
        queue.value: QueueState(
            pending=sum(num_tasks for _, num_tasks, _ in waiting[queue]),
            oldest_wait_seconds=_oldest_wait(waiting[queue]),
            by_priority=_by_priority(waiting[queue]),
            processing=num_running[queue],
            workers=num_workers.get(queue),
            messages=messages.get(queue),
        )
        for queue in Queue
        if queue in _ALWAYS_SHOWN or waiting[queue] or num_running[queue] or num_workers.get(queue)
    }
    own = [task for task in running if task["owner"] == owner]
    return QueueStats(
        queues=queues,
        totals=Totals(
            pending=sum(state["pending"] for state in queues.values()), processing=len(running)
        ),
        processing_tasks=[_processing_task(task) for task in own[:_MAX_PROCESSING_TASKS]],
    )


def _waiting() -> defaultdict[str, list[_Waiting]]:
    """By queue, the most urgent first."""
    found: defaultdict[str, list[_Waiting]] = defaultdict(list)
    groups = GenerationTask.objects.pending().values_list("queue", "priority")
    counted = groups.annotate(num_tasks=Count("pk"), oldest=Min("created_at"))
    for queue, *waiting in counted.order_by("queue", "-priority"):
        found[queue].append(tuple(waiting))
    return found


def _oldest_wait(waiting: list[_Waiting]) -> float | None:
    """Seconds; None when nothing waits."""
    if not waiting:
        return None
    oldest = min(oldest for _, _, oldest in waiting)
    return max(0.0, round((timezone.now() - oldest).total_seconds(), 1))


def _by_priority(waiting: list[_Waiting]) -> dict[str, int]:
    """Keys as JavaScript writes the numbers: 1 and 9.5."""
    return {
        repr(priority).removesuffix(".0"): num_tasks
        for priority, num_tasks, _ in waiting[:_MAX_PRIORITIES]
    }


def _processing_task(task: dict[str, Any]) -> ProcessingTask:
    return ProcessingTask(
        task_id=task["id"],
        model=task["model_name"],
        queue=task["queue"],
        attempt=task["attempt"],
        worker=task["worker"],
        started_at=events.iso(task["started_at"]),
        priority=task["priority"],
    )
