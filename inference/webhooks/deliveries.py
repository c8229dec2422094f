"""Deliveries: their rows, written where a task ends, and the messages that wake workers."""

import json
from typing import Any

from django.conf import settings
from django.db.models.functions import Now

from inference import dispatch
from inference.models import Batch, GenerationTask, WebhookDelivery
from inference.models.webhook_deliveries import GIVE_UP_AFTER, new_webhook_id
from inference.task_body import task_body, was_cut


def add_delivery(task: GenerationTask) -> None:
    """Have the end of the task delivered; call it in the transaction that ends it."""
    ended = GenerationTask.objects.read(task.pk)
    assert ended is not None, "a task is not deleted before it has ended"
    if "response" in ended.request:  # of /v1/responses: told in OpenAI's words
        status = "incomplete" if was_cut(ended) else ended.status
        event = WebhookDelivery.Event(f"response.{status}")
        _add_openai_event(event, ended, ended.response_id, ended.request["webhook_url"], task=ended)
        return
    body = task_body(ended)
    event = WebhookDelivery.Event(f"task.{ended.status}")
    payload = {"type": event.value, "timestamp": body["finished_at"], "data": body}
    _add(event, payload, ended.owner, ended.request["webhook_url"], task=ended)


def add_batch_delivery(batch: Batch) -> None:
    """Have the end of the batch delivered; call it in the transaction that ends it."""
    ended = Batch.objects.get(pk=batch.pk)
    event = WebhookDelivery.Event(f"batch.{ended.status}")
    _add_openai_event(event, ended, ended.pk, ended.webhook_url, batch=ended)


def _add_openai_event(
    event: WebhookDelivery.Event,
    ended: GenerationTask | Batch,
    name: str | None,
    url: str,
    **subject: Any,
) -> None:
    delivery_id = new_webhook_id()
    payload = {
        "id": delivery_id,
        "object": "event",
        "created_at": int(ended.finished_at.timestamp()) if ended.finished_at else None,
        "type": event.value,
        "data": {"id": name},
    }
    _add(event, payload, ended.owner, url, id=delivery_id, **subject)


def _add(
    event: WebhookDelivery.Event, payload: dict[str, Any], owner: str, url: str, **fields: Any
) -> None:
    WebhookDelivery.objects.create(
        owner=owner,
        url=url,
        event=event,
        payload=json.dumps(payload, separators=(",", ":")),
        created_at=Now(),
        due_at=Now(),
        give_up_at=Now() + GIVE_UP_AFTER,
        **fields,
    )


def deliver_soon(num_deliveries: int) -> None:
    """Wake workers, at most for as many as a process may deliver at once; never raises."""
    dispatch.enqueue([dispatch.DELIVER_WEBHOOK] * min(num_deliveries, max_at_once()))


def max_at_once() -> int:
    """Deliveries at a time in a process: slow receivers must not take all of its threads."""
    return int(settings.DEFAULT_CONCURRENCY // 2)
