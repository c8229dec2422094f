"""Native crashes: a registration that has crashed its worker twice is not loaded again."""

import logging
import re
import signal
from datetime import timedelta

from django.db.models import F, Q
from django.db.models.functions import Now

from inference.models import GenerationTask, RegisteredModel, TaskAttempt
from monitoring.hardware import worker_identity

logger = logging.getLogger(__name__)

# What native code dies of. Not SIGKILL: operators and the out-of-memory killer send that.
_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
_SIGNAL = re.compile(r"signal (\d+)")
# Longer than a death can go unnoticed; the number of a process may come again.
_RECENT = timedelta(minutes=1)


def count(pid: int, reason: str) -> None:
    """Count the death of a process of this host on the models that it was loading or running.

    `reason` is the message of WorkerLostError, which names the signal.
    """
    died_of = _SIGNAL.search(reason)
    if died_of is None or int(died_of[1]) not in _CRASHES:
        return
    names = _names_in_use_by(worker_identity.prefix_of(pid))
    local = RegisteredModel.objects.filter(provider=RegisteredModel.Provider.LOCAL)
    for model in local.filter(name__in=names):
        local.filter(pk=model.pk).update(num_crashes=F("num_crashes") + 1, updated_at=Now())
        model.refresh_from_db()
        logger.error("Model %s: crash %d: %s", model.name, model.num_crashes, reason)
        if model.crashed_too_often:
            model.set_status(RegisteredModel.Status.ERROR, why=model.crash_message)


def _names_in_use_by(worker_prefix: str) -> set[str]:
    """The models that it was loading, or ran tasks on; a sweep may have taken these back since."""
    loading = RegisteredModel.objects.filter(
        status=RegisteredModel.Status.LOADING, loaded_by__startswith=worker_prefix
    )
    lost = TaskAttempt.objects.filter(
        worker__startswith=worker_prefix,
        outcome=TaskAttempt.Outcome.LOST,
        ended_at__gte=Now() - _RECENT,
    )
    running = Q(worker__startswith=worker_prefix, status=GenerationTask.Status.PROCESSING)
    tasks = GenerationTask.objects.filter(running | Q(pk__in=lost.values("task")))
    return {
        *loading.values_list("name", flat=True),
        *tasks.values_list("model_name", flat=True),
    }
