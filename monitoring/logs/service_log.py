"""What the processes log, in Redis: a bounded stream of everything, and one of each task.

Records that carry a `task_id` go to the log of that task, whatever their level; those of INFO and
above, of all processes, to the log of the service, and out to whoever watches.
"""

import contextlib
import logging
import queue
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
from monitoring.redis.client import RedisClient, client
from monitoring.redis.per_process import PerProcess

MAX_LINES_PER_TASK = 200
MAX_ENTRIES = 10_000
KEPT_SECONDS = 7 * 86_400
MAX_MESSAGE_CHARS = 4096

_LOG = "logs"
_GATHER_SECONDS = 0.05
_MAX_BATCH = 500
_MAX_WAITING = 10_000
_SEARCH_STEP = 1000
# They would tell of each record that they bring to a reader, and so on without an end.
_UNHEARD = ("redis", "channels", "channels_redis", "uvicorn.access")
_NOT_SENT = ("monitoring.events", "monitoring.consumers", "asyncio")

_process_name = ""


class LogLine(TypedDict):
    """One line of a task's log; `timestamp` is ISO 8601 in UTC."""

    timestamp: str
    level: str
    message: str


class LogEntry(LogLine):
    """One record of any process; `process` says of which kind, as "gpu worker"."""

    logger: str
    task_id: str | None
    process: str


class KeptEntry(LogEntry):
    """With the identifier by which pages go on."""

    id: str


@dataclass(frozen=True, slots=True)
class LogPage:
    """Entries, the newest first; `before` asks for the next page, None when there is none."""

    entries: list[KeptEntry]
    before: str | None


class LogHandler(logging.Handler):
    """Ships records from a thread of its own, so that a line costs its writer no round trip.

    Lines are dropped while Redis is away: logging must neither fail nor log about itself.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if hasattr(record, "task_id") or _is_for_the_service(record):
            _shipper().put(record)


def start(process_name: str) -> None:
    """Ship the records of this process, and of those that it forks, under this name."""
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
    limit: int, min_level: int = logging.INFO, task_id: str | None = None, before: str | None = None
) -> LogPage:
    """The newest entries at and above a level, of one task or of all. Raises redis.RedisError."""
    is_search = min_level > logging.INFO or task_id is not None
    page: list[KeptEntry] = []
    for entry in _newest_first(before, step=_SEARCH_STEP if is_search else limit + 1):
        if _level_number(entry["level"]) < min_level:
            continue
        if task_id is not None and entry["task_id"] != task_id:
            continue
        if len(page) == limit:
            return LogPage(page, before=page[-1]["id"])
        page.append(entry)
    return LogPage(page, before=None)


def delete(task_ids: list[str]) -> None:
    """Drop the logs of purged tasks."""
    if task_ids:
        with contextlib.suppress(redis.RedisError):  # they expire by themselves
            client().delete(*map(_task_key, task_ids))


class _Shipper:
    """The thread of a process, and the records that wait for it."""

    def __init__(self) -> None:
        self._records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="logs", daemon=True)
        self._thread.start()

    def put(self, record: logging.LogRecord) -> None:
        is_about_itself = record.thread == self._thread.ident
        if not is_about_itself and self._records.qsize() < _MAX_WAITING:
            self._records.put(record)

    def _run(self) -> None:
        while True:
            records = [self._records.get()]
            time.sleep(_GATHER_SECONDS)
            while len(records) < _MAX_BATCH and not self._records.empty():
                records.append(self._records.get())
            with contextlib.suppress(Exception):  # the thread must live on, and may not say why
                _ship(records)


@PerProcess
def _shipper() -> _Shipper:
    return _Shipper()


def _ship(records: list[logging.LogRecord]) -> None:
    """Keep them all in one round trip, then send them to whoever watches."""
    pipe = client().pipeline(transaction=False)
    sent: list[LogEntry] = []
    is_first = True
    for record in records:
        entry = _entry(record)
        if entry["task_id"] is not None:
            _keep_for_task(pipe, entry["task_id"], entry)
        if _is_for_the_service(record):
            _keep(pipe, entry, is_first=is_first)
            is_first = False
            if not _is_of(record, _NOT_SENT):
                sent.append(entry)
    pipe.execute()
    for entry in sent:
        events.publish(EventType.LOG, entry, owner=None)


def _keep(pipe: RedisClient, entry: LogEntry, *, is_first: bool) -> None:
    pipe.xadd(_LOG, {**entry, "task_id": entry["task_id"] or ""}, maxlen=MAX_ENTRIES)
    if is_first:  # of a batch: that is often enough
        pipe.xtrim(_LOG, minid=_oldest_id())
        pipe.expire(_LOG, KEPT_SECONDS)


def _keep_for_task(pipe: RedisClient, task_id: str, entry: LogEntry) -> None:
    fields = {name: entry[name] for name in ("timestamp", "level", "message")}
    pipe.xadd(_task_key(task_id), fields, maxlen=MAX_LINES_PER_TASK)
    pipe.expire(_task_key(task_id), settings.TASK_TTL_SECONDS)


def _newest_first(before: str | None, step: int) -> Iterator[KeptEntry]:
    end = f"({before}" if before else "+"
    while True:
        found = client().xrevrange(_LOG, max=end, min=_oldest_id(), count=step)
        for entry_id, fields in found:
            more = {"id": entry_id, "task_id": fields["task_id"] or None}
            yield cast(KeptEntry, fields | more)
        if len(found) < step:
            return
        end = f"({found[-1][0]}"


def _entry(record: logging.LogRecord) -> LogEntry:
    task_id = getattr(record, "task_id", None)
    return LogEntry(
        timestamp=events.iso(datetime.fromtimestamp(record.created, UTC)),
        level=record.levelname,
        message=_message(record),
        logger=record.name,
        task_id=None if task_id is None else str(task_id),
        process=_process_name,
    )


def _message(record: logging.LogRecord) -> str:
    """Without secrets, of a bounded length; of an exception the last line, which says what it was.

    What is cut off before secrets are looked for is far behind the end of what is kept.
    """
    try:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            lines = traceback.format_exception_only(record.exc_info[1])
            text = f"{text}: {' '.join(lines[-1].split())}"
    except Exception:  # noqa: BLE001 - whatever the arguments do when they are to become text
        text = str(record.msg)
    text = redact(text[: 4 * MAX_MESSAGE_CHARS])
    return text if len(text) <= MAX_MESSAGE_CHARS else f"{text[: MAX_MESSAGE_CHARS - 1]}…"


def _is_for_the_service(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.INFO and not _is_of(record, _UNHEARD)


def _is_of(record: logging.LogRecord, loggers: tuple[str, ...]) -> bool:
    return any(record.name == name or record.name.startswith(f"{name}.") for name in loggers)


def _level_number(level: str) -> int:
    return logging.getLevelNamesMapping().get(level, logging.INFO)


def _oldest_id() -> str:
    """Of an entry that is still kept."""
    return str(round((time.time() - KEPT_SECONDS) * 1000))


def _task_key(task_id: str) -> str:
    return f"task:{task_id}:log"
