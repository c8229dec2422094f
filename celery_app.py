"""The Celery application: queues, Redis priorities, delivery options, beat, and crash repair.

celery -A celery_app worker -Q gpu --concurrency=1 --pool=prefork
celery -A celery_app worker -Q api,default --pool=threads
celery -A celery_app worker -Q embeddings --concurrency=1 --pool=prefork
celery -A celery_app beat
celery -A celery_app flower
"""

import logging
import os
import sys
from typing import Any

from celery import Celery, signals
from django.conf import settings
from kombu import Queue
from kombu.transport import redis as redis_transport

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "sopllm.settings")

logger = logging.getLogger(__name__)

_GATHER_EVENTS_SECONDS = 0.04

_KombuChannel: Any = redis_transport.Channel  # its private parts are not in the stubs


class Channel(_KombuChannel):  # type: ignore[misc]
    """Keeps its Redis client: kombu makes one for each command, which takes longer than most."""

    _kept_client: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous=True)
        # Not even `self.pool` is read again: once the connection is lost, kombu cannot make another
        # one to put the unacknowledged messages back, and the worker would exit.
        if self._kept_client is None:
            self._kept_client = super()._create_client()
        return self._kept_client


redis_transport.Transport.Channel = Channel

app = Celery("sopllm")
# By name: only the worker imports it.
app.Task.Request = "inference.execution.worker_request:WorkerRequest"

QUEUES = ("gpu", "api", "embeddings", "default")


def _broker_url(redis_url: str) -> str:
    """Kombu spells Unix sockets differently from redis-py."""
    return redis_url.replace("unix://", "redis+socket://", 1)


app.conf.update(
    broker_url=_broker_url(settings.REDIS_URL),
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_transport_options={
        # Redis priorities: 0 goes first, 9 last; all of a higher priority before any lower one.
        "priority_steps": list(range(10)),
        "sep": "\x06\x16",
        "queue_order_strategy": "priority",
        # A message whose worker vanished comes back after this; the sweep rings long before.
        "visibility_timeout": 3600,
        "health_check_interval": 10,
        "socket_keepalive": True,
        "socket_connect_timeout": 5,
    },
    task_queues=[Queue(name) for name in QUEUES],
    task_default_queue="default",
    task_default_priority=9,
    task_create_missing_queues=False,
    # The row in the database is the result.
    task_ignore_result=True,
    # Acknowledged when done; one message at a time, so that priorities hold to the last moment.
    task_acks_late=True,
    task_reject_on_worker_lost=False,
    worker_prefetch_multiplier=1,
    worker_disable_prefetch=True,
    # The rows' leases tell whether work goes on; a broker hiccup must not kill a generation.
    worker_cancel_long_running_tasks_on_connection_loss=False,
    # A child that imports and loads for a while is not dead.
    worker_proc_alive_timeout=60,
    worker_hijack_root_logger=False,
    # Connections to the database outlive a task; on_task_start closes broken ones.
    CELERY_DB_REUSE_MAX=1_000_000_000,
    # For Flower.
    worker_send_task_events=True,
    task_send_sent_event=True,
    task_track_started=True,
    timezone="UTC",
    beat_schedule={
        "sweep": {
            "task": "inference.sweep",
            "schedule": settings.SWEEP_INTERVAL_SECONDS,
            "options": {"expires": settings.SWEEP_INTERVAL_SECONDS, "priority": 0},
        },
        "purge": {"task": "inference.purge", "schedule": 60.0, "options": {"expires": 60.0}},
    },
    beat_schedule_filename=str(settings.VAR_DIR / "beat-schedule"),
)
app.autodiscover_tasks(["inference"])


# Imports of the apps wait until Django is set up, which Celery does when the worker starts.


@signals.worker_init.connect
def on_worker_start(sender: Any, **_: Any) -> None:
    """A thread in a database transaction, which others wait for, gets the interpreter back soon.

    What web processes tell of new tasks is logged before what workers tell of them, unless a
    process is held up.
    """
    from monitoring.events import publisher
    from monitoring.logs import service_log

    sys.setswitchinterval(0.001)
    publisher.gather_for(_GATHER_EVENTS_SECONDS)
    service_log.start(f"{sender.hostname.partition('@')[0]} worker")


@signals.beat_init.connect
def on_beat_start(**_: Any) -> None:
    """Its log goes where those of the others go."""
    from monitoring.logs import service_log

    service_log.start("beat")


@signals.worker_ready.connect
def on_worker_ready(sender: Any, **_: Any) -> None:
    """The worker serves its queues from now on; what died with its predecessor is taken back."""
    from inference import dispatch
    from inference.loading import gpu_reporter
    from inference.providers.cloud import provider
    from monitoring.hardware import workers

    queues = [queue.name for queue in sender.task_consumer.queues]
    workers.announce(sender.hostname, queues)
    if "gpu" in queues:
        gpu_reporter.start()
    if "api" in queues:
        provider.warm_up()
    if "embeddings" in queues:
        # It loads the default model, and takes over what a dead one had not answered.
        dispatch.enqueue([dispatch.EMBED])
    _repair()


@signals.worker_shutting_down.connect
def on_worker_stop(**_: Any) -> None:
    """What runs may end; nothing else joins it, and downloads are put back."""
    from inference.embeddings import stopping
    from inference.execution import gpu_session
    from inference.registry import downloads

    gpu_session.drain()
    stopping.begin()
    downloads.stop()


@signals.worker_process_shutdown.connect
@signals.worker_shutdown.connect
def on_process_stop(**_: Any) -> None:
    """What tasks have left to be told goes out: of a pool child, and of a worker's threads."""
    from monitoring import tracing
    from monitoring.redis import outbox

    outbox.flush()
    tracing.flush()


@signals.task_prerun.connect
def on_task_start(**_: Any) -> None:
    """As Django does at each request: a connection that has failed is opened anew."""
    from django.db import close_old_connections

    close_old_connections()


@signals.task_failure.connect
def on_task_failure(sender: Any, exception: BaseException, **_: Any) -> None:
    """In the parent, moments after a pool child died: its task goes back into the queue."""
    from billiard.exceptions import WorkerLostError

    from inference import dispatch

    if not isinstance(exception, WorkerLostError):
        return
    if sender.name == dispatch.EMBED.name:
        dispatch.enqueue([dispatch.EMBED])
    _repair()


def _repair() -> None:
    from django.db import connections

    from inference.tasks import sweep

    try:
        sweep()
    except Exception:
        # Beat's sweep tries again within seconds; the worker itself must start in any case.
        logger.warning("Repair failed, the next sweep does it", exc_info=True)
    finally:
        connections.close_all()  # no open connection is inherited by the next pool child
