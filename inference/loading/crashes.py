"""Native crashes: a registration whose loading has crashed the worker twice is not loaded again."""

import logging

from django.db.models import F, Q
from django.db.models.functions import Now

from inference.errors import ErrorCode
from inference.models import RegisteredModel, TaskAttempt

logger = logging.getLogger(__name__)

# What native code dies of. Not SIGKILL: operators and the out-of-memory killer send that.
_CRASHES = ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL")


def count(child: str, reason: str) -> bool:
    """Count the death of a process of this host on the model that it was loading, if any.

    `child` is what its identity starts with, `reason` the message of WorkerLostError, which names
    the signal. True when it was counted.
    """
    if not any(name in reason for name in _CRASHES):
        return False
    is_loading = Q(status=RegisteredModel.Status.LOADING, loaded_by__startswith=child)
    # A sweep may have released the model since.
    was_loading = Q(
        name__in=TaskAttempt.objects.lost_with(child)
        .filter(error_code=ErrorCode.MODEL_LOAD_FAILED)
        .values("model_name")
    )
    local = RegisteredModel.objects.filter(provider=RegisteredModel.Provider.LOCAL)
    model = local.filter(is_loading | was_loading).first()  # a worker loads one at a time
    if model is None:
        return False
    local.filter(pk=model.pk).update(num_crashes=F("num_crashes") + 1, updated_at=Now())
    model.refresh_from_db()
    logger.error("Model %s: crash %d: %s", model.name, model.num_crashes, reason)
    if model.crashed_too_often:
        model.set_status(RegisteredModel.Status.ERROR, why=model.crash_message)
    return True
