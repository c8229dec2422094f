"""Celery tasks: glue between a message and one domain function. Each may run twice, harmlessly."""

import threading
from typing import Any

import jsonschema  # noqa: F401 (before the pool child is made: 0.1 to 0.4 s, in a session later)
from celery import Task, shared_task
from django.conf import settings

from inference import dispatch, forecast
from inference.embeddings import request_queue  # noqa: F401 (before the pool child is made)
from inference.execution import cloud_session, gpu_lock, gpu_session
from inference.lifecycle import finish
from inference.lifecycle import sweep as lifecycle_sweep
from inference.loading import file_hashes, requests
from inference.loading.loaded_engines import loaded_engines
from inference.loading.loaded_models import LoadedModels
from inference.models import Batch, OwnerShare, Queue, StoredFile, WebhookDelivery
from inference.webhooks import sending
from monitoring.models import EndedTask, OwnerUse

_sweeping = threading.Lock()


@shared_task(name=dispatch.GENERATE, bind=True)
def generate(self: "Task[[str], None]", task_id: str = "") -> None:
    """Run the due tasks of the queue; the id is that of the task which sent the message."""
    if (self.request.delivery_info or {}).get("routing_key") == Queue.GPU:
        gpu_session.run(task_id)
    else:
        cloud_session.run()


@shared_task(name="inference.sweep")
def sweep() -> None:
    """Make good what crashes left behind, and enqueue what is due.

    One at a time in a process: the messages that have piled up while there was no worker take no
    longer than one sweep.
    """
    if not _sweeping.acquire(blocking=False):
        return
    try:
        lifecycle_sweep.sweep()
        requests.sweep()
    finally:
        _sweeping.release()


@shared_task(name="inference.estimate")
def estimate() -> None:
    """Find out when tasks will start and end."""
    forecast.refresh()


@shared_task(name="inference.purge")
def purge() -> None:
    """Delete what is past its time to live, and statistics that nobody can ask for."""
    while finish.purge():
        pass
    while EndedTask.objects.purge():
        pass
    while WebhookDelivery.objects.purge():
        pass
    while Batch.objects.purge():
        pass
    while StoredFile.objects.purge():
        pass
    OwnerShare.objects.purge()
    OwnerUse.objects.purge()


@shared_task(name="inference.hash_model_files")
def hash_model_files() -> None:
    """Compute the hashes of files of models that are new."""
    file_hashes.hash_new_files()


@shared_task(name=dispatch.DELIVER_WEBHOOK.name)
def deliver_webhooks() -> None:
    """Deliver a webhook that is due."""
    sending.deliver_due()


@shared_task(name=dispatch.DOWNLOAD.name)
def download() -> None:
    """Bring the file of a model that is due."""
    # The hub's library is for the default worker alone, when it has something to bring.
    from inference.registry.downloads import worker

    worker.download_due()


@shared_task(name=dispatch.ADVANCE_BATCHES.name)
def advance_batches() -> None:
    """Go on with the batches until all of them have ended."""
    # The views' serializers are for the default worker alone.
    from inference.openai.batches import worker

    worker.run()


@shared_task(name=dispatch.EMBED.name)
def embed(*, warm_up: bool = False) -> None:
    """Answer requests for embeddings until there are none."""
    # NumPy is for the embeddings worker alone.
    from inference.embeddings import worker
    from inference.embeddings.loaded_encoders import loaded_encoders

    worker.serve(warm_up=warm_up)
    _end_if_spent(loaded_encoders)


@shared_task(name=dispatch.WARM_UP_EMBEDDINGS.name)
def warm_up_embeddings() -> None:
    """Load the default embedding model, unless there are requests, which go first."""
    embed(warm_up=True)


@shared_task(name=dispatch.SERVE_MODEL_REQUESTS.name)
def serve_model_requests() -> None:
    """Load and unload what the rows of the models ask for."""
    with gpu_lock.hold(settings.GPU_INDEXES):
        loaded_engines.serve_requests()
    _end_if_spent(loaded_engines)


def _end_if_spent(models: LoadedModels[Any]) -> None:
    """End the pool child whose models were idle: only so does the memory of libraries come back.

    The pool forks another one, which shares the memory of the main process.
    """
    if models.is_spent:
        raise SystemExit
