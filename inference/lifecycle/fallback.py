"""Handing a task on to the next of its models."""

import logging
from typing import Any

from django.db import transaction
from django.db.models.functions import Now

from inference import dispatch, events
from inference.errors import ErrorCode, InferenceError
from inference.lifecycle.claim import Lease, add_attempt, charge
from inference.models import GenerationTask, Queue, TaskAttempt
from inference.models.claimable import UNHELD
from inference.task_log import log

Status = GenerationTask.Status

# The fields of a task that waits to be claimed.
UNCLAIMED: dict[str, Any] = {
    "status": Status.PENDING,
    **UNHELD,
    "due_at": None,
    "started_at": None,
    "updated_at": Now(),
}


def may_fall_back(task: GenerationTask, failure: InferenceError) -> bool:
    """Whether another model may succeed."""
    if failure.code == ErrorCode.CONTEXT_LENGTH_EXCEEDED:
        return bool(task.request["context_overflow"] == "truncate")
    return not failure.is_requests_own_fault


def fall_back(lease: Lease, failure: InferenceError) -> bool:
    """Queue the task for its next model. False without one, and when it is cancelled or lost."""
    task = lease.task
    change = next_fallback(task)
    if change is None:
        return False
    if not end_attempt(lease, failure, change):
        return False
    announce_fallback(task, change, failure.message)
    return True


def end_attempt(lease: Lease, failure: InferenceError, change: dict[str, Any]) -> bool:
    """End an attempt as failed, its task going on by `change`. False when cancelled or lost."""
    row = GenerationTask.objects.filter(
        pk=lease.task.pk, attempt=lease.attempt, status=Status.PROCESSING, cancel_requested=False
    )
    with transaction.atomic():
        won = row.update(**change, **lease.task_costs())
        if won:
            add_attempt(lease.task, TaskAttempt.Outcome.FAILED, failure, lease)
            charge(lease)
    if won:
        enqueue_next_of_owner(lease.task)
    return bool(won)


def enqueue_next_of_owner(task: GenerationTask) -> None:
    """Wake workers for an owner who has one task less running, and may have only so many."""
    if task.max_running is None:
        return
    due = GenerationTask.objects.due().filter(owner=task.owner).order_by("-priority")
    for queue in (Queue.GPU, Queue.API):
        dispatch.enqueue(dispatch.generate(due.filter(queue=queue)[:1]))


def next_fallback(task: GenerationTask) -> dict[str, Any] | None:
    """The fields that queue a task for its next model; None when there is none left.

    It has been started in time: no deadline applies any more.
    """
    following = task.next_model()
    if following is None:
        return None
    return UNCLAIMED | {
        "enqueued_at": Now(),
        "deadline_at": None,
        "model_name": following["model"],
        "queue": following["queue"],
        "request": task.request | {"params": following["params"], "num_retries": 0},
    }


def announce_fallback(task: GenerationTask, change: dict[str, Any], reason: str) -> None:
    """Wake a worker of the next model, once `change` is in the row."""
    failed = task.model_name
    for name in ("status", "model_name", "queue", "request"):
        setattr(task, name, change[name])
    log(task, logging.WARNING, "%s failed, %s is asked: %s", failed, task.model_name, reason)
    events.queued([task])
    dispatch.enqueue(dispatch.generate([task]))
