"""Celery tasks: glue between a message and one domain function. Each may run twice, harmlessly."""

from celery import Task, shared_task

from inference import dispatch, lifecycle, residency, session
from inference.execution import execute
from inference.models import Queue, RegisteredModel


@shared_task(name=dispatch.GENERATE, bind=True)
def generate(self: "Task[[str], None]", task_id: str) -> None:
    """Run the task, as the queue it was rung on does."""
    delivery = self.request.delivery_info or {}
    if delivery.get("routing_key") == Queue.GPU:
        session.run(task_id)
    elif lease := lifecycle.claim(task_id):
        execute(lease)


@shared_task(name="inference.sweep")
def sweep() -> None:
    """Repair what crashes left behind."""
    lifecycle.sweep()
    RegisteredModel.objects.release_from_dead_workers()


@shared_task(name="inference.purge")
def purge() -> None:
    """Delete tasks past their time to live."""
    while lifecycle.purge():
        pass


@shared_task(name=dispatch.UNLOAD)
def unload(model_name: str) -> None:
    """Free a model that this worker holds."""
    residency.unload(model_name)
