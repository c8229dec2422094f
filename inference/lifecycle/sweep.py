"""What makes good what crashes leave behind, and what time brings about."""

import logging
from datetime import timedelta

from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Now

from inference import dispatch, events
from inference.errors import ErrorCode
from inference.lifecycle import traces
from inference.lifecycle.claim import add_attempt
from inference.lifecycle.fallback import UNCLAIMED, announce_fallback, next_fallback
from inference.lifecycle.finish import announce_end, end_fields, end_pending, store_end
from inference.models import GenerationTask, TaskAttempt
from inference.models.claimable import of_gone_workers
from inference.task_log import log

logger = logging.getLogger(__name__)

Status = GenerationTask.Status

_SWEEP_LIMIT = 1000


def sweep() -> None:
    """Repair what crashes left behind; safe to run at any time, anywhere, in parallel."""
    _expire_leases_of_dead_processes()
    _take_back_expired_leases()
    _fail_past_deadline()
    _ring_again()


def _expire_leases_of_dead_processes() -> None:
    """A dead process of this host renews nothing: no need to wait for its leases to run out."""
    processing = GenerationTask.objects.filter(status=Status.PROCESSING)
    of_gone_workers(processing).update(lease_until=Now())


def _take_back_expired_leases() -> None:
    expired = GenerationTask.objects.filter(status=Status.PROCESSING, lease_until__lte=Now())
    for task in expired[:_SWEEP_LIMIT]:
        _take_back(task)


def _take_back(task: GenerationTask) -> None:
    """Back to pending; cancelled if that was asked; its last attempt used up, as `fail` does."""
    lost = task.attempts.filter(outcome=TaskAttempt.Outcome.LOST, model_name=task.model_name)
    num_lost = lost.count() + 1
    if task.cancel_requested:
        change = end_fields(Status.CANCELLED)
    elif num_lost < settings.MAX_ATTEMPTS:
        change = UNCLAIMED | {"rung_at": None}
    else:
        change = next_fallback(task) or end_fields(Status.FAILED) | {
            "error_code": ErrorCode.WORKER_LOST,
            "error": f"The worker was lost {num_lost} times while it ran this task. "
            "Look at the worker's log before you submit it again.",
        }
    with transaction.atomic():
        won = GenerationTask.objects.filter(
            pk=task.pk, attempt=task.attempt, status=Status.PROCESSING, lease_until__lte=Now()
        ).update(**change)
        if not won:
            return
        add_attempt(task, TaskAttempt.Outcome.LOST)
        if change["status"] != Status.PENDING:
            store_end(task, change)
    log(task.pk, logging.WARNING, "Attempt %d lost with its worker %s", task.attempt, task.worker)
    traces.lost(task)
    if "model_name" in change:
        announce_fallback(task, change, f"its worker was lost {num_lost} times")
    elif change["status"] == Status.PENDING:
        events.queued([task])
    else:
        announce_end(task)


def _fail_past_deadline() -> None:
    late = GenerationTask.objects.pending().filter(deadline_at__lte=Now())
    for task in late[:_SWEEP_LIMIT]:
        reason = {
            "error_code": ErrorCode.DEADLINE_EXCEEDED,
            "error": "The task was not started within its deadline_seconds.",
        }
        change = end_fields(Status.FAILED) | reason
        if end_pending(task, late.filter(pk=task.pk), change):
            log(task.pk, logging.INFO, "Not started before its deadline")
            announce_end(task)


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
