"""The log of each task: records that carry a `task_id`, kept in a bounded Redis stream per task."""

import contextlib
import logging
import queue
import threading
import time
from datetime import UTC, datetime
from typing import TypedDict

import redis
from django.conf import settings

from monitoring.redis_client import client

MAX_LINES_PER_TASK = 200
_GATHER_SECONDS = 0.05


class LogLine(TypedDict):
    """One line of a task's log; `timestamp` is ISO 8601 in UTC."""

    timestamp: str
    level: str
    message: str


class TaskLogHandler(logging.Handler):
    """Ships records logged with `extra={"task_id": ...}` from a thread of its own.

    So a log line costs its writer no round trip, and many lines share one. Lines are dropped while
    Redis is away: logging must neither fail nor log about itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self._records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
        threading.Thread(target=self._ship, name="task-logs", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        if hasattr(record, "task_id"):
            self._records.put(record)

    def _ship(self) -> None:
        while True:
            records = [self._records.get()]
            time.sleep(_GATHER_SECONDS)
            while not self._records.empty():
                records.append(self._records.get())
            with contextlib.suppress(redis.RedisError):
                _store(records)


def start() -> None:
    """Ship task logs from this process.

    Call it after a fork: threads do not survive one, so an inherited handler ships nothing.
    """
    logger = logging.getLogger("inference")
    for inherited in [h for h in logger.handlers if isinstance(h, TaskLogHandler)]:
        logger.removeHandler(inherited)
    logger.addHandler(TaskLogHandler())


def _store(records: list[logging.LogRecord]) -> None:
    pipe = client().pipeline(transaction=False)
    for record in records:
        key = _log_key(getattr(record, "task_id", ""))
        moment = datetime.fromtimestamp(record.created, UTC)
        line = LogLine(
            timestamp=moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            level=record.levelname,
            message=record.getMessage(),
        )
        pipe.xadd(key, dict(line), maxlen=MAX_LINES_PER_TASK)
        pipe.expire(key, settings.TASK_TTL_SECONDS)
    pipe.execute()


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
        with contextlib.suppress(redis.RedisError):  # they expire by themselves
            client().delete(*map(_log_key, task_ids))


def _log_key(task_id: str) -> str:
    return f"task:{task_id}:log"
