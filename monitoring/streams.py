"""The token stream of a task: a Redis stream with its text chunks and its end.

Entries: `token` {"text", "index", "attempt"} and, last, `end` {"status", "attempt"}. The stream is
a preview for readers; the saved result is the truth. It lives as long as the task's row.
"""

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator, Sequence

import redis
from django.conf import settings

from monitoring.redis_client import RedisClient, client

logger = logging.getLogger(__name__)

# Every end of a task is announced here, for the long polls of all web processes.
ENDED_CHANNEL = "tasks:ended"

_FLUSH_SECONDS = 0.03
_WARN_AGAIN_SECONDS = 10.0

_warned_at = float("-inf")


def stream_key(task_id: str) -> str:
    """The Redis key of a task's token stream."""
    return f"task:{task_id}:stream"


class ChunkWriter:
    """Collects the text of one attempt for its stream; several chunks go out in a round trip."""

    def __init__(self, task_id: str, attempt: int) -> None:
        self._task_id = task_id
        self._attempt = attempt
        self._buffer: list[str] = []
        self._index = 0
        self._flushed_at = 0.0

    def write(self, text: str) -> None:
        """Queue a chunk."""
        self._buffer.append(text)

    def flush_if_due(self) -> None:
        """Send what is queued about every 30 ms, the first chunk at once."""
        if time.monotonic() - self._flushed_at >= _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send what is queued in one round trip. Without Redis only the preview is lost."""
        self._flushed_at = time.monotonic()
        if self._buffer:
            send([self])

    def put_into(self, pipe: RedisClient) -> None:
        """Queue the commands that send what is queued."""
        for text in self._buffer:
            entry = {"type": "token", "text": text, "index": self._index, "attempt": self._attempt}
            pipe.xadd(stream_key(self._task_id), entry)
            self._index += 1
        self._buffer.clear()


def send(writers: Iterable[ChunkWriter], read: Sequence[str] = ()) -> list[str | None]:
    """Send the chunks of several attempts in one round trip, and read some keys in the same.

    The keys' values, None for one that is not there, and for all without Redis. Never fails the
    generation.
    """
    pipe = client().pipeline(transaction=False)
    for writer in writers:
        writer.put_into(pipe)
    if read:
        pipe.mget(read)
    try:
        answers = pipe.execute()
    except redis.RedisError as exc:
        _warn("No live tokens, Redis is unreachable: %s", exc)
        return [None] * len(read)
    values: list[str | None] = answers[-1] if read else []
    return values


def _warn(message: str, error: Exception) -> None:
    """At most one line in ten seconds: there is a chunk every few milliseconds."""
    global _warned_at
    if time.monotonic() - _warned_at > _WARN_AGAIN_SECONDS:
        _warned_at = time.monotonic()
        logger.warning(message, error)


def end(task_id: str, attempt: int, status: str) -> None:
    """Close a task's stream and wake everyone who waits for the task."""
    pipe = client().pipeline(transaction=False)
    pipe.xadd(stream_key(task_id), {"type": "end", "status": status, "attempt": attempt})
    pipe.expire(stream_key(task_id), settings.TASK_TTL_SECONDS)
    pipe.publish(ENDED_CHANNEL, task_id)
    try:
        pipe.execute()
    except redis.RedisError as exc:
        logger.warning("Task %s: its end was not announced: %s", task_id, exc)


def delete(task_ids: list[str]) -> None:
    """Drop the streams of purged tasks."""
    if task_ids:
        with contextlib.suppress(redis.RedisError):  # they expire by themselves
            client().delete(*map(stream_key, task_ids))


def read_chunks(task_id: str, timeout_seconds: float) -> Iterator[str]:
    """The text chunks of a task as they come, until it ends; TimeoutError past the time."""
    give_up_at = time.monotonic() + timeout_seconds
    last_id = "0"
    block_ms = max(1, int(settings.REDIS_TIMEOUT_SECONDS * 500))
    while time.monotonic() < give_up_at:
        found = client().xread({stream_key(task_id): last_id}, block=block_ms)
        for entry_id, entry in found[0][1] if found else []:
            if entry["type"] == "end":
                return
            last_id = entry_id
            yield entry["text"]
    raise TimeoutError(f"Task {task_id} did not end within {timeout_seconds:.0f} s.")
