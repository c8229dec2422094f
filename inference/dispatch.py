"""Ringing workers: the only place that publishes to Celery.

A message carries an id and nothing else. Losing one, or sending it twice, is harmless: the row in
the database says what is to be done, and the sweep rings again.
"""

import logging
import queue
import threading
import time
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import kombu.exceptions
import redis
from celery import current_app
from django.conf import settings
from django.db import connection
from kombu import Connection
from kombu.pools import producers

from inference.models import GenerationTask, Queue
from monitoring.redis.client import client

logger = logging.getLogger(__name__)

GENERATE = "inference.generate"
# Counters that GPU sessions read at each step: tasks were submitted; cancels were asked for.
GPU_NEWS_KEYS = ("gpu:submitted", "gpu:cancelled")
SERVE_MODEL_REQUESTS = "inference.serve_model_requests"
DELIVER_WEBHOOKS = "inference.deliver_webhooks"
EMBED = "inference.embed"
DOWNLOAD = "inference.download"

# While the broker is down, submissions do not each wait for its time-out.
_PAUSE_SECONDS = 1.0
_broker_down_until = 0.0

_bell: "_Bell | None" = None
_starting = threading.Lock()

_BROKER_ERRORS = (kombu.exceptions.OperationalError, redis.RedisError, OSError)


def ring_soon(tasks: Sequence[GenerationTask]) -> None:
    """Ring from a thread of its own: who submits need not wait, least of all for a dead broker.

    A process that dies before it has rung loses the messages, and the next sweep rings instead.
    """
    global _bell
    if _bell is None:
        with _starting:
            _bell = _bell or _Bell()
    _bell.put(tasks)


def ring(tasks: Sequence[GenerationTask]) -> None:
    """Publish one message a task, by its queue and priority; never raises.

    Takes at most about REDIS_TIMEOUT_SECONDS. Tasks that could not be rung are marked, so that
    the next sweep rings them.
    """
    unrung = _publish(tasks)
    if unrung:
        ids = [task.pk for task in unrung]
        GenerationTask.objects.pending().filter(pk__in=ids).update(rung_at=None)


def tell_gpu_sessions(*, cancelled: bool) -> None:
    """Have the running sessions look at the database now; without Redis they do so soon."""
    try:
        client().incr(GPU_NEWS_KEYS[cancelled])
    except redis.RedisError as exc:
        logger.warning("GPU sessions were not told of news, Redis is unreachable: %s", exc)


def ring_for_models() -> None:
    """Have a GPU worker look at what the rows of the models ask for; never raises."""
    try:
        _send(SERVE_MODEL_REQUESTS, (), queue=Queue.GPU, priority=0)
    except _BROKER_ERRORS as exc:
        # The sweep rings again, and a worker that has tasks to run looks without being rung.
        logger.warning("Requests for models are kept but not rung, broker unreachable: %s", exc)
    else:
        tell_gpu_sessions(cancelled=False)


def ring_for_webhooks(num_messages: int) -> None:
    """Have api workers deliver what is due, one message a delivery; never raises."""
    global _broker_down_until
    if time.monotonic() < _broker_down_until:
        return  # the sweep rings again
    try:
        for _ in range(num_messages):
            # Before tasks: a result is to be delivered before more of them are made.
            _send(DELIVER_WEBHOOKS, (), queue=Queue.DEFAULT, priority=0)
    except _BROKER_ERRORS as exc:
        _broker_down_until = time.monotonic() + _PAUSE_SECONDS
        logger.warning("Webhooks are kept but not rung for, broker unreachable: %s", exc)


def ring_for_downloads(num_messages: int) -> None:
    """Have api workers bring what is due, one message a download; never raises."""
    try:
        for _ in range(num_messages):
            _send(DOWNLOAD, (), queue=Queue.DEFAULT, priority=9)
    except _BROKER_ERRORS as exc:
        # The sweep rings again.
        logger.warning("Downloads are kept but not rung for, broker unreachable: %s", exc)


def ring_for_embeddings() -> bool:
    """Have an embeddings worker look for requests; False when the broker cannot be reached."""
    try:
        _send(EMBED, (), queue=Queue.EMBEDDINGS, priority=0)
    except _BROKER_ERRORS as exc:
        logger.warning("Embeddings are waited for but not rung, broker unreachable: %s", exc)
        return False
    return True


def waiting_messages(queue_name: str) -> int | None:
    """Messages of a queue that no worker has taken; None while Redis is away."""
    try:
        return sum(messages_by_priority([queue_name])[queue_name].values())
    except redis.RedisError as exc:
        logger.warning("Queue %s cannot be looked at, Redis is unreachable: %s", queue_name, exc)
        return None


def messages_by_priority(queue_names: Iterable[str]) -> dict[str, dict[str, int]]:
    """Messages that no worker has taken, by queue and Redis priority, of which 0 goes first.

    Those priorities alone that have any. Raises redis.RedisError.
    """
    options = current_app.conf.broker_transport_options
    lists = [(name, step) for name in queue_names for step in options["priority_steps"]]
    pipe = client().pipeline(transaction=False)
    for name, step in lists:
        pipe.llen(f"{name}{options['sep']}{step}" if step else name)
    found: dict[str, dict[str, int]] = {name: {} for name, _ in lists}
    for (name, step), num_messages in zip(lists, pipe.execute(), strict=True):
        if num_messages:
            found[name][str(step)] = num_messages
    return found


def _publish(tasks: Sequence[GenerationTask]) -> Sequence[GenerationTask]:
    """Send the messages; returns the tasks that got none."""
    global _broker_down_until
    if time.monotonic() < _broker_down_until:
        return tasks
    for index, task in enumerate(tasks):
        try:
            urgency = task.broker_priority
            _send(GENERATE, (task.pk,), task_id=task.pk, queue=task.queue, priority=urgency)
        except _BROKER_ERRORS as exc:
            _broker_down_until = time.monotonic() + _PAUSE_SECONDS
            logger.warning("Task %s is kept but not rung, broker unreachable: %s", task.pk, exc)
            return tasks[index:]
    if any(task.queue == Queue.GPU for task in tasks):
        tell_gpu_sessions(cancelled=False)
    return []


def _send(name: str, args: tuple[str, ...], **options: Any) -> None:
    """Publish one message, without retries; raises _BROKER_ERRORS."""
    with producers[_connection()].acquire(block=True, timeout=1) as producer:
        current_app.send_task(
            name, args, ignore_result=True, producer=producer, retry=False, **options
        )


class _Bell:
    """Rings, one after the other, the tasks that the threads of a web process submit."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[Sequence[GenerationTask]] = queue.SimpleQueue()
        thread = threading.Thread(target=self._ring_all, name="bell", daemon=True)
        thread.start()

    def put(self, tasks: Sequence[GenerationTask]) -> None:
        self._tasks.put(tasks)

    def _ring_all(self) -> None:
        while True:
            tasks = self._tasks.get()
            try:
                ring(tasks)
            except Exception:
                # The thread must live on; what was not rung is rung by the sweep.
                logger.exception("%d tasks were not rung", len(tasks))
                connection.close()  # it may be the cause; the next task gets a new one


@cache
def _connection() -> Connection:
    """A broker connection that fails fast: a submission must not wait for a broker that is down."""
    timeouts = {
        "socket_timeout": settings.REDIS_TIMEOUT_SECONDS,
        "socket_connect_timeout": settings.REDIS_TIMEOUT_SECONDS,
        "retry_on_timeout": False,
        "max_retries": 0,
    }
    options = {**current_app.conf.broker_transport_options, **timeouts}
    broker: Connection = current_app.connection_for_write(transport_options=options)
    return broker
