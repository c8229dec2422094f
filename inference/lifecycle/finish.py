"""The ends of a task's life: its result, its failure, its cancel, and its deletion."""

import logging
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now

from conversations.models import ChatMessage, Message
from inference import dispatch, events
from inference.engine.sequence import FinishReason
from inference.errors import InferenceError, RetryLater
from inference.lifecycle import sql
from inference.lifecycle.claim import Lease, add_attempt, charge
from inference.lifecycle.fallback import (
    UNCLAIMED,
    end_attempt,
    enqueue_next_of_owner,
    fall_back,
    may_fall_back,
)
from inference.models import (
    GenerationTask,
    GenerationTaskQuerySet,
    Queue,
    TaskAttempt,
    TaskResult,
)
from inference.task_log import log
from inference.webhooks import deliveries
from monitoring.api import storable_json
from monitoring.logs import service_log
from monitoring.streams import delta_stream

logger = logging.getLogger(__name__)

Status = GenerationTask.Status

_PURGE_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class Timings:
    """The times of an attempt in milliseconds; None for a step that it never reached."""

    model_load_ms: float | None = None
    ttft_ms: float | None = None
    inference_ms: float | None = None


def complete(lease: Lease, result: TaskResult, timings: Timings) -> bool:
    """Store the answer, and the conversation's turn with it; of a cancelled task, its text alone.

    False when the lease was lost.
    """
    return _finish(lease, Status.COMPLETED, result, timings)


def fail(
    lease: Lease, failure: InferenceError, result: TaskResult | None, timings: Timings
) -> bool:
    """Hand the task on to its next fallback; without one, store the failure and the text there is.

    A cancelled task ends as cancelled. False when the lease was lost.
    """
    if may_fall_back(lease.task, failure) and fall_back(lease, failure):
        return True
    return _finish(lease, Status.FAILED, result, timings, failure)


def put_back(lease: Lease, later: RetryLater, result: TaskResult, timings: Timings) -> bool:
    """Have the task wait for its next attempt; cancel it if that was asked for meanwhile.

    False when the lease was lost. It has been started in time: no deadline applies any more.
    """
    task = lease.task
    change = UNCLAIMED | {
        "due_at": Now() + timedelta(seconds=later.seconds),
        "enqueued_at": Now(),
        "deadline_at": None,
        "request": task.request | {"num_retries": later.num_retries},
    }
    if not end_attempt(lease, later.failure, change):
        return finish_cancelled(lease, result, timings)
    task.status = Status.PENDING
    message = "Attempt %d failed, the next one starts in %.1f s: %s"
    log(task, logging.WARNING, message, lease.attempt, later.seconds, later.failure.message)
    events.queued([task])
    return True


def finish_cancelled(lease: Lease, result: TaskResult, timings: Timings) -> bool:
    """Store the text that a cancelled task has so far. False when the lease was lost."""
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
        **lease.task_costs(),
    }
    with transaction.atomic():
        stored = None if result is None else storable_json.encode(result).decode()
        values = {"task_id": task.pk, "attempt": lease.attempt, **end, "result": stored}
        if won := sql.execute(sql.FINISH, **values):
            add_attempt(task, TaskAttempt.Outcome(status), failure, lease)
            is_turn = status == Status.COMPLETED and task.request.get("save_to_conversation")
            if is_turn and task.conversation and result:
                task.conversation.append_turn(_turn(task, result))
            store_end(task, {"result": result, **end}, lease)
    if not won and status != Status.CANCELLED:  # unless the lease is lost, a cancel came first
        cancelled = result and result | {"finish_reason": FinishReason.CANCELLED, "parsed": None}
        return _finish(lease, Status.CANCELLED, cancelled, timings)
    if not won:
        logger.warning("Task %s: attempt %d lost its lease", task.pk, lease.attempt)
        return False
    log(task, logging.INFO, "Attempt %d %s", lease.attempt, status)
    announce_end(task)
    return True


def _turn(task: GenerationTask, result: TaskResult) -> list[ChatMessage]:
    """What a conversation is to have of an answered task: question and answer.

    Nothing where an explicit history asks nothing, or the answer has neither text nor calls, which
    no provider takes back.
    """
    answer = ChatMessage(role=Message.Role.ASSISTANT, content=result["text"])
    if calls := result.get("tool_calls"):
        answer["tool_calls"] = calls
    elif not result["text"].strip():
        return []
    if (prompt := task.request["prompt"]) is not None:
        return [ChatMessage(role=Message.Role.USER, content=prompt), answer]
    messages: list[ChatMessage] | None = task.request.get("messages")
    if not messages:  # the conversation asked by itself
        return [answer]
    roles = [message["role"] for message in messages]
    if roles[-1] == Message.Role.TOOL:
        num_results = next(n for n, role in enumerate(reversed(roles)) if role != roles[-1])
        return [*messages[-num_results:], answer]
    questions = [message for message in messages if message["role"] == Message.Role.USER]
    return [questions[-1], answer] if questions else []


def cancel(task: GenerationTask) -> bool:
    """Cancel a pending task, or ask the worker of a processing one. False when it has ended."""
    row = GenerationTask.objects.filter(pk=task.pk)
    if end_pending(task, row.pending(), end_fields(Status.CANCELLED)):
        log(task, logging.INFO, "Cancelled before it started")
        announce_end(task)
        return True
    # A claim or a sweep may come between the two statements: set the flag in either case.
    asked = row.unfinished().update(cancel_requested=True, updated_at=Now())
    if asked and task.queue == Queue.GPU:
        dispatch.tell_gpu_sessions(cancelled=True)
    return bool(asked)


def end_pending(task: GenerationTask, row: GenerationTaskQuerySet, change: dict[str, Any]) -> bool:
    """End a task that has not started. False when the row is no longer what it was."""
    with transaction.atomic():
        won = row.update(**change)
        if won:
            store_end(task, change)
    return bool(won)


def end_fields(status: "Status") -> dict[str, Any]:
    """The fields that every end of a task sets."""
    return {
        "status": status,
        "finished_at": Now(),
        "updated_at": Now(),
        "expires_at": Now() + timedelta(seconds=settings.TASK_TTL_SECONDS),
        "lease_until": None,
    }


def store_end(task: GenerationTask, change: dict[str, Any], lease: Lease | None = None) -> None:
    """Add the task to the statistics, have its end delivered where that was asked for, and charge.

    Call it last in the transaction that ends the task. `change`: the fields that this has set in
    the row; from now on the task in memory has them. `lease`: of the attempt that ends with it.
    """
    for name in events.END_FIELDS & change.keys():
        setattr(task, name, change[name])
    sql.execute(
        sql.ADD_ENDED_TASK,
        owner=task.owner,
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
    if task.request.get("webhook_url"):
        deliveries.add_delivery(task)
    use = {
        "num_tasks": 1,
        "prompt_tokens": task.usage["prompt_tokens"],
        "completion_tokens": task.usage["completion_tokens"],
    }
    if lease:
        charge(lease, **use)
    else:
        sql.add_use(task.owner, **use)


def announce_end(task: GenerationTask) -> None:
    """Tell readers, and enqueue the webhook and the tasks that waited for this one to end."""
    delta_stream.end(task.pk)
    events.ended(task)
    if task.request.get("webhook_url"):
        deliveries.deliver_soon(1)
    if task.conversation_id:
        following = GenerationTask.objects.due().filter(conversation=task.conversation_id)
        dispatch.enqueue(dispatch.generate(following.order_by("created_at", "id")[:1]))
    enqueue_next_of_owner(task)


def purge() -> int:
    """Delete tasks past their time to live, with their streams and logs; returns how many."""
    expired = GenerationTask.objects.filter(expires_at__lte=Now()).values_list("pk", flat=True)
    ids = list(expired[:_PURGE_LIMIT])
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
    delta_stream.delete(task_ids)
    service_log.delete(task_ids)
