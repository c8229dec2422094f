"""The log of each task: records that carry a `task_id`, kept in a bounded Redis stream per task."""

import atexit
import logging
import logging.handlers
import queue
from datetime import UTC, datetime
from typing import TypedDict

import redis
from django.conf import settings

from monitoring.redis_client import client

MAX_LINES_PER_TASK = 200


class LogLine(TypedDict):
    """One line of a task's log; `timestamp` is ISO 8601 in UTC."""

    timestamp: str
    level: str
    message: str


class TaskLogHandler(logging.Handler):
    """Stores records logged with `extra={"task_id": ...}`; drops them when Redis is away."""

    def emit(self, record: logging.LogRecord) -> None:
        task_id = getattr(record, "task_id", None)
        if not task_id:
            return
        key = _log_key(task_id)
        moment = datetime.fromtimestamp(record.created, UTC)
        line = LogLine(
            timestamp=moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            level=record.levelname,
            message=record.getMessage(),
        )
        pipe = client().pipeline(transaction=False)
        pipe.xadd(key, dict(line), maxlen=MAX_LINES_PER_TASK)
        pipe.expire(key, settings.TASK_TTL_SECONDS)
        try:
            pipe.execute()
        except redis.RedisError:
            return  # logging must not fail, nor log about itself


class _TaskQueueHandler(logging.handlers.QueueHandler):
    """Takes only records about a task."""

    def emit(self, record: logging.LogRecord) -> None:
        if hasattr(record, "task_id"):
            super().emit(record)


def start() -> None:
    """Ship task logs from this process, in a thread: a log line costs its writer no round trip.

    Call it after a fork: threads do not survive one, so an inherited handler has no listener.
    """
    logger = logging.getLogger("inference")
    for inherited in [h for h in logger.handlers if isinstance(h, _TaskQueueHandler)]:
        logger.removeHandler(inherited)
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    listener = logging.handlers.QueueListener(records, TaskLogHandler())
    listener.start()
    atexit.register(listener.stop)
    logger.addHandler(_TaskQueueHandler(records))


def task_log(task_id: str) -> list[LogLine]:
    """A task's lines, oldest first; none while Redis is away."""
    try:
        entries = client().xrange(_log_key(task_id))
    except redis.RedisError:
        return []
    return [
        LogLine(timestamp=line["timestamp"], level=line["level"], message=line["message"])
        for _, line in entries
    ]


def delete(task_ids: list[str]) -> None:
    """Drop the logs of purged tasks."""
    if task_ids:
        client().delete(*map(_log_key, task_ids))


def _log_key(task_id: str) -> str:
    return f"task:{task_id}:log"
