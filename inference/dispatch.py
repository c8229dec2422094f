"""Waking workers: the only place that publishes to Celery.

A message says that something is to be done; what that is, the database says. Losing one, or sending
it twice, is harmless: the sweep enqueues again.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import kombu.exceptions
import redis
from celery import current_app
from django.conf import settings
from django.db import Error as DatabaseError
from django.db import connection
from kombu import Connection
from kombu.pools import producers

from inference.models import GenerationTask, Queue
from inference.models.claimable import ClaimableQuerySet, Row
from monitoring.hardware import worker_identity
from monitoring.redis import outbox
from monitoring.redis.client import client
from monitoring.redis.outbox import Batch, Sink

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class QueueMessage:
    """The name of the Celery task that it starts, its queue, and 0 (goes first) to 9 (goes last).

    `task_id` is the generation task that it was sent for.
    """

    name: str
    queue: str
    priority: int
    task_id: str | None = None


GENERATE = "inference.generate"
ANSWER_CLOUD_TASKS = QueueMessage(GENERATE, Queue.API, 0)
SERVE_MODEL_REQUESTS = QueueMessage("inference.serve_model_requests", Queue.GPU, 0)
# Before tasks: a result is to be delivered before more of them are made.
DELIVER_WEBHOOK = QueueMessage("inference.deliver_webhooks", Queue.DEFAULT, 0)
ADVANCE_BATCHES = QueueMessage("inference.advance_batches", Queue.DEFAULT, 8)
DOWNLOAD = QueueMessage("inference.download", Queue.DEFAULT, 9)
EMBED = QueueMessage("inference.embed", Queue.EMBEDDINGS, 0)
WARM_UP_EMBEDDINGS = QueueMessage("inference.warm_up_embeddings", Queue.EMBEDDINGS, 0)

# Counters that GPU sessions read at each step: tasks were submitted; cancels were asked for.
GPU_NEWS_KEYS = ("gpu:submitted", "gpu:cancelled")
# What running cloud sessions hear, so that their tasks need no messages.
CLOUD_NEWS_CHANNEL = "api:submitted"

# While the broker is down, submissions do not each wait for its time-out.
_PAUSE_SECONDS = 1.0
_broker_down_until = 0.0

_BROKER_ERRORS = (kombu.exceptions.OperationalError, redis.RedisError, OSError)


def generate(tasks: Iterable[GenerationTask]) -> list[QueueMessage]:
    """One message for each task, to its queue, with its priority."""
    return [QueueMessage(GENERATE, task.queue, task.broker_priority, task.pk) for task in tasks]


def enqueue(messages: Sequence[QueueMessage], *, is_heard: bool = True) -> bool:
    """Publish messages; False when the broker could not be reached. Never raises.

    Takes at most about REDIS_TIMEOUT_SECONDS. Tasks whose message was not sent are marked, so that
    the next sweep enqueues them; without the database it does once no messages of their queue are
    left. `is_heard`: those of tasks for a cloud session are not sent while one runs that hears of
    them.
    """
    if is_heard and _is_heard(messages):
        messages = [message for message in messages if not _is_of_cloud(message)]
    num_sent = _publish(messages)
    if any(message.queue == Queue.GPU for message in messages[:num_sent]):
        tell_gpu_sessions(cancelled=False)
    if num_sent == len(messages):
        return True
    ids = [message.task_id for message in messages[num_sent:] if message.task_id]
    if ids:
        try:
            GenerationTask.objects.pending().filter(pk__in=ids).update(enqueued_at=None)
        except DatabaseError as exc:
            logger.warning("%d tasks, of %s first, were not marked: %s", len(ids), ids[0], exc)
            connection.close()  # threads that serve no requests keep a broken one
    return False


def _is_heard(messages: Sequence[QueueMessage]) -> bool:
    """Tell running cloud sessions of their tasks, if there are any; whether one has heard it."""
    if time.monotonic() < _broker_down_until or not any(map(_is_of_cloud, messages)):
        return False
    try:
        return bool(client().publish(CLOUD_NEWS_CHANNEL, ""))
    except redis.RedisError as exc:
        _note_broker_down()
        logger.warning("Cloud sessions were not told of tasks, Redis is unreachable: %s", exc)
        return False


def _is_of_cloud(message: QueueMessage) -> bool:
    return message.name == GENERATE and message.queue == Queue.API


def run_due(
    rows: ClaimableQuerySet[Row],
    run: Callable[[Row], object],
    slots: threading.BoundedSemaphore,
    message: QueueMessage,
) -> None:
    """Claim the due row that goes first and run it, then wake a worker for the next one.

    Without a free slot, do nothing: a thread that has one enqueues when it is free again.
    """
    if not slots.acquire(blocking=False):
        return
    try:
        if (row := rows.claim_next(worker_identity.current())) is not None:
            run(row)
    finally:
        slots.release()
    if rows.due().exists():
        enqueue([message])


def tell_gpu_sessions(*, cancelled: bool) -> None:
    """Have the running sessions look at the database now; without Redis they do so soon."""
    try:
        client().incr(GPU_NEWS_KEYS[cancelled])
    except redis.RedisError as exc:
        logger.warning("GPU sessions were not told of news, Redis is unreachable: %s", exc)


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


def _publish(messages: Sequence[QueueMessage]) -> int:
    """Send the messages, without retries; returns how many of them, from the first on."""
    if time.monotonic() < _broker_down_until:
        return 0
    for num_sent, message in enumerate(messages):
        try:
            with producers[_connection()].acquire(block=True, timeout=1) as producer:
                current_app.send_task(
                    message.name,
                    (message.task_id,) if message.task_id else (),
                    task_id=message.task_id,
                    queue=message.queue,
                    priority=message.priority,
                    ignore_result=True,
                    producer=producer,
                    retry=False,
                )
        except _BROKER_ERRORS as exc:
            _note_broker_down()
            logger.warning(
                "%d messages, of %s first, were not sent, broker unreachable: %s",
                *(len(messages) - num_sent, message.task_id or message.name, exc),
            )
            return num_sent
    return len(messages)


def _note_broker_down() -> None:
    global _broker_down_until
    _broker_down_until = time.monotonic() + _PAUSE_SECONDS


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


def enqueue_soon(messages: Iterable[QueueMessage]) -> None:
    """Enqueue from the outbox thread: a submission need not wait, least of all for a dead broker.

    A process that dies before that loses the messages, and the next sweep enqueues instead.
    """
    for message in messages:
        outbox.put(_SINK, message)


def _send(batch: Batch[QueueMessage]) -> None:
    enqueue(batch.items)


# Small batches, so that events of the same tasks go out in between.
_SINK = Sink(name="Messages to workers", send=_send, gather_seconds=0.0, max_batch=20)
