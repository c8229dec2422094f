"""What the steps of a task's life leave behind: rows beside its own, and word to its readers."""

from typing import Any

from django.db import connection

from inference import dispatch, events
from inference.errors import InferenceError
from inference.lifecycle.sql import ADD_ATTEMPT, ADD_ENDED
from inference.models import GenerationTask, TaskAttempt
from inference.webhooks import deliveries
from monitoring.streams import delta_stream


def add_attempt(
    task: GenerationTask, outcome: TaskAttempt.Outcome, failure: InferenceError | None = None
) -> None:
    """Record the attempt that ends now; call it in the transaction that ends it."""
    ADD_ATTEMPT.run(
        task_id=task.pk,
        number=task.attempt,
        worker=task.worker,
        model_name=task.model_name,
        started_at=connection.ops.adapt_datetimefield_value(task.started_at),
        outcome=outcome.value,
        error=failure.message if failure else None,
        error_code=failure.code.value if failure else None,
    )


def store_end(task: GenerationTask, change: dict[str, Any]) -> None:
    """Add the task to the statistics, and have its end delivered where that was asked for.

    Call it in the transaction that ends the task. `change`: the fields that this has set in the
    row; from now on the task in memory has them.
    """
    for name in events.END_FIELDS & change.keys():
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
    if task.request.get("webhook_url"):
        deliveries.add_delivery(task)


def announce_end(task: GenerationTask) -> None:
    """Tell readers, and ring for the webhook and the next task of the conversation, which waits."""
    delta_stream.end(task.pk, task.attempt, task.status)
    events.ended(task)
    if task.request.get("webhook_url"):
        deliveries.deliver_soon(1)
    if task.conversation_id:
        following = GenerationTask.objects.claimable().filter(conversation=task.conversation_id)
        dispatch.ring(list(following.order_by("created_at", "id")[:1]))
