"""GPU readings, published by the main process of a GPU worker while its child computes."""

import logging
import threading
import time

import psutil
import redis
from django.db import Error as DatabaseError
from django.db import connection

from inference.loading import device_memory
from inference.models import RegisteredModel
from monitoring.hardware import worker_identity

logger = logging.getLogger(__name__)

_INTERVAL_SECONDS = 2.0


def start() -> None:
    """Publish readings every 2 s from a daemon thread; a driver that hangs blocks nothing else."""
    threading.Thread(target=_run, name="gpu-reporter", daemon=True).start()


def report() -> None:
    """Publish readings once; a failure is logged."""
    from monitoring.hardware import nvml  # NVML is loaded by GPU workers alone

    device_memory.publish()
    try:
        nvml.publish(loaded_models)
    except redis.RedisError as exc:
        logger.warning("The GPU readings cannot be published: %s", exc)


def loaded_models() -> list[str]:
    """The models that the children of this process hold in memory; none without the database."""
    workers = [worker_identity.of_pid(child.pid) for child in psutil.Process().children()]
    held = RegisteredModel.objects.filter(
        status=RegisteredModel.Status.LOADED, loaded_by__in=workers
    )
    try:
        return list(held.values_list("name", flat=True))
    except DatabaseError as exc:
        logger.debug("The loaded models are not known: %s", exc)
        return []
    finally:
        connection.close()  # no open connection is inherited by the next pool child


def _run() -> None:
    while True:
        report()
        time.sleep(_INTERVAL_SECONDS)
