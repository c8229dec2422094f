"""Celery tasks: glue between a message and one domain function. Each may run twice, harmlessly."""

from celery import Task, shared_task
from django.conf import settings

from inference import dispatch
from inference.embeddings import stopping  # noqa: F401 (before the pool child is made)
from inference.execution import gpu_lock, gpu_session
from inference.execution.attempt import execute
from inference.lifecycle import claim, finish
from inference.lifecycle.sweep import sweep as sweep_tasks
from inference.loading import loaded_models, requests
from inference.models import Queue, WebhookDelivery
from inference.registry import downloads
from inference.webhooks import deliveries, sending
from monitoring.models import EndedTask


@shared_task(name=dispatch.GENERATE, bind=True)
def generate(self: "Task[[str], None]", task_id: str) -> None:
    """Run the task, as the queue it was rung on does."""
    delivery = self.request.delivery_info or {}
    if delivery.get("routing_key") == Queue.GPU:
        gpu_session.run(task_id)
    elif lease := claim.claim(task_id):
        execute(lease)


@shared_task(name="inference.sweep")
def sweep() -> None:
    """Repair what crashes left behind."""
    sweep_tasks()
    requests.sweep()
    deliveries.sweep()
    downloads.sweep()


@shared_task(name="inference.purge")
def purge() -> None:
    """Delete tasks and webhooks past their time to live, and statistics that nobody can ask for."""
    while finish.purge():
        pass
    while EndedTask.objects.purge():
        pass
    while WebhookDelivery.objects.purge():
        pass


@shared_task(name=dispatch.DELIVER_WEBHOOKS)
def deliver_webhooks() -> None:
    """Deliver a webhook that is due."""
    sending.deliver_due()


@shared_task(name=dispatch.DOWNLOAD)
def download() -> None:
    """Bring the file of a model that is due."""
    # The hub's library is for the api worker alone, when it has something to bring.
    from inference.registry.downloads import worker

    worker.download_due()


@shared_task(name=dispatch.EMBED)
def embed() -> None:
    """Answer requests for embeddings until there are none."""
    # NumPy is for the embeddings worker alone.
    from inference.embeddings import worker

    worker.serve()


@shared_task(name=dispatch.SERVE_MODEL_REQUESTS)
def serve_model_requests() -> None:
    """Load and unload what the rows of the models ask for."""
    with gpu_lock.hold(settings.GPU_INDEX):
        loaded_models.serve_requests()
