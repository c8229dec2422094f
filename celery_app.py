"""The Celery application: queues, Redis priorities, delivery options and beat.

celery -A celery_app worker -Q gpu --concurrency=1 --pool=prefork
celery -A celery_app worker -Q api --pool=threads
celery -A celery_app worker -Q default --pool=threads
celery -A celery_app worker -Q embeddings --concurrency=1 --pool=prefork
celery -A celery_app:without_tasks beat
celery -A celery_app:without_tasks flower
"""

import os
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from celery import Celery
from celery.schedules import schedule
from django.conf import settings
from kombu import Queue
from kombu.transport import redis as redis_transport

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "sopllm.settings")

# Their private parts are not in the stubs.
_KombuChannel: Any = redis_transport.Channel
_KombuQoS: Any = redis_transport.QoS


class QoS(_KombuQoS):  # type: ignore[misc]
    """Forgets a message that is done, also where Redis could not be told.

    Else a worker that may have one message at a time never takes another, when the connection of
    its acknowledgements was lost and that on which it waits was not. What is left in Redis comes
    back after the visibility timeout, as a message that finds nothing to claim.
    """

    def ack(self, delivery_tag: str) -> None:
        try:
            super().ack(delivery_tag)
        finally:
            self._quick_ack(delivery_tag)


class Channel(_KombuChannel):  # type: ignore[misc]
    """Keeps its Redis client: kombu makes one for each command, which takes longer than most."""

    QoS = QoS
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
# Beat and Flower know the names of tasks alone: without Django's apps they take half the memory.
without_tasks = Celery("sopllm", fixups=[], set_as_current=False)
# By name: only the worker imports it.
app.Task.Request = "inference.execution.worker_request:WorkerRequest"

# Beat sets the time at which its messages expire by its own clock, and the worker reads it by its
# own, which may be wrong by as much. What piles up in that time is worked off in seconds.
_EXPIRES = 3600.0

QUEUES = ("gpu", "api", "embeddings", "default")


_began_at, _began = datetime.now(UTC), time.monotonic()


def steady_now() -> datetime:
    """The time, as if nobody had set this host's clock since this process began."""
    return _began_at + timedelta(seconds=time.monotonic() - _began)


def every(seconds: float) -> schedule:
    """For beat: were its host's clock set back by an hour, nothing would be due for an hour."""
    return schedule(seconds, nowfun=steady_now)


def _broker_url(redis_url: str) -> str:
    """Kombu spells Unix sockets differently from redis-py."""
    return redis_url.replace("unix://", "redis+socket://", 1)


# Celery imports the second: in workers once Django is set up, elsewhere without.
for each, signals in ((app, "sopllm.worker_signals"), (without_tasks, "sopllm.beat_signals")):
    each.conf.update(
        include=[signals],
        broker_url=_broker_url(settings.REDIS_URL),
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            # Redis priorities: 0 goes first, 9 last; all of a higher priority before any lower one.
            "priority_steps": list(range(10)),
            "sep": "\x06\x16",
            "queue_order_strategy": "priority",
            # A message whose worker vanished comes back after this; the sweep enqueues long before.
            "visibility_timeout": 3600,
            "health_check_interval": 10,
            **settings.REDIS_KEEPALIVE,
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
                "schedule": every(settings.SWEEP_INTERVAL_SECONDS),
                "options": {"expires": _EXPIRES, "priority": 0},
            },
            "cancel_batches": {
                "task": "access.cancel_batches",
                "schedule": every(settings.SWEEP_INTERVAL_SECONDS),
                "options": {"expires": _EXPIRES},
            },
            "purge": {
                "task": "inference.purge",
                "schedule": every(60.0),
                "options": {"expires": _EXPIRES},
            },
            "hash_model_files": {
                "task": "inference.hash_model_files",
                "schedule": every(60.0),
                "options": {"expires": _EXPIRES},
            },
            "estimate": {
                "task": "inference.estimate",
                "schedule": every(1.0),
                "options": {"expires": _EXPIRES},
            },
        },
        beat_schedule_filename=str(settings.VAR_DIR / "beat-schedule"),
    )
app.autodiscover_tasks(["inference", "sopllm.access"])
