"""Submitting tasks: saved once for each idempotency key, while the queue has room."""

import time
from collections.abc import Callable, Sequence
from datetime import timedelta

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Exists, Max, OuterRef

from conversations.models import Conversation
from inference import dispatch, events
from inference.lifecycle import sql
from inference.models import GenerationTask

_pending_seen = (float("-inf"), 0)


class IdempotencyConflictError(Exception):
    """The key was used before with another request."""


class QueueFullError(Exception):
    """MAX_PENDING_TASKS tasks are pending."""


class PendingLimitError(Exception):
    """The owner has as many pending tasks as it may have."""


class AlreadyRequeuedError(Exception):
    """The task was requeued before, and the other one is still there."""


class ConversationGoneError(Exception):
    """The conversation was deleted after the task was checked."""


def submit(
    tasks: Sequence[GenerationTask],
    max_pending: int | None = None,
    in_transaction: Callable[[], object] = lambda: None,
) -> list[GenerationTask]:
    """Save those that are new, all or none, and enqueue them after the commit.

    They are made a microsecond apart, so that equal priorities run in the order given, and after
    all tasks of their conversations that have not ended. One whose
    idempotency key was used before is answered by the first task of that key. Raises
    IdempotencyConflictError when that was another request, QueueFullError, ConversationGoneError,
    PendingLimitError when their owner would have more than `max_pending` tasks pending.
    `in_transaction` is called in the transaction that saves them; what it raises saves none.
    """
    fresh = [task for task in tasks if task._state.adding]
    if not fresh:
        return list(tasks)
    if _num_pending() + len(fresh) > settings.MAX_PENDING_TASKS:
        raise QueueFullError
    first_at = fresh[0].created_at
    if conversations := {task.conversation_id for task in fresh if task.conversation_id}:
        # Turns run in the order of submission, though the clocks of web processes may differ.
        earlier = GenerationTask.objects.unfinished().filter(conversation__in=conversations)
        if last_at := earlier.aggregate(last_at=Max("created_at"))["last_at"]:
            first_at = max(first_at, last_at + timedelta(microseconds=1))
    for index, task in enumerate(fresh):
        task.created_at = first_at + timedelta(microseconds=index)
    accepted = list(tasks)
    values = sql.column_values(fresh[0])  # prepared before, since writers take turns
    try:
        with transaction.atomic():
            _check_pending(fresh, max_pending)
            if len(fresh) > 1:
                GenerationTask.objects.bulk_create(fresh)
            else:
                sql.execute(sql.SUBMIT, **values)
            in_transaction()
        fresh[0]._state.adding = False  # as `save` does: the row is there
    except IntegrityError:
        ids = {task.conversation_id for task in tasks if task.conversation_id}
        if Conversation.objects.filter(pk__in=ids).count() < len(ids):
            raise ConversationGoneError from None
        with transaction.atomic():
            _check_pending(fresh, max_pending)
            saved = {task.pk: _first_or_saved(task) for task in fresh}
            in_transaction()
        accepted = [saved.get(task.pk, task) for task in tasks]
        fresh = [task for task in fresh if saved[task.pk] is task]
    for task in fresh:
        if task.conversation_id:
            # It waits for the turns before it, so these are as urgent as it is.
            earlier = GenerationTask.objects.pending().filter(
                conversation=task.conversation_id, created_at__lt=task.created_at
            )
            earlier.filter(priority__lt=task.priority).update(priority=task.priority)
    events.queued(fresh)
    dispatch.enqueue_soon(dispatch.generate(fresh))
    return accepted


def resubmit(
    tasks: Sequence[GenerationTask], max_pending: int | None = None
) -> list[GenerationTask]:
    """As `submit` does, tasks that were made of ended ones, which name them from then on.

    Raises AlreadyRequeuedError where an ended one names another, which is still there.
    """

    def name_them() -> None:
        for task in tasks:
            there = GenerationTask.objects.filter(pk=OuterRef("requeued_as"))
            ended = GenerationTask.objects.filter(~Exists(there), pk=task.requeued_from)
            if not ended.update(requeued_as=task.pk):
                raise AlreadyRequeuedError(task.requeued_from)

    return submit(tasks, max_pending, name_them)


def check_room(task: GenerationTask, max_pending: int | None = None) -> None:
    """Raise what `submit` would raise for want of room."""
    if _num_pending() + 1 > settings.MAX_PENDING_TASKS:
        raise QueueFullError
    _check_pending([task], max_pending)


def _check_pending(fresh: Sequence[GenerationTask], max_pending: int | None) -> None:
    """Exact, since submissions of an owner with a limit take turns. Raises PendingLimitError."""
    if max_pending is None:
        return
    owner = fresh[0].owner
    sql.take_turns(f"pending of {owner}")
    num_pending = GenerationTask.objects.pending().owned_by(owner).count()
    if num_pending + len(fresh) > max_pending:
        raise PendingLimitError


def _num_pending() -> int:
    """Counted at most once a second: the limit is a guard, not an exact number."""
    global _pending_seen
    now = time.monotonic()
    if now - _pending_seen[0] > 1:
        _pending_seen = (now, GenerationTask.objects.pending().count())
    return _pending_seen[1]


def _first_or_saved(task: GenerationTask) -> GenerationTask:
    """The task that was submitted with its key before, or else the task, saved now."""
    try:
        with transaction.atomic():
            task.save(force_insert=True)
    except IntegrityError:
        key = task.idempotency_key
        first = first_with_key(task.owner, key, task.request_hash) if key else None
        if first is None:
            raise
        return first
    return task


def first_with_key(owner: str, key: str, request_hash: str) -> GenerationTask | None:
    """The task that was submitted with this key. Raises IdempotencyConflictError if it differs."""
    first = GenerationTask.objects.filter(owner=owner, idempotency_key=key).first()
    if first and first.request_hash != request_hash:
        raise IdempotencyConflictError(key)
    return first
