"""A probe of each component: its status, and what to do where it fails."""

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

import redis
from celery import current_app
from channels.layers import get_channel_layer
from django.conf import settings
from django.db import Error as DatabaseError
from django.db import connection, transaction
from kombu import Connection
from kombu.exceptions import OperationalError

from monitoring import tracing
from monitoring.hardware import workers
from monitoring.logs.redaction import redact
from monitoring.redis.client import client

WORKERS = "workers"

_REDIS_REMEDY = "check that it runs, and REDIS_URL"
_LAYER_SECONDS = 2.0
_LANGFUSE_SECONDS = 0.5
_MAX_REASON_LENGTH = 200


class Status(StrEnum):
    UP = "up"
    DEGRADED = "degraded"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a probe; `queues`: live workers of each queue, for the component WORKERS."""

    status: Status
    message: str
    queues: dict[str, int] = field(default_factory=dict)


def database() -> Finding:
    """A new connection can read; on SQLite it gets the lock that writers need, too."""
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM django_migrations LIMIT 1")
    except DatabaseError as exc:
        return _down("The database cannot be used", exc, "check that it runs, and DATABASE_URL")
    finally:
        connection.close()
    return Finding(Status.UP, "Can be read and written.")


def redis_server() -> Finding:
    """Redis takes a write."""
    try:
        client().set("health", 1, ex=10)
    except redis.RedisError as exc:
        return _down("Redis cannot be used", exc, _REDIS_REMEDY)
    return Finding(Status.UP, "Can be written.")


def broker() -> Finding:
    """A new connection to Celery's broker, which Redis answers on."""
    options = current_app.conf.broker_transport_options
    timeouts = dict.fromkeys(
        ("socket_timeout", "socket_connect_timeout"), settings.REDIS_TIMEOUT_SECONDS
    )
    try:
        with Connection(current_app.conf.broker_url, transport_options=options | timeouts) as link:
            link.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
    except (OperationalError, redis.RedisError, OSError) as exc:
        return _down("The broker takes no connection", exc, _REDIS_REMEDY)
    return Finding(Status.UP, "Takes connections.")


def worker_queues() -> Finding:
    """Each queue has a live worker."""
    try:
        queues = workers.count(settings.WORKER_QUEUES)
    except redis.RedisError:
        unknown = dict.fromkeys(settings.WORKER_QUEUES, 0)
        return Finding(Status.DOWN, "Not known while Redis cannot be used.", unknown)
    missing = [queue for queue, num_workers in queues.items() if not num_workers]
    if not missing:
        return Finding(Status.UP, "Every queue has a worker.", queues)
    status = Status.DOWN if len(missing) == len(queues) else Status.DEGRADED
    names = ", ".join(missing)
    message = f"No live worker for {names}: tasks wait there. Start one, or look at its log."
    return Finding(status, message, queues)


def channel_layer() -> Finding:
    """A message comes through the layer that brings events to the web processes."""
    try:
        asyncio.run(asyncio.wait_for(_send_and_receive(), _LAYER_SECONDS))
    except (redis.RedisError, OSError, TimeoutError) as exc:
        return _down("No message comes through the channel layer", exc, _REDIS_REMEDY)
    return Finding(Status.UP, "A message came through.")


def langfuse() -> Finding:
    """Where traces are sent answers; no task depends on it."""
    if not tracing.is_configured():
        return Finding(Status.UP, "Not configured: no traces are sent.")
    import httpx  # slows the start of a web process, most of which never ask

    url = f"{settings.LANGFUSE_HOST}/api/public/health"
    try:
        httpx.get(url, timeout=_LANGFUSE_SECONDS).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as exc:
        return _down("Langfuse takes no traces", exc, "check that it runs, and LANGFUSE_HOST")
    return Finding(Status.UP, "Answers.")


COMPONENTS: dict[str, Callable[[], Finding]] = {
    "database": database,
    "redis": redis_server,
    "broker": broker,
    WORKERS: worker_queues,
    "channel_layer": channel_layer,
    "langfuse": langfuse,
}


async def _send_and_receive() -> None:
    layer = get_channel_layer()
    assert layer is not None, "CHANNEL_LAYERS has no default"
    channel = await layer.new_channel()
    sent = {"type": "health", "token": uuid.uuid4().hex}
    await layer.send(channel, sent)
    while await layer.receive(channel) != sent:
        pass


def _down(what: str, error: Exception, remedy: str) -> Finding:
    """The reason in one line, without passwords, and what to do about it."""
    reason = redact(" ".join(str(error).split()))[:_MAX_REASON_LENGTH].rstrip(".")
    return Finding(Status.DOWN, f"{what} ({reason or type(error).__name__}): {remedy}.")
