"""What the rows of a service say while its processes are killed, and once nothing is left to do.

Read through Django's models: import it once Django knows the database of the service.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import redis
from django.db import Error as DatabaseError
from django.db import connection
from django.db.models import Sum

from conversations.models import Message
from inference.models import Batch, GenerationTask, TaskAttempt, WebhookDelivery
from monitoring.hardware import worker_identity, workers
from monitoring.models import EndedTask, OwnerUse

Status = GenerationTask.Status
_Row = tuple[str, str, int]  # kind, id, attempt
_CLAIMED: dict[str, Any] = {"webhooks": WebhookDelivery.objects, "batches": Batch.objects}


class Watch:
    """How long rows wait without a living owner, in seconds by kind, the tasks by their queue.

    `waited`: all that are due, or held by a process that is gone. `stood_still`: those of them
    that are held so, or due while no living process holds any row of their kind. `ignored`: those
    that stood still while a living worker of their queue was there, which needs only to look.
    """

    def __init__(self) -> None:
        self.waited, self.stood_still, self.ignored = Longest(), Longest(), Longest()

    def look(self) -> None:
        """Look at all rows that are to do something; time goes on while the database is away."""
        try:
            due, held = set(_due()), dict(_held())
        except DatabaseError:
            connection.close()
            return
        try:
            served = set(workers.alive())
        except redis.RedisError:
            served = set()
        lost = {row for row, worker in held.items() if worker_identity.is_gone(worker)}
        moving = {kind for kind, _, _ in held.keys() - lost}
        still = lost | {row for row in due if row[0] not in moving}
        self.waited.see(due | lost)
        self.stood_still.see(still)
        self.ignored.see({row for row in still if _queue_of(row) in served})


class Longest:
    """Of rows in some state: the longest time that one was in it, by kind, and which one."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.which: dict[str, str] = {}
        self._since: dict[_Row, float] = {}

    def see(self, rows: Iterable[_Row]) -> None:
        """Those that are in it now."""
        now = time.monotonic()
        self._since = {row: self._since.get(row, now) for row in rows}
        for (kind, pk, attempt), since in self._since.items():
            if now - since > self.seconds[kind]:
                self.seconds[kind] = now - since
                self.which[kind] = f"{pk}, after attempt {attempt}"


def _queue_of(row: _Row) -> str:
    """Whose workers serve it."""
    kind = row[0]
    return "default" if kind in _CLAIMED else kind.removesuffix(" tasks")


def _due() -> Iterator[_Row]:
    for queue, pk, attempt in GenerationTask.objects.due().values_list("queue", "pk", "attempt"):
        yield f"{queue} tasks", pk, attempt
    for kind, rows in _CLAIMED.items():
        for pk, attempt in rows.due().values_list("pk", "attempt"):
            yield kind, pk, attempt


def _held() -> Iterator[tuple[_Row, str]]:
    """With the worker."""
    running = GenerationTask.objects.filter(status=Status.PROCESSING)
    for queue, pk, attempt, worker in running.values_list("queue", "pk", "attempt", "worker"):
        yield (f"{queue} tasks", pk, attempt), worker
    for kind, rows in _CLAIMED.items():
        held = rows.filter(lease_until__isnull=False)
        for pk, attempt, worker in held.values_list("pk", "attempt", "worker"):
            yield (kind, pk, attempt), worker


def num_left() -> int:
    """Tasks, batches and webhooks that have not ended."""
    pending = (WebhookDelivery.Status.PENDING, WebhookDelivery.Status.DELIVERING)
    return (
        GenerationTask.objects.unfinished().count()
        + Batch.objects.unfinished().count()
        + WebhookDelivery.objects.filter(status__in=pending).count()
    )


def counts() -> dict[str, int]:
    """Rows by what they are."""
    ends = GenerationTask.objects.values_list("status", "error_code")
    tasks = Counter(f"tasks {status} {code or ''}".strip() for status, code in ends)
    attempts = Counter(f"attempts {each}" for each in _attempts().values_list("outcome", flat=True))
    return {**tasks, **attempts, "batches": Batch.objects.count()}


def completed_attempts() -> Iterator[tuple[str, float, float]]:
    """Queue, start and end of each, by the clock."""
    completed = TaskAttempt.objects.filter(outcome=TaskAttempt.Outcome.COMPLETED)
    for queue, *times in completed.values_list("task__queue", "started_at", "ended_at"):
        begun_at, ended_at = (moment.timestamp() for moment in times)
        yield queue, begun_at, ended_at


def problems(
    accepted: Collection[str], batches: Collection[str], webhook_ids: dict[str, set[str]]
) -> dict[str, list[str]]:
    """What is lost, and what is there twice.

    `webhook_ids`: by task, those of the webhooks that have arrived.
    """
    lost, doubled = [], []
    tasks = {task.pk: task for task in GenerationTask.objects.defer("request")}
    lost += [f"{pk} was accepted and is gone" for pk in accepted if pk not in tasks]
    lost += [f"{pk} is {task.status}" for pk, task in tasks.items() if not task.has_ended]
    numbers: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    for pk, number, outcome in _attempts().values_list("task_id", "number", "outcome"):
        numbers[pk].append((number, outcome))
    for pk, task in tasks.items():
        if is_wrong := _wrong_attempts(task, numbers[pk]):
            doubled.append(f"{pk} is {task.status} and has {is_wrong}")
    keys = Counter(task.idempotency_key for task in tasks.values() if task.idempotency_key)
    doubled += [f"{num} tasks of one idempotency key" for num in keys.values() if num > 1]
    doubled += _wrong_totals(len(tasks))
    doubled += _doubled_messages()
    hooked = WebhookDelivery.objects.values_list("task_id", "pk", "status")
    deliveries: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for task_id, pk, status in hooked:
        deliveries[str(task_id)].append((pk, status))
    asked = GenerationTask.objects.filter(request__webhook_url__isnull=False)
    for task_id in asked.exclude(request__webhook_url=None).values_list("pk", flat=True):
        rows, arrived = deliveries[task_id], webhook_ids.get(task_id, set())
        if not arrived:
            lost.append(f"the webhook of {task_id} has not arrived: {rows}")
        if len(rows) > 1 or len(arrived) > 1:
            doubled.append(f"{task_id} has the webhooks {rows}, arrived as {arrived}")
    found = {batch.pk: batch for batch in Batch.objects.all()}
    lost += [f"{pk} was accepted and is gone" for pk in batches if pk not in found]
    for pk, batch in found.items():
        if batch.status != Batch.Status.COMPLETED:
            lost.append(f"{pk} is {batch.status}: {batch.errors}")
        if batch.num_completed + batch.num_failed != batch.num_requests:
            doubled.append(f"{pk} has {batch.num_completed} + {batch.num_failed} answers")
    return {"lost": lost, "doubled": doubled}


def _attempts() -> Any:
    return TaskAttempt.objects.order_by("task_id", "number")


def _wrong_attempts(task: GenerationTask, attempts: list[tuple[int, str]]) -> str:
    """The attempts where they do not fit the task's end; "" where they do."""
    outcomes = [outcome for _, outcome in attempts]
    is_counted = [number for number, _ in attempts] == list(range(1, task.attempt + 1))
    last = outcomes[-1] if outcomes else None
    fits = (
        {
            Status.COMPLETED: last == "completed",
            Status.CANCELLED: last in ("cancelled", "lost", None),
            Status.FAILED: last in ("failed", "lost", None),
        }[Status(task.status)]
        if task.has_ended
        else True
    )
    is_once = not {"completed", "cancelled"} & set(outcomes[:-1])
    return "" if is_counted and fits and is_once else f"the attempts {attempts}"


def _wrong_totals(num_tasks: int) -> list[str]:
    """Each end is counted once, in the statistics and in what its owner has used."""
    counted = {
        "statistics": EndedTask.objects.count(),
        "the owners' use": OwnerUse.objects.aggregate(num=Sum("num_tasks"))["num"],
    }
    return [
        f"{name} count {num} of {num_tasks}" for name, num in counted.items() if num != num_tasks
    ]


def _doubled_messages() -> list[str]:
    """Questions of a conversation that it has twice: each has a number of its own."""
    asked = Message.objects.filter(role=Message.Role.USER)
    texts = Counter(asked.values_list("conversation_id", "content"))
    return [f"{key} is there {num} times" for key, num in texts.items() if num > 1]
