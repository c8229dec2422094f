"""Claims of tasks, and the leases that they give."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.db.models import F
from django.db.models.functions import Now

from inference import events
from inference.errors import InferenceError
from inference.lifecycle import sql
from inference.lifecycle.lease_renewer import HeldRow
from inference.models import NO_COST, Cost, GenerationTask, Provenance, TaskAttempt
from inference.task_log import log
from monitoring import database_clock
from monitoring.api import storable_json
from monitoring.hardware import worker_identity

Status = GenerationTask.Status


@dataclass(slots=True)
class Lease(HeldRow):
    """A claimed task. The lease renewer sets the flags, which are read between deltas.

    What the attempt has cost, and how its answer came about, are known when it ends. `history_end`:
    the `id` of the last message that it has read of its conversation.
    `endpoint`: which one of a cloud model was asked last.
    `was_in_turn`: whether no task of another model should have gone first.
    """

    row: GenerationTask
    cost: Cost = NO_COST
    endpoint: str | None = None
    provenance: Provenance | None = None
    history_end: int | None = None
    was_in_turn: bool = True

    @property
    def task(self) -> GenerationTask:
        return self.row

    def task_costs(self) -> dict[str, Any]:
        """The fields of the task that say what it has cost, once the attempt has ended."""
        return asdict(self.task.cost + self.cost)


def claim(task_id: str) -> Lease | None:
    """Take a pending task. None when another worker has it, or it may not start (now)."""
    return _claim(sql.CLAIM, task_id=task_id)


def claim_most_urgent(
    queue: str, lowest_priorities: Mapping[str, float] | None = None
) -> Lease | None:
    """Take the pending task of a queue that goes first; None when there is none.

    At equal priority the owners share by weight, each with its own first task. Tasks of the models
    that are named wait on unless they have the priority that is named for it.
    """
    lowest = lowest_priorities or {}
    names = {f"model_{number}": name for number, name in enumerate(lowest)}
    priorities = {f"lowest_{number}": each for number, each in enumerate(lowest.values())}
    return _claim(sql.claim_first(len(lowest)), queue=queue, **names, **priorities)


def claim_joining(queue: str, model_name: str, in_turn_at: datetime) -> Lease | None:
    """Take the pending task of a model that runs already; None when it is another model's turn.

    That is when a task of another model has a higher priority; or the same and its owner's turn is
    first, and the session has let it wait past its turn for longer than SWAP_WINDOW_SECONDS: two
    model changes are saved for each time that the session goes on. Its turn came when the session
    last took the task whose turn it was (`in_turn_at`), or when it was submitted. A task that was
    lost joins nobody, and nobody goes before it: the session ends, and the task has one of its own.
    """
    while first := sql.first_task(sql.FIRST_OF_QUEUE, queue=queue):
        joining = first
        if first.model_name != model_name:
            of_model = sql.first_task(sql.FIRST_OF_MODEL, queue=queue, model_name=model_name)
            if of_model is None or first.priority > of_model.priority:
                return None
            waiting_since = max(first.created_at, in_turn_at)
            waited = database_clock.now() - waiting_since
            if waited.total_seconds() > settings.SWAP_WINDOW_SECONDS:
                return None
            joining = of_model
        if joining.was_lost:
            return None
        if lease := claim(joining.pk):
            lease.was_in_turn = joining is first
            return lease
    return None


def is_urgent(task: GenerationTask) -> bool:
    """Whether running tasks are paused for it."""
    return settings.PREEMPT_PRIORITY is not None and task.priority >= settings.PREEMPT_PRIORITY


def first_urgent(queue: str) -> GenerationTask | None:
    """The pending task that goes first, if running ones are to be paused for it.

    Not for one that was lost, which has to run alone.
    """
    if settings.PREEMPT_PRIORITY is None:
        return None
    first = sql.first_task(sql.FIRST_OF_QUEUE, queue=queue)
    return first if first is not None and is_urgent(first) and not first.was_lost else None


def _claim(statement: str, **condition: str | float) -> Lease | None:
    with transaction.atomic():
        task = sql.first_task(statement, worker=worker_identity.current(), **condition)
        if task and not task.has_share:
            sql.execute(sql.BEGIN_SHARE, **_share_of(task))
    if task is None:
        return None
    log(task, logging.DEBUG, "Attempt %d started on %s", task.attempt, task.worker)
    events.started(task)
    return Lease(task)


def _share_of(task: GenerationTask) -> dict[str, Any]:
    return {"queue": task.queue, "priority": task.priority, "owner": task.owner}


def begin_again(lease: Lease, failure: InferenceError) -> Lease | None:
    """End an attempt as failed and go on as the next one; None when the lease was lost.

    Another lease: whoever looks at the old one at this moment sees that its attempt is over.
    """
    task = lease.task
    with transaction.atomic():
        won = GenerationTask.objects.filter(
            pk=task.pk, attempt=lease.attempt, status=Status.PROCESSING
        ).update(attempt=F("attempt") + 1, started_at=Now(), updated_at=Now(), **lease.task_costs())
        if not won:
            return None
        add_attempt(task, TaskAttempt.Outcome.FAILED, failure, lease)
        charge(lease)
    log(task, logging.WARNING, "Attempt %d starts over: %s", lease.attempt, failure.message)
    following = GenerationTask.objects.read(task.pk)
    if following is None or following.attempt != lease.attempt + 1:
        return None
    events.started(following)
    return Lease(following)


def add_attempt(
    task: GenerationTask,
    outcome: TaskAttempt.Outcome,
    failure: InferenceError | None = None,
    lease: Lease | None = None,
) -> None:
    """Record the attempt that ends now; call it in the transaction that ends it.

    `lease`: None where its worker was lost.
    """
    cost = lease.cost if lease else NO_COST
    provenance = lease and lease.provenance
    sql.execute(
        sql.ADD_ATTEMPT,
        task_id=task.pk,
        number=task.attempt,
        worker=task.worker,
        model_name=task.model_name,
        started_at=connection.ops.adapt_datetimefield_value(task.started_at),
        outcome=outcome.value,
        error=failure.message if failure else None,
        error_code=failure.code.value if failure else None,
        history_end=lease and lease.history_end,
        provenance=provenance and storable_json.encode(provenance).decode(),
        **asdict(cost),
        endpoint=lease.endpoint if lease else None,
    )


def charge(lease: Lease, **use: int) -> None:
    """Have the owner pay for the attempt that ends now, last in the transaction that ends it.

    `use`: what else it has used, if the task ends too. All that ends of this owner waits for these
    rows.
    """
    task, cost = lease.task, lease.cost
    if cost.cost_nano_usd:
        use["cost_nano_usd"] = cost.cost_nano_usd
    started_at = connection.ops.adapt_datetimefield_value(task.started_at)
    share = {"weight": task.weight, "started_at": started_at, "gpu_seconds": cost.gpu_seconds}
    statements = (sql.ADD_TO_SHARE, sql.ADD_USE) if use else (sql.ADD_TO_SHARE,)
    sql.execute_last(*statements, **_share_of(task), **share, **sql.NO_USE | use)
