"""What the feed is told of tasks and models; the rows, as they are in memory, are up to date."""

from collections.abc import Iterable

from inference import estimates
from inference.models import GenerationTask, RegisteredModel
from monitoring.events import events
from monitoring.events.events import EventType
from monitoring.metrics import counters, task_counts

MAX_PARTIAL_TEXT = 2000
# What `ended` tells of a task, and its end has changed.
END_FIELDS = {
    *("status", "result", "error", "error_code"),
    *("model_load_ms", "ttft_ms", "inference_ms"),
    *("gpu_seconds", "energy_joules", "cost_nano_usd"),
}

_ENDS = {
    GenerationTask.Status.COMPLETED: EventType.TASK_COMPLETED,
    GenerationTask.Status.FAILED: EventType.TASK_FAILED,
    GenerationTask.Status.CANCELLED: EventType.TASK_CANCELLED,
}


def queued(tasks: Iterable[GenerationTask]) -> None:
    """New tasks, or ones that a lost worker gave back."""
    for task in tasks:
        data = events.TaskQueued(
            task_id=task.pk,
            model=task.model_name,
            queue=task.queue,
            priority=task.priority,
            attempt=task.attempt,
            **_estimate(task),
        )
        events.publish(EventType.TASK_QUEUED, data, task.owner)


def _estimate(task: GenerationTask) -> events.Estimated:
    estimate = estimates.of(task)
    if estimate is None:
        return events.Estimated(estimated_start_at=None, estimated_finish_at=None, eta_seconds=None)
    return events.Estimated(
        estimated_start_at=events.iso(estimate.start_at),
        estimated_finish_at=events.iso(estimate.finish_at),
        eta_seconds=estimate.eta_seconds,
    )


def started(task: GenerationTask) -> None:
    data = events.TaskStarted(
        task_id=task.pk,
        model=task.model_name,
        attempt=task.attempt,
        worker=task.worker,
        queue_wait_ms=task.queue_wait_ms,
        **_estimate(task),
    )
    events.publish(EventType.TASK_STARTED, data, task.owner)


def progressed(task: GenerationTask, num_tokens: int, text: str) -> None:
    """`text`: all of it so far, or its end."""
    data = events.TaskProgress(
        task_id=task.pk,
        attempt=task.attempt,
        tokens_generated=num_tokens,
        partial_text=text[-MAX_PARTIAL_TEXT:],
    )
    events.publish(EventType.TASK_PROGRESS, data, task.owner)


def ended(task: GenerationTask) -> None:
    """A task that this process has ended."""
    counters.count(task_counts.of_end(task.status, tell_end(task)))


def tell_end(task: GenerationTask) -> events.TaskEnded:
    """Clients hear it once, however many processes tell it."""
    result = task.result or {}
    data = events.TaskEnded(
        task_id=task.pk,
        model=task.model_name,
        attempt=task.attempt,
        finish_reason=result.get("finish_reason"),
        prompt_tokens=task.usage["prompt_tokens"],
        completion_tokens=task.usage["completion_tokens"],
        cached_tokens=task.usage["cached_tokens"],
        queue_wait_ms=task.queue_wait_ms,
        ttft_ms=task.ttft_ms,
        inference_ms=task.inference_ms,
        total_ms=task.total_ms,
        error=task.error,
        error_code=task.error_code,
        gpu_seconds=task.gpu_seconds,
        energy_joules=task.energy_joules,
        cost_usd=task.cost_usd,
    )
    if "accepted_prediction_tokens" in task.usage:
        data["accepted_prediction_tokens"] = task.usage["accepted_prediction_tokens"]
        data["rejected_prediction_tokens"] = task.usage["rejected_prediction_tokens"]
    events.publish(_ENDS[GenerationTask.Status(task.status)], data, task.owner, once=task.pk)
    return data


def loaded(model: RegisteredModel, worker: str, load_ms: float) -> None:
    data = events.ModelLoaded(model=model.name, worker=worker, load_ms=load_ms)
    events.publish(EventType.MODEL_LOADED, data, None)


def unloaded(model: RegisteredModel, worker: str) -> None:
    data = events.ModelUnloaded(model=model.name, worker=worker)
    events.publish(EventType.MODEL_UNLOADED, data, None)


def download_progressed(
    model: str,
    status: str,
    downloaded_bytes: int,
    total_bytes: int | None,
    bytes_per_second: float | None,
) -> None:
    data = events.ModelDownloadProgress(
        model=model,
        status=status,
        downloaded_bytes=downloaded_bytes,
        total_bytes=total_bytes,
        bytes_per_second=bytes_per_second,
    )
    events.publish(EventType.MODEL_DOWNLOAD_PROGRESS, data, None)
