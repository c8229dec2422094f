"""A GPU session: one worker, one GPU, the pending tasks in exact priority order."""

from django.conf import settings

from inference import gpu_guard, lifecycle
from inference.execution import execute
from inference.models import GenerationTask, Queue


def run(rung_task_id: str) -> None:
    """Answer pending GPU tasks, most urgent first, until the one that rang is no longer pending.

    Redis knows ten priorities, the database knows all of them: so a message wakes the worker, and
    the database says which task is next.
    """
    with gpu_guard.hold(settings.GPU_INDEX):
        while _is_pending(rung_task_id):
            lease = lifecycle.claim_most_urgent(Queue.GPU)
            if lease is None:
                return
            gpu_guard.show_task(settings.GPU_INDEX, lease.task.pk)
            execute(lease)


def _is_pending(task_id: str) -> bool:
    return GenerationTask.objects.pending().filter(pk=task_id).exists()
