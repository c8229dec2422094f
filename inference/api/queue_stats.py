"""Pending and running tasks by queue, from the rows and the broker's lists."""

from contextlib import suppress
from typing import TypedDict

import redis
from django.db.models import Count, Min

from inference import dispatch
from inference.models import GenerationTask, Queue
from monitoring import database_clock
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


class QueueState(TypedDict):
    """One queue. `workers` and `messages` are null while Redis is away.

    The tasks are those of whoever asks, who gets no `messages`; the scope `monitor` sees all.

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
    """All queues; `processing_tasks`: up to 100, longest running first."""

    queues: dict[str, QueueState]
    totals: Totals
    processing_tasks: list[ProcessingTask]


def read(owner: str | None = None) -> QueueStats:
    """The tasks of an owner, None for those of all owners, at most about a second ago."""
    return cached(f"queue_stats:{owner or ''}", _CACHED_SECONDS, lambda: read_now(owner))


def read_now(owner: str | None) -> QueueStats:
    """Two queries, each by an index that holds the pending or the processing tasks alone."""
    queues = _pending_by_queue(owner)
    held = GenerationTask.objects.filter(lease_until__isnull=False)  # by the index of the leases
    processing = held.filter(status=GenerationTask.Status.PROCESSING)
    everyones = processing.order_by("started_at", "id").values(*_RUNNING_FIELDS)
    running = [task for task in everyones if owner in (None, task["owner"])]
    for task in running:
        queues[task["queue"]]["processing"] += 1
    with suppress(redis.RedisError):
        messages, num_workers = dispatch.messages_by_priority(queues), workers.count(queues)
        for queue, state in queues.items():
            state["workers"] = num_workers[queue]
            state["messages"] = messages[queue] if owner is None else None
    return QueueStats(
        queues={
            queue: state
            for queue, state in queues.items()
            if queue in _ALWAYS_SHOWN or state["pending"] or state["processing"] or state["workers"]
        },
        totals=Totals(
            pending=sum(state["pending"] for state in queues.values()), processing=len(running)
        ),
        processing_tasks=[
            ProcessingTask(
                task_id=task["id"],
                model=task["model_name"],
                queue=task["queue"],
                attempt=task["attempt"],
                worker=task["worker"],
                started_at=events.iso(task["started_at"]),
                priority=task["priority"],
            )
            for task in running[:_MAX_PROCESSING_TASKS]
        ],
    )


def _pending_by_queue(owner: str | None) -> dict[str, QueueState]:
    """The state of each queue as far as the owner's pending tasks tell, or those of all owners."""
    queues = {
        queue.value: QueueState(
            pending=0,
            processing=0,
            workers=None,
            oldest_wait_seconds=None,
            by_priority={},
            messages=None,
        )
        for queue in Queue
    }
    pending = GenerationTask.objects.pending()
    groups = (pending if owner is None else pending.owned_by(owner)).values_list(
        "queue", "priority"
    )
    counted = groups.annotate(num_tasks=Count("pk"), oldest=Min("created_at"))
    for queue, priority, num_tasks, oldest in counted.order_by("queue", "-priority"):
        state = queues[queue]
        state["pending"] += num_tasks
        wait = max(0.0, round((database_clock.now() - oldest).total_seconds(), 1))
        state["oldest_wait_seconds"] = max(wait, state["oldest_wait_seconds"] or 0.0)
        if len(state["by_priority"]) < _MAX_PRIORITIES:
            # As JavaScript writes the numbers in JSON: 1 and 9.5.
            state["by_priority"][repr(priority).removesuffix(".0")] = num_tasks
    return queues
