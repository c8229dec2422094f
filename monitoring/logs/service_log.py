"""The logs of all processes in Redis: a bounded stream of everything, and one of each task.

Records that carry a `task_id` go to the log of that task, whatever their level; those of INFO and
above, of all processes, go to the log of the service, and are published as events.
"""

import contextlib
import logging
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypedDict, cast

import redis
from django.conf import settings

from monitoring.events import events
from monitoring.events.events import EventType
from monitoring.logs.redaction import redact
from monitoring.redis import outbox
from monitoring.redis.client import client
from monitoring.redis.outbox import Batch, Sink

MAX_LINES_PER_TASK = 200
MAX_ENTRIES = 10_000
KEPT_SECONDS = 7 * 86_400
MAX_MESSAGE_CHARS = 4096

_LOG = "logs"
_SEARCH_STEP = 1000
# These log about each record that is kept or published, which would be records again, without end.
_NOT_KEPT = ("redis", "channels", "channels_redis", "uvicorn.access")
_NOT_PUBLISHED = (
    "monitoring.events",
    "monitoring.redis.outbox",
    "asyncio",
)

_process_name = ""
# The thread that sends records now: those that it causes are not sent.
_sending_thread: int | None = None


class LogLine(TypedDict):
    """One line of a task's log; `timestamp` is ISO 8601 in UTC."""

    timestamp: events.Timestamp
    level: str
    message: str


class ServiceLogLine(LogLine):
    """One record of any process; `process` says of which kind, as "gpu worker".

    `owner` is that of the task; None for a record of no task, which the scope `monitor` alone sees.
    """

    logger: str
    task_id: str | None
    owner: str | None
    process: str


class LogEntry(ServiceLogLine):
    """With the identifier by which pages go on."""

    id: str


class LogHandler(logging.Handler):
    """Puts lines into the outbox, so that one costs its writer no round trip.

    Lines are dropped while Redis is away. None of a record's arguments wait with them: a traceback
    would hold on to all that its functions had in memory.
    """

    def emit(self, record: logging.LogRecord) -> None:
        is_of_service = record.levelno >= logging.INFO and not _is_of(record.name, _NOT_KEPT)
        task_id = getattr(record, "task_id", None)
        if (task_id is None and not is_of_service) or record.thread == _sending_thread:
            return
        line = ServiceLogLine(
            timestamp=events.iso(datetime.fromtimestamp(record.created, UTC)),
            level=record.levelname,
            message=_text(record),
            logger=record.name,
            task_id=None if task_id is None else str(task_id),
            owner=getattr(record, "owner", None),
            process=_process_name,
        )
        outbox.put(_SINK, _Waiting(line, is_of_service))


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A line from which no secrets have been taken yet."""

    line: ServiceLogLine
    is_of_service: bool


def start(process_name: str) -> None:
    """Send the records of this process, and of those that it forks, under this name."""
    global _process_name
    _process_name = process_name
    for logger in (logging.getLogger(), logging.getLogger("uvicorn")):
        is_heard = any(isinstance(handler, LogHandler) for handler in logger.handlers)
        if not is_heard and (logger.parent is None or not logger.propagate):
            logger.addHandler(LogHandler())


def task_log(task_id: str) -> list[LogLine]:
    """A task's lines, oldest first; none while Redis is away."""
    try:
        entries = client().xrange(_task_key(task_id))
    except redis.RedisError:
        return []
    return [
        LogLine(timestamp=line["timestamp"], level=line["level"], message=line["message"])
        for _, line in entries
    ]


def read(
    limit: int,
    min_level: int = logging.INFO,
    task_id: str | None = None,
    before: str | None = None,
    owner: str | None = None,
) -> tuple[list[LogEntry], str | None]:
    """The newest entries at and above a level. Raises redis.RedisError.

    Of one task, of the tasks of one owner, or where these are None of everything.

    Beside them the `before` that asks for the next page; None when there is none.
    """
    is_search = min_level > logging.INFO or task_id is not None or owner is not None
    page: list[LogEntry] = []
    levels = logging.getLevelNamesMapping()
    for entry in _newest_first(before, step=_SEARCH_STEP if is_search else limit + 1):
        if levels.get(entry["level"], logging.INFO) < min_level:
            continue
        if task_id is not None and entry["task_id"] != task_id:
            continue
        if owner is not None and entry["owner"] != owner:
            continue
        if len(page) == limit:
            return page, page[-1]["id"]
        page.append(entry)
    return page, None


def delete(task_ids: list[str]) -> None:
    """Drop the logs of purged tasks."""
    if task_ids:
        with contextlib.suppress(redis.RedisError):  # they expire by themselves
            client().delete(*map(_task_key, task_ids))


def _send(batch: Batch[_Waiting]) -> None:
    """Keep the lines in one round trip, then publish them. Raises redis.RedisError."""
    global _sending_thread
    _sending_thread = threading.get_ident()
    try:
        _keep_and_publish(batch.items)
    finally:
        _sending_thread = None


def _keep_and_publish(lines: list[_Waiting]) -> None:
    pipe = client().pipeline(transaction=False)
    published: list[ServiceLogLine] = []
    has_trimmed = False
    for waiting in lines:
        entry = waiting.line.copy()
        message = redact(entry["message"])
        if len(message) > MAX_MESSAGE_CHARS:
            message = f"{message[: MAX_MESSAGE_CHARS - 1]}…"
        entry["message"] = message
        if entry["task_id"] is not None:
            key = _task_key(entry["task_id"])
            fields = {name: entry[name] for name in ("timestamp", "level", "message")}
            pipe.xadd(key, fields, maxlen=MAX_LINES_PER_TASK)
            pipe.expire(key, settings.TASK_TTL_SECONDS)
        if waiting.is_of_service:
            fields = {name: str(value or "") for name, value in entry.items()}
            pipe.xadd(_LOG, fields, maxlen=MAX_ENTRIES)
            if not has_trimmed:  # once a batch is often enough
                pipe.xtrim(_LOG, minid=_oldest_id())
                pipe.expire(_LOG, KEPT_SECONDS)
                has_trimmed = True
            if not _is_of(entry["logger"], _NOT_PUBLISHED):
                published.append(entry)
    pipe.execute()
    for entry in published:
        events.publish(EventType.LOG, entry, entry["owner"] or events.SERVICE)


_SINK = Sink(
    name="Log lines",
    send=_send,
    gather_seconds=0.05,
    max_batch=500,
    size=lambda waiting: len(waiting.line["message"]),
)


def _newest_first(before: str | None, step: int) -> Iterator[LogEntry]:
    end = f"({before}" if before else "+"
    while True:
        found = client().xrevrange(_LOG, max=end, min=_oldest_id(), count=step)
        for entry_id, fields in found:
            whose = {name: fields.get(name) or None for name in ("task_id", "owner")}
            yield cast(LogEntry, {"id": entry_id, **fields, **whose})
        if len(found) < step:
            return
        end = f"({found[-1][0]}"


def _text(record: logging.LogRecord) -> str:
    """Its message, and of an exception the last line, which says what it was; of bounded length.

    What is cut off before secrets are looked for is far behind the end of what is kept.
    """
    try:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            lines = traceback.format_exception_only(record.exc_info[1])
            text = f"{text}: {' '.join(lines[-1].split())}"
    except Exception:  # noqa: BLE001 - whatever the arguments do when they are to become text
        text = str(record.msg)
    return text[: 4 * MAX_MESSAGE_CHARS]


def _is_of(name: str, loggers: tuple[str, ...]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in loggers)


def _oldest_id() -> str:
    """Of an entry that is still kept."""
    return str(round((time.time() - KEPT_SECONDS) * 1000))


def _task_key(task_id: str) -> str:
    return f"task:{task_id}:log"
