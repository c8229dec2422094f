"""Who runs a task: claims, and the leases that they give."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from django.conf import settings
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now
from django.utils import timezone

from inference import events
from inference.errors import InferenceError
from inference.lifecycle.records import add_attempt
from inference.lifecycle.sql import CLAIM, FIRST_IN_LINE, FIRST_OF_MODEL, HELD, lease_end
from inference.lifecycle.task_log import log
from inference.models import GenerationTask, TaskAttempt
from monitoring.hardware import worker_identity

Status = GenerationTask.Status


@dataclass(slots=True)
class Lease:
    """A claimed task. The flags are set by the lease keeper and read between chunks."""

    task: GenerationTask
    cancel_requested: bool = False
    lost: bool = False

    @property
    def attempt(self) -> int:
        return self.task.attempt


def claim(task_id: str) -> Lease | None:
    """Take a pending task. None when another worker has it, or it may not start (now)."""
    with transaction.atomic():
        if not CLAIM.run(task_id=task_id, worker=worker_identity.current()):
            return None
    task = GenerationTask.objects.read(task_id)
    if task is None or task.worker != worker_identity.current():
        return None  # so late that the lease was lost, and the task deleted or given away
    log(task, logging.DEBUG, "Attempt %d started on %s", task.attempt, task.worker)
    events.started(task)
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


def begin_again(lease: Lease, failure: InferenceError) -> Lease | None:
    """End an attempt as failed and go on as the next one; None when the lease was lost.

    Another lease: whoever looks at the old one at this moment sees that its attempt is over.
    """
    task = lease.task
    with transaction.atomic():
        won = GenerationTask.objects.filter(
            pk=task.pk, attempt=lease.attempt, status=Status.PROCESSING
        ).update(attempt=F("attempt") + 1, started_at=Now(), updated_at=Now())
        if not won:
            return None
        add_attempt(task, TaskAttempt.Outcome.FAILED, failure)
    log(task, logging.WARNING, "Attempt %d starts over: %s", lease.attempt, failure.message)
    following = GenerationTask.objects.read(task.pk)
    if following is None or following.attempt != lease.attempt + 1:
        return None
    events.started(following)
    return Lease(following)
