"""Lines about one task, in the worker's log and in the report of the task."""

import logging

from inference.models import GenerationTask

logger = logging.getLogger(__name__)


def log(task: GenerationTask, level: int, message: str, *args: object) -> None:
    """Log a line that the task's report shows too; DEBUG ones it shows alone."""
    line = f"Task %s: {message}"
    logger.log(level, line, task.pk, *args, extra={"task_id": task.pk})
