"""Makes good what crashes leave behind, does what time brings about, and enqueues what is due."""

import logging
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import redis
from django.conf import settings
from django.db import transaction
from django.db.models import Q, QuerySet
from django.db.models.functions import Now

from inference import dispatch, events
from inference.errors import ErrorCode, InferenceError
from inference.lifecycle import sql
from inference.lifecycle.claim import add_attempt
from inference.lifecycle.fallback import UNCLAIMED, announce_fallback, next_fallback
from inference.lifecycle.finish import announce_end, end_fields, end_pending, store_end
from inference.lifecycle.traces import AttemptTrace
from inference.models import (
    Batch,
    GenerationTask,
    GenerationTaskQuerySet,
    ModelDownload,
    Queue,
    RegisteredModel,
    TaskAttempt,
    WebhookDelivery,
)
from inference.task_log import log
from inference.webhooks import deliveries
from monitoring.events import log as log_of_events
from monitoring.streams import delta_stream

logger = logging.getLogger(__name__)

Status = GenerationTask.Status

_SWEEP_LIMIT = 1000
_MAX_OWN_DOING = 2
# A process tells of the end of a task within less, unless it is killed.
_TELLING_SECONDS = 10.0
# Between the sweeps of a process, clocks that nobody sets differ by less.
_MAX_DRIFT_SECONDS = 2.0

# How far the database's clock was ahead of this process's at its last sweep, which nobody can set.
_ahead_seconds: float | None = None
_distrusted_until = 0.0


def sweep() -> None:
    """Safe to run at any time, anywhere, in parallel."""
    clock = sql.clock()
    is_clock_steady = _is_clock_steady(clock)
    lost = GenerationTask.objects.lost(is_clock_steady=is_clock_steady)
    for task in lost[:_SWEEP_LIMIT]:
        _take_back(task, lost)
    ModelDownload.objects.take_back(is_clock_steady=is_clock_steady)
    WebhookDelivery.objects.take_back(is_clock_steady=is_clock_steady)
    Batch.objects.take_back(is_clock_steady=is_clock_steady)
    _fail_past_deadline()
    if settings.AGING_PRIORITY_PER_MINUTE:
        sql.execute(sql.AGE, rate=settings.AGING_PRIORITY_PER_MINUTE)
    _enqueue_tasks()
    for rows, message, max_at_once in (
        (ModelDownload.objects.due(), dispatch.DOWNLOAD, ModelDownload.MAX_AT_ONCE),
        (WebhookDelivery.objects.due(), dispatch.DELIVER_WEBHOOK, deliveries.max_at_once()),
        (Batch.objects.due(), dispatch.ADVANCE_BATCHES, Batch.MAX_AT_ONCE),
    ):
        if num_due := rows.count():
            dispatch.enqueue([message] * min(num_due, max_at_once))
    _tell_untold_ends(clock - _TELLING_SECONDS)


def _is_clock_steady(clock: float) -> bool:
    """False for LEASE_SECONDS after the database's clock was set forward, or this host suspended.

    Leases of living workers seem to have run out then, until these renew them.
    """
    global _ahead_seconds, _distrusted_until
    now = time.monotonic()
    ahead_seconds = clock - now
    if _ahead_seconds is not None and ahead_seconds - _ahead_seconds > _MAX_DRIFT_SECONDS:
        _distrusted_until = now + settings.LEASE_SECONDS
        message = "The database's clock was set forward by %.0f s: leases run out %d s later"
        logger.warning(message, ahead_seconds - _ahead_seconds, settings.LEASE_SECONDS)
    _ahead_seconds = ahead_seconds
    return now >= _distrusted_until


def take_back_from(child: str, reason: str) -> None:
    """Take back the tasks of a pool child whose main process saw it die, and lives on.

    `child` is what its identity starts with, `reason` names the signal. A restart ends the main
    process too, so a task has ended the child: the one that it ran, if it was only one. Not by
    SIGTERM, which supervisors send to all processes of a worker.
    """
    lost = GenerationTask.objects.lost().filter(worker__startswith=child)
    for task in lost:
        _take_back(task, lost)
    # By the attempts, since another sweep may have been faster.
    of_child = TaskAttempt.objects.lost_with(child)
    attempts = list(of_child.select_related("task"))
    if len(attempts) != 1 or "SIGTERM" in reason:
        return
    [attempt] = attempts
    culprit = "Its prompt" if attempt.error_code is None else "Loading its model"
    of_child.update(
        error=f"{culprit} has ended the worker, which ran no other task. {reason}",
        error_code=ErrorCode.WORKER_LOST,
    )
    num_own_doing = _lost_attempts(attempt.task).filter(error_code=ErrorCode.WORKER_LOST).count()
    if num_own_doing >= _MAX_OWN_DOING:
        _give_up(
            attempt,
            f"{culprit} has ended the worker {num_own_doing} times while no other task ran: by a "
            "crash, or for want of memory. Change the prompt, or choose another model.",
        )


def _take_back(task: GenerationTask, lost: GenerationTaskQuerySet) -> None:
    """Back to pending; cancelled if that was asked; its last attempt used up, as `fail` does."""
    num_lost = _lost_attempts(task).count() + 1
    if task.cancel_requested:
        change = end_fields(Status.CANCELLED)
    elif num_lost < settings.MAX_ATTEMPTS:
        change = UNCLAIMED | {"enqueued_at": None}
    else:
        why = (
            f"The worker was lost {num_lost} times while it ran this task. "
            "Look at the worker's log before you submit it again."
        )
        change = next_fallback(task) or _failure(why)
    failure = None
    loading = RegisteredModel.objects.filter(status=RegisteredModel.Status.LOADING)
    if loading.filter(name=task.model_name, loaded_by=task.worker).exists():
        message = "The worker was lost while it loaded the model."
        failure = InferenceError(message, ErrorCode.MODEL_LOAD_FAILED)
    with transaction.atomic():
        if not lost.filter(pk=task.pk, attempt=task.attempt).update(**change):
            return  # it was renewed, or another sweep was faster
        add_attempt(task, TaskAttempt.Outcome.LOST, failure)
        if change["status"] != Status.PENDING:
            store_end(task, change)
    log(task, logging.WARNING, "Attempt %d lost with its worker %s", task.attempt, task.worker)
    AttemptTrace(task).lost()
    if "model_name" in change:
        announce_fallback(task, change, f"its worker was lost {num_lost} times")
    elif change["status"] == Status.PENDING:
        events.queued([task])
    else:
        announce_end(task)


def _give_up(attempt: TaskAttempt, why: str) -> None:
    """Queue the task of a lost attempt for its next model, or fail it, unless it runs again."""
    task = attempt.task
    waiting = GenerationTask.objects.pending().filter(pk=task.pk, attempt=attempt.number)
    if fallback := next_fallback(task):
        if waiting.update(**fallback):
            announce_fallback(task, fallback, why)
        return
    task.started_at = attempt.started_at
    if end_pending(task, waiting, _failure(why) | {"started_at": attempt.started_at}):
        announce_end(task)


def _lost_attempts(task: GenerationTask) -> QuerySet[TaskAttempt]:
    """Those of its present model."""
    return task.attempts.filter(outcome=TaskAttempt.Outcome.LOST, model_name=task.model_name)


def _failure(why: str) -> dict[str, Any]:
    return end_fields(Status.FAILED) | {"error_code": ErrorCode.WORKER_LOST, "error": why}


def _fail_past_deadline() -> None:
    late = GenerationTask.objects.pending().filter(deadline_at__lte=Now())
    for task in late[:_SWEEP_LIMIT]:
        reason = {
            "error_code": ErrorCode.DEADLINE_EXCEEDED,
            "error": "The task was not started within its deadline_seconds.",
        }
        change = end_fields(Status.FAILED) | reason
        if end_pending(task, late.filter(pk=task.pk), change):
            log(task, logging.INFO, "Not started before its deadline")
            announce_end(task)


def _enqueue_tasks() -> None:
    """Tasks that have no message, and those whose message is gone: sent, but no queue is left."""
    long_ago = Now() - timedelta(seconds=settings.RING_AGAIN_SECONDS)
    for queue in (Queue.GPU, Queue.API):
        due = GenerationTask.objects.due().filter(queue=queue)
        if not due.exists():
            continue
        num_messages = dispatch.waiting_messages(queue)
        if num_messages is None:
            return  # no messages without a broker
        without_message = Q(enqueued_at=None)
        if not num_messages:
            without_message |= Q(enqueued_at__lte=long_ago)
        # Which of equal priority goes first is for the claims to say: the index has this order.
        tasks = list(due.filter(without_message).order_by("-priority")[:_SWEEP_LIMIT])
        if not tasks:
            continue
        ids = [task.pk for task in tasks]
        GenerationTask.objects.filter(pk__in=ids).update(enqueued_at=Now())
        dispatch.enqueue(dispatch.generate(tasks), is_heard=False)
        logger.info("Enqueued %d pending tasks of queue %s again", len(tasks), queue)


def _tell_untold_ends(until: float) -> None:
    """Tell of ends before that time whose processes were killed after they had stored them."""
    time_to_live = timedelta(seconds=settings.TASK_TTL_SECONDS)
    try:
        told_until = log_of_events.told_until()
        if told_until is None:  # an empty Redis does not know what was told
            log_of_events.set_told_until(until)
            return
        after = max(told_until, until - log_of_events.TOLD_SECONDS / 2)
        # The end of a task sets when it expires, which has an index.
        ended = GenerationTask.objects.filter(
            expires_at__gte=datetime.fromtimestamp(after, UTC) + time_to_live,
            expires_at__lt=datetime.fromtimestamp(until, UTC) + time_to_live,
        )
        untold = log_of_events.untold(list(ended.values_list("pk", flat=True)))
        for task in GenerationTask.objects.filter(pk__in=untold[:_SWEEP_LIMIT]):
            log(task, logging.WARNING, "A process was killed before it told of the end")
            delta_stream.end(task.pk)
            events.tell_end(task)
        if not untold and until > told_until:  # else the next sweep sees whether all were told
            log_of_events.set_told_until(until)
    except redis.RedisError as exc:
        logger.debug("Whose ends were not told is found out later: %s", exc)
