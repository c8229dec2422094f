"""Celery signals: workers start and stop, a pool child dies.

Celery imports this by its name once Django is set up, see `include` in celery_app.py.
"""

import gc
import logging
import sys
from typing import Any

from billiard.exceptions import WorkerLostError
from celery import signals
from django.db import close_old_connections, connections

from inference import dispatch
from inference.embeddings import request_queue
from inference.execution import cloud_session, gpu_session
from inference.loading import gpu_reporter
from inference.models import Queue
from inference.openai import batches
from inference.providers.cloud import provider
from inference.registry import downloads
from inference.tasks import sweep
from monitoring import tracing
from monitoring.events import publisher
from monitoring.hardware import workers
from monitoring.logs import service_log
from monitoring.redis import outbox

logger = logging.getLogger(__name__)

_GATHER_EVENTS_SECONDS = 0.04


@signals.worker_init.connect
def on_worker_start(sender: Any, **_: Any) -> None:
    """A thread in a database transaction, which others wait for, gets the interpreter back soon.

    What web processes tell of new tasks is logged before what workers tell of them, unless a
    process is held up.
    """
    sys.setswitchinterval(0.001)
    publisher.gather_for(_GATHER_EVENTS_SECONDS)
    service_log.start(f"{sender.hostname.partition('@')[0]} worker")


@signals.worker_ready.connect
def on_worker_ready(sender: Any, **_: Any) -> None:
    """Announce the worker, and take back the tasks of its predecessor."""
    queues = [queue.name for queue in sender.task_consumer.queues]
    workers.announce(sender.hostname, queues)
    if Queue.GPU in queues:
        gpu_reporter.start()
    if Queue.API in queues:
        provider.warm_up()
    if Queue.EMBEDDINGS in queues:
        # It takes over what a dead one had not answered, too.
        dispatch.enqueue([dispatch.WARM_UP_EMBEDDINGS])
    _sweep()


@signals.worker_before_create_process.connect
def on_fork(**_: Any) -> None:
    """Have a pool child share what its parent has in memory: a collection would write to it."""
    gc.freeze()


@signals.worker_shutting_down.connect
def on_worker_stop(**_: Any) -> None:
    """Let running work end, start nothing new, and put downloads and batches back."""
    gpu_session.drain()
    cloud_session.drain()
    request_queue.drain()
    downloads.stop()
    batches.stopping.set()


@signals.worker_process_shutdown.connect
@signals.worker_shutdown.connect
def on_process_stop(**_: Any) -> None:
    """Send the events and traces that are left, of a pool child or of a worker's threads."""
    outbox.flush()
    tracing.flush()


@signals.task_prerun.connect
def on_task_start(**_: Any) -> None:
    """Reopen failed database connections, as Django does at each request."""
    close_old_connections()


@signals.task_failure.connect
def on_task_failure(sender: Any, exception: BaseException, **_: Any) -> None:
    """In the parent, moments after a pool child died: its task goes back into the queue."""
    if not isinstance(exception, WorkerLostError):
        return
    if sender.name in (dispatch.EMBED.name, dispatch.WARM_UP_EMBEDDINGS.name):
        dispatch.enqueue([dispatch.WARM_UP_EMBEDDINGS])
    _sweep()


def _sweep() -> None:
    try:
        sweep()
    except Exception:
        # The worker must start in any case; beat sends the next sweep within seconds.
        logger.warning("The sweep failed, the next one does it", exc_info=True)
    finally:
        connections.close_all()  # no open connection is inherited by the next pool child
