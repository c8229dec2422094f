"""Lines about one task, in the worker's log and in the report of the task."""

import logging

logger = logging.getLogger(__name__)


def log(task_id: str, level: int, message: str, *args: object) -> None:
    """Log a line that the task's report shows too; DEBUG ones it shows alone."""
    line = f"Task %s: {message}"
    logger.log(level, line, task_id, *args, extra={"task_id": task_id})
