"""The life of a task: submit, claim, renew, finish, cancel, sweep; nobody else changes a status.

Every change is a compare-and-set on the row; every write of a worker names its attempt, so a worker
that lost its lease can harm nothing.
"""

import json
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import IntegrityError, connection, transaction
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone

from inference import dispatch, task_events, worker_identity
from inference.errors import ErrorCode, InferenceError
from inference.models import (
    GenerationTask,
    GenerationTaskQuerySet,
    Queue,
    TaskAttempt,
    TaskResult,
)
from inference.statements import column_values
from inference.task_statements import (
    ADD_ATTEMPT,
    ADD_ENDED,
    CLAIM,
    FINISH,
    FIRST_IN_LINE,
    FIRST_OF_MODEL,
    HELD,
    SUBMIT,
    end_fields,
    lease_end,
)
from monitoring import logs, streams

logger = logging.getLogger(__name__)

Status = GenerationTask.Status

_SWEEP_LIMIT = 1000

_pending_seen = (float("-inf"), 0)


class IdempotencyConflictError(Exception):
    """The key was used before with another request."""


class QueueFullError(Exception):
    """MAX_PENDING_TASKS tasks are pending."""


@dataclass(slots=True)
class Lease:
    """A claimed task. The flags are set by the lease keeper and read between chunks."""

    task: GenerationTask
    cancel_requested: bool = False
    lost: bool = False

    @property
    def attempt(self) -> int:
        return self.task.attempt


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of an attempt went; None for what was never reached."""

    model_load_ms: float | None = None
    ttft_ms: float | None = None
    inference_ms: float | None = None


def submit(tasks: Sequence[GenerationTask]) -> list[GenerationTask]:
    """Save new tasks, all or none, and ring their workers after the commit.

    A task whose idempotency key was used before is answered by the first one. Raises
    IdempotencyConflictError when that first one was another request, and QueueFullError.
    """
    if _num_pending() + len(tasks) > settings.MAX_PENDING_TASKS:
        raise QueueFullError
    try:
        _insert_all(tasks)
        accepted = fresh = list(tasks)
    except IntegrityError:
        accepted, fresh = _submit_one_by_one(tasks)
    task_events.queued(fresh)
    dispatch.ring_soon(fresh)
    return accepted


def _insert_all(tasks: Sequence[GenerationTask]) -> None:
    """One transaction; what can be prepared is prepared before it, since writers take turns."""
    if len(tasks) > 1:
        with transaction.atomic():
            GenerationTask.objects.bulk_create(tasks)
        return
    values = column_values(tasks[0])
    with transaction.atomic():
        SUBMIT.run(**values)
    tasks[0]._state.adding = False  # as `save` does: the row is there


def _num_pending() -> int:
    """Counted at most once a second: the limit is a guard, not an exact number."""
    global _pending_seen
    now = time.monotonic()
    if now - _pending_seen[0] > 1:
        _pending_seen = (now, GenerationTask.objects.pending().count())
    return _pending_seen[1]


def _submit_one_by_one(
    tasks: Sequence[GenerationTask],
) -> tuple[list[GenerationTask], list[GenerationTask]]:
    """All tasks with the ones they repeat put in their place, and those that are new."""
    with transaction.atomic():
        accepted = [_first_with_key(task) or _insert(task) for task in tasks]
    new = {task.pk for task in tasks}
    return accepted, [task for task in accepted if task.pk in new]


def _insert(task: GenerationTask) -> GenerationTask:
    """Save the task, unless another request with its key was faster."""
    try:
        with transaction.atomic():
            task.save(force_insert=True)
    except IntegrityError:
        first = _first_with_key(task)
        if first is None:
            raise
        return first
    return task


def _first_with_key(task: GenerationTask) -> GenerationTask | None:
    if task.idempotency_key is None:
        return None
    return first_with_key(task.owner, task.idempotency_key, task.request_hash)


def first_with_key(owner: str, key: str, request_hash: str) -> GenerationTask | None:
    """The task that was submitted with this key. Raises IdempotencyConflictError if it differs."""
    first = GenerationTask.objects.filter(owner=owner, idempotency_key=key).first()
    if first and first.request_hash != request_hash:
        raise IdempotencyConflictError(key)
    return first


def claim(task_id: str) -> Lease | None:
    """Take a pending task. None when another worker has it, or it may not start (now)."""
    with transaction.atomic():
        if not CLAIM.run(task_id=task_id, worker=worker_identity.current()):
            return None
    task = GenerationTask.objects.read(task_id)
    if task is None or task.worker != worker_identity.current():
        return None  # so late that the lease was lost, and the task deleted or given away
    _log(task, logging.DEBUG, "Attempt %d started on %s", task.attempt, task.worker)
    task_events.started(task)
    return Lease(task)


def claim_most_urgent(queue: str) -> Lease | None:
    """Take the pending task of a queue that goes first; None when there is none."""
    while row := FIRST_IN_LINE.first_row(queue=queue):
        if lease := claim(row[0]):
            return lease
    return None


def claim_rider(queue: str, model_name: str, session_start: datetime) -> Lease | None:
    """Take the pending task of a model that runs already; None when it is another model's turn.

    That is when a task of another model has a higher priority; or the same and an earlier time, and
    the session has let it wait for longer than SWAP_WINDOW_SECONDS: two model changes are saved for
    each time that the session goes on.
    """
    while row := FIRST_IN_LINE.first_row(queue=queue):
        rider_id, first_model, first_priority = row
        if first_model != model_name:
            rider = FIRST_OF_MODEL.first_row(queue=queue, model_name=model_name)
            if rider is None or first_priority > rider[2] or _is_turn_of(row[0], session_start):
                return None
            rider_id = rider[0]
        if lease := claim(rider_id):
            return lease
    return None


def _is_turn_of(rival_id: str, session_start: datetime) -> bool:
    """Whether a task of another model has been passed over for long enough."""
    rival = GenerationTask.objects.read(rival_id)
    if rival is None:
        return False
    waiting_since = max(rival.created_at, session_start)
    return (timezone.now() - waiting_since).total_seconds() > settings.SWAP_WINDOW_SECONDS


def renew(leases: Iterable[Lease]) -> None:
    """Prolong the leases of this process in one UPDATE."""
    GenerationTask.objects.filter(
        pk__in=[lease.task.pk for lease in leases],
        status=Status.PROCESSING,
        worker=worker_identity.current(),
    ).update(lease_until=lease_end())


def refresh(leases: Iterable[Lease]) -> None:
    """Read what became of leases since: whether a cancel was asked for, or the lease was lost."""
    held = {row[0]: row[1:] for row in HELD.rows(worker=worker_identity.current())}
    for lease in leases:
        attempt, cancel_requested = held.get(lease.task.pk, (None, False))
        lease.lost = attempt != lease.attempt
        lease.cancel_requested = lease.cancel_requested or bool(cancel_requested)


def complete(lease: Lease, result: TaskResult, timings: Timings) -> bool:
    """Store the answer, and the conversation's turn with it. False when the lease was lost."""
    return _finish(lease, Status.COMPLETED, result, timings)


def fail(
    lease: Lease, failure: InferenceError, result: TaskResult | None, timings: Timings
) -> bool:
    """Store a failure, with the text that there is. False when the lease was lost."""
    return _finish(lease, Status.FAILED, result, timings, failure)


def finish_cancelled(lease: Lease, result: TaskResult, timings: Timings) -> bool:
    """Store what a cancelled task had said so far. False when the lease was lost."""
    return _finish(lease, Status.CANCELLED, result, timings)


def _finish(
    lease: Lease,
    status: "Status",
    result: TaskResult | None,
    timings: Timings,
    failure: InferenceError | None = None,
) -> bool:
    task = lease.task
    end = {
        "status": status.value,
        "error": failure.message if failure else None,
        "error_code": failure.code.value if failure else None,
        **asdict(timings),
    }
    with transaction.atomic():
        stored = None if result is None else json.dumps(result)
        won = FINISH.run(task_id=task.pk, attempt=lease.attempt, result=stored, **end)
        if not won:
            logger.warning("Task %s: attempt %d lost its lease", task.pk, lease.attempt)
            return False
        _add_attempt(task, TaskAttempt.Outcome(status))
        _store_end(task, {"result": result, **end})
        if status == Status.COMPLETED and result is not None:
            _save_turn(task, result["text"])
    _log(task, logging.INFO, "Attempt %d %s", lease.attempt, status)
    _announce_end(task)
    return True


def _add_attempt(task: GenerationTask, outcome: TaskAttempt.Outcome) -> None:
    """Record the attempt that ends now; call it in the transaction that ends it."""
    ADD_ATTEMPT.run(
        task_id=task.pk,
        number=task.attempt,
        worker=task.worker,
        model_name=task.model_name,
        started_at=connection.ops.adapt_datetimefield_value(task.started_at),
        outcome=outcome.value,
    )


def _store_end(task: GenerationTask, change: dict[str, Any]) -> None:
    """Add the task to the statistics; call it in the transaction that ends it.

    `change`: the fields that its end has set in the row; from now on the task in memory has them.
    """
    for name in task_events.END_FIELDS & change.keys():
        setattr(task, name, change[name])
    ADD_ENDED.run(
        model_name=task.model_name,
        outcome=str(task.status),
        prompt_tokens=task.usage["prompt_tokens"],
        completion_tokens=task.usage["completion_tokens"],
        cached_tokens=task.usage["cached_tokens"],
        queue_wait_ms=task.queue_wait_ms,
        ttft_ms=task.ttft_ms,
        inference_ms=task.inference_ms,
        total_ms=task.total_ms,
    )


def _save_turn(task: GenerationTask, answer: str) -> None:
    if task.conversation and task.request.get("save_to_conversation"):
        task.conversation.append_turn(_question(task), answer)


def _question(task: GenerationTask) -> str:
    """The user's side of the turn: the prompt, or the last message of an explicit history."""
    messages = task.request.get("messages")
    return str(messages[-1]["content"] if messages else task.request["prompt"])


def cancel(task: GenerationTask) -> bool:
    """Cancel a pending task, or ask the worker of a processing one. False when it has ended."""
    row = GenerationTask.objects.filter(pk=task.pk)
    if _end_pending(task, row.pending(), end_fields(Status.CANCELLED)):
        _log(task, logging.INFO, "Cancelled before it started")
        _announce_end(task)
        return True
    # The row may be claimed, or put back, between the two statements: ask in either case.
    asked = row.unfinished().update(cancel_requested=True, updated_at=Now())
    if asked and task.queue == Queue.GPU:
        dispatch.tell_gpu_sessions(cancelled=True)
    return bool(asked)


def _end_pending(task: GenerationTask, row: GenerationTaskQuerySet, change: dict[str, Any]) -> bool:
    """End a task that has not started. False when the row is no longer what it was."""
    with transaction.atomic():
        won = row.update(**change)
        if won:
            _store_end(task, change)
    return bool(won)


def sweep() -> None:
    """Repair what crashes left behind; safe to run at any time, anywhere, in parallel."""
    _expire_leases_of_dead_processes()
    _take_back_expired_leases()
    _fail_past_deadline()
    _ring_again()


def _expire_leases_of_dead_processes() -> None:
    """A dead process of this host renews nothing: no need to wait for its leases to run out."""
    processing = GenerationTask.objects.filter(
        status=Status.PROCESSING, worker__startswith=worker_identity.host_prefix()
    )
    for worker in set(processing.values_list("worker", flat=True)):
        if worker_identity.is_dead(worker):
            processing.filter(worker=worker).update(lease_until=Now())


def _take_back_expired_leases() -> None:
    expired = GenerationTask.objects.filter(status=Status.PROCESSING, lease_until__lte=Now())
    for task in expired[:_SWEEP_LIMIT]:
        _take_back(task)


def _take_back(task: GenerationTask) -> None:
    """Back to pending; cancelled if that was asked; failed if the last attempt is used up."""
    if task.cancel_requested:
        change = end_fields(Status.CANCELLED)
    elif task.attempt >= settings.MAX_ATTEMPTS:
        change = end_fields(Status.FAILED) | {
            "error_code": ErrorCode.WORKER_LOST,
            "error": f"The worker was lost {task.attempt} times while it ran this task. "
            "Look at the worker's log before you submit it again.",
        }
    else:
        change = {"status": Status.PENDING, "rung_at": None, "updated_at": Now()}
        change |= {"worker": "", "lease_until": None, "started_at": None}
    with transaction.atomic():
        won = GenerationTask.objects.filter(
            pk=task.pk, attempt=task.attempt, status=Status.PROCESSING, lease_until__lte=Now()
        ).update(**change)
        if not won:
            return
        _add_attempt(task, TaskAttempt.Outcome.LOST)
        if change["status"] != Status.PENDING:
            _store_end(task, change)
    _log(task, logging.WARNING, "Attempt %d lost with its worker %s", task.attempt, task.worker)
    if change["status"] == Status.PENDING:
        task_events.queued([task])
    else:
        _announce_end(task)


def _fail_past_deadline() -> None:
    late = GenerationTask.objects.pending().filter(deadline_at__lte=Now())
    for task in late[:_SWEEP_LIMIT]:
        reason = {
            "error_code": ErrorCode.DEADLINE_EXCEEDED,
            "error": "The task was not started within its deadline_seconds.",
        }
        change = end_fields(Status.FAILED) | reason
        if _end_pending(task, late.filter(pk=task.pk), change):
            _log(task, logging.INFO, "Not started before its deadline")
            _announce_end(task)


def _ring_again() -> None:
    """Ring tasks that were never rung, and those whose message is gone: rung, but no queue left."""
    patience = Now() - timedelta(seconds=settings.RING_AGAIN_SECONDS)
    claimable = GenerationTask.objects.claimable()
    unheard = claimable.filter(Q(rung_at=None) | Q(rung_at__lte=patience))
    for queue in set(unheard.values_list("queue", flat=True)):
        of_queue = unheard.filter(queue=queue)
        num_waiting = dispatch.waiting_messages(queue)
        if num_waiting is None:
            return  # there is no bell to ring
        if num_waiting:
            of_queue = of_queue.filter(rung_at=None)
        tasks = list(of_queue.most_urgent_first()[:_SWEEP_LIMIT])
        if not tasks:
            continue
        GenerationTask.objects.filter(pk__in=[task.pk for task in tasks]).update(rung_at=Now())
        dispatch.ring(tasks)
        logger.info("Rang %d pending tasks of queue %s again", len(tasks), queue)


def purge() -> int:
    """Delete tasks past their time to live, with their streams and logs; returns how many."""
    expired = GenerationTask.objects.filter(expires_at__lte=Now()).values_list("pk", flat=True)
    ids = list(expired[:_SWEEP_LIMIT])
    GenerationTask.objects.filter(pk__in=ids).delete()
    _forget(ids)
    return len(ids)


def delete(task: GenerationTask) -> bool:
    """Delete an ended task and what Redis keeps of it. False when it has not ended."""
    row = GenerationTask.objects.filter(pk=task.pk)
    num_deleted, _ = row.exclude(status__in=GenerationTask.UNFINISHED).delete()
    if num_deleted:
        _forget([task.pk])
    return bool(num_deleted)


def _forget(task_ids: list[str]) -> None:
    streams.delete(task_ids)
    logs.delete(task_ids)


def _announce_end(task: GenerationTask) -> None:
    """Tell readers, and ring the next task of the conversation: it waited for this one."""
    streams.end(task.pk, task.attempt, task.status)
    task_events.ended(task)
    if task.conversation_id:
        following = GenerationTask.objects.claimable().filter(conversation=task.conversation_id)
        dispatch.ring(list(following.order_by("created_at", "id")[:1]))


def _log(task: GenerationTask, level: int, message: str, *args: object) -> None:
    """Log a line that the task's report shows too; DEBUG ones it shows alone."""
    line = f"Task %s: {message}"
    logger.log(level, line, task.pk, *args, extra={"task_id": task.pk})
