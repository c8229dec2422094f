"""A Celery message in the worker's main process, which outlives the pool child that runs it."""

import logging
from typing import Any

from billiard.exceptions import WorkerLostError
from celery.worker.request import Request
from django.db import Error as DatabaseError

from inference.loading import crashes

logger = logging.getLogger(__name__)


class WorkerRequest(Request):
    """Knows which child ran the message; Celery's signals only say that one died."""

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        """Before the tasks of the child are taken back, count its death on the model it ran."""
        death = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(death, WorkerLostError) and self.worker_pid:
            try:
                crashes.count(int(self.worker_pid), str(death))
            except DatabaseError as exc:
                logger.warning("Message %s: a crash was not counted: %s", self.id, exc)
        return super().on_failure(exc_info, *args, **kwargs)
