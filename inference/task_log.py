"""Lines about one task, in the worker's log and in the report of the task."""

import logging

from inference.models import GenerationTask

logger = logging.getLogger(__name__)


def log(task: GenerationTask, level: int, message: str, *args: object) -> None:
    """Log a line that the task's report shows too; DEBUG ones it shows alone."""
    log_line(task.pk, task.owner, level, message, *args)


def log_line(task_id: str, owner: str | None, level: int, message: str, *args: object) -> None:
    """As `log`, of a task that may be gone; its owner sees the line in the service's log too.

    Or of a batch, by its id.
    """
    line = f"{'Batch' if task_id.startswith('batch_') else 'Task'} %s: {message}"
    logger.log(level, line, task_id, *args, extra={"task_id": task_id, "owner": owner})
