"""A Celery message in the worker's main process, which outlives the pool child that runs it."""

import logging
from typing import Any

from billiard.exceptions import WorkerLostError
from celery.worker.request import Request
from django.db import Error as DatabaseError

from inference.lifecycle import sweep
from inference.loading import crashes
from monitoring.hardware import worker_identity

logger = logging.getLogger(__name__)


class WorkerRequest(Request):
    """Knows which child ran the message; Celery's signals only say that one died."""

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        """Count the child's death on the model that it was loading, or on the task that it ran.

        A task that ends its child by SystemExit, to give memory back, has succeeded.
        """
        death = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(death, SystemExit):
            return self.on_success((False, None, 0.0))
        if isinstance(death, WorkerLostError) and self.worker_pid:
            child, reason = worker_identity.prefix_of(int(self.worker_pid)), str(death)
            try:
                if not crashes.count(child, reason):
                    sweep.take_back_from(child, reason)
            except DatabaseError as exc:
                logger.warning("Message %s: a crash was not counted: %s", self.id, exc)
        return super().on_failure(exc_info, *args, **kwargs)
