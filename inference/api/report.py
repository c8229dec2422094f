"""Everything that is known about one task."""

from typing import Any

from django.conf import settings

from inference.api.provenance import provenance
from inference.api.task_serializers import AttemptSerializer, WebhookDeliverySerializer
from inference.models import GenerationTask, Queue, WebhookDelivery, milliseconds_between
from inference.task_body import task_body
from monitoring.logs.service_log import task_log


def report(task: GenerationTask) -> dict[str, Any]:
    """The body of GET /tasks/{id}/report."""
    return {
        "task": task_body(task),
        "metrics": metrics(task),
        "gpu_seconds": task.gpu_seconds,
        "energy_joules": task.energy_joules,
        "cost_usd": task.cost_usd,
        "swap_bounds": swap_bounds(task),
        "tokens": task.result["usage"] if task.result else None,
        "prompt": task.request["prompt"],
        "messages": task.request["messages"],
        "params": task.request["params"],
        "provenance": provenance(task),
        "attempts": attempts(task),
        "webhook_deliveries": webhook_deliveries(task),
        "logs": task_log(task.pk),
    }


def swap_bounds(task: GenerationTask) -> dict[str, float | None] | None:
    """How long its turn may be put off by models that run, and how much of the time loads may take.

    None for what runs on no GPU. A model that has tasks waiting stays for the window at least, so
    that loading takes no more than its part of both.
    """
    if task.queue != Queue.GPU:
        return None
    window = settings.SWAP_WINDOW_SECONDS
    load = None if task.model_load_ms is None else task.model_load_ms / 1000
    share = None if not load else round(load / (load + window), 3)
    return {"wait_past_turn_seconds": window, "load_share": share}


def attempts(task: GenerationTask) -> list[dict[str, Any]]:
    """All tries, the running one included: it has no end and the outcome `running`."""
    tries = list(AttemptSerializer(task.attempts.order_by("number"), many=True).data)
    if task.status == GenerationTask.Status.PROCESSING:
        running = {"number": task.attempt, "worker": task.worker, "model": task.model_name}
        times = {"started_at": task.started_at, "ended_at": None}
        no_end = {"error_code": None, "error": None, "endpoint": None}
        no_cost = {"gpu_seconds": None, "energy_joules": None, "cost_usd": None}
        tries.append({**running, **times, "outcome": "running", **no_end, **no_cost})
    return tries


def webhook_deliveries(task: GenerationTask) -> list[dict[str, Any]]:
    """What became of the webhook; none before the task has ended."""
    deliveries = WebhookDelivery.objects.filter(task=task).order_by("created_at")
    return list(WebhookDeliverySerializer(deliveries, many=True).data)


def metrics(task: GenerationTask) -> dict[str, float | None]:
    """Times in milliseconds; tokens per second of the answer, its prompt's time included."""
    tokens_per_second = None
    if task.result and task.inference_ms:
        num_tokens = task.result["usage"]["completion_tokens"]
        tokens_per_second = round(num_tokens / task.inference_ms * 1000, 2)
    return {
        "queue_wait_ms": task.queue_wait_ms,
        "model_load_ms": _rounded(task.model_load_ms),
        "ttft_ms": _rounded(task.ttft_ms),
        "inference_ms": _rounded(task.inference_ms),
        "total_ms": milliseconds_between(task.created_at, task.finished_at),
        "tokens_per_second": tokens_per_second,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
