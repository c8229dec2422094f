"""What the main process of a GPU worker does while its child computes: GPU readings, old caches."""

import logging
import threading
import time

import psutil
import redis
from django.db import Error as DatabaseError
from django.db import connection

from inference.loading import device_memory, kept_caches
from inference.models import RegisteredModel
from monitoring.hardware import worker_identity

logger = logging.getLogger(__name__)

_INTERVAL_SECONDS = 2.0
_FORGET_SECONDS = 10.0


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


def forget_deleted() -> None:
    """Remove the kept caches of conversations that are gone; a failure is logged."""
    try:
        kept_caches.forget_deleted()
    except (DatabaseError, OSError) as exc:
        logger.warning("KV caches of deleted conversations are still there: %s", exc)
    finally:
        connection.close()


def _run() -> None:
    forgotten_at = float("-inf")
    while True:
        report()
        if time.monotonic() - forgotten_at > _FORGET_SECONDS:
            forgotten_at = time.monotonic()
            forget_deleted()
        time.sleep(_INTERVAL_SECONDS)
