"""A thread a process that sends what may be late, so that it costs its caller microseconds.

Items that are put within a few milliseconds go out in one batch, in one round trip.
"""

import atexit
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import redis

from monitoring.redis.per_process import PerProcess

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

MAX_WAITING_BYTES = 32 * 1024 * 1024
_RETRY_SECONDS = 1.0
_FLUSH_SECONDS = 2.0
_WARN_AGAIN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Batch(Generic[Item]):
    """Items to be sent, oldest first; a batch that is sent again keeps its number and its items.

    Numbers count the batches of a sink in a process, from 1 on.
    """

    items: list[Item]
    number: int


@dataclass(eq=False, slots=True)
class Sink(Generic[Item]):
    """Where items of one kind go, in the order in which they were put.

    `send` is called in the outbox thread. It raises redis.RedisError or OSError when the items may
    be sent later: those that `is_kept` are then tried again each second, the others are dropped.
    After any other error all items of the batch are dropped. At most `max_waiting` items wait, and
    MAX_WAITING_BYTES by their `size`, of which the latest are kept; `merge` may make fewer of them
    without a loss.
    """

    name: str
    send: Callable[[Batch[Item]], None]
    gather_seconds: float
    max_batch: int = 200
    max_waiting: int = 10_000
    size: Callable[[Item], int] = lambda _: 0
    is_kept: Callable[[Item], bool] = lambda _: False
    merge: Callable[[list[Item]], list[Item]] = list


def put(sink: Sink[Item], item: Item) -> None:
    """Have the item sent soon. Never blocks, never raises."""
    _outbox().put(sink, item)


def flush(timeout_seconds: float = _FLUSH_SECONDS) -> bool:
    """Wait until all that was put so far is out or was tried; False when the time is over."""
    return _outbox().flush(timeout_seconds)


@PerProcess
def _outbox() -> "Outbox":
    outbox, pid = Outbox(), os.getpid()
    # A child that inherits this does not wait for a thread that it has not.
    atexit.register(lambda: outbox.flush(_FLUSH_SECONDS) if os.getpid() == pid else None)
    return outbox


@dataclass(slots=True)
class _Queue:
    """What a sink has to send; `batch` is under way or failed, `due_at` infinite without items."""

    sink: Sink[Any]
    waiting: deque[Any] = field(default_factory=deque)
    num_bytes: int = 0
    batch: list[Any] = field(default_factory=list)
    num_batches: int = 0
    due_at: float = float("inf")
    num_dropped: int = 0
    warned_at: float = float("-inf")


class Outbox:
    """The thread, and what waits for it."""

    def __init__(self) -> None:
        # Its lock is reentrant: what is collected as garbage under it may log, and so put an item.
        self._changed = threading.Condition()
        self._queues: dict[Sink[Any], _Queue] = {}
        self._flushes: list[threading.Event] = []
        threading.Thread(target=self._run, name="outbox", daemon=True).start()

    def put(self, sink: Sink[Item], item: Item) -> None:
        with self._changed:
            queue = self._queues.get(sink)
            if queue is None:
                queue = self._queues[sink] = _Queue(sink)
            queue.waiting.append(item)
            queue.num_bytes += sink.size(item)
            while len(queue.waiting) > sink.max_waiting or queue.num_bytes > MAX_WAITING_BYTES:
                queue.num_bytes -= sink.size(queue.waiting.popleft())
                queue.num_dropped += 1
            if queue.due_at == float("inf"):
                queue.due_at = time.monotonic() + sink.gather_seconds
                self._changed.notify()

    def flush(self, timeout_seconds: float) -> bool:
        flushed = threading.Event()
        with self._changed:
            self._flushes.append(flushed)
            self._changed.notify()
        return flushed.wait(timeout_seconds)

    def _run(self) -> None:
        while True:
            queues, flushes = self._wait()
            are_out = [self._send(queue) for queue in queues]
            # Log lines become events, so a flush goes on until no queue has anything to send.
            while flushes and any(are_out):
                are_out = [self._send(queue) for queue in list(self._queues.values())]
            for flushed in flushes:
                flushed.set()

    def _wait(self) -> tuple[list[_Queue], list[threading.Event]]:
        """Wait for queues that are due, the longest first; all are when somebody flushes."""
        with self._changed:
            while not self._flushes:
                filled = [q for q in self._queues.values() if q.due_at < float("inf")]
                filled.sort(key=lambda queue: queue.due_at)
                now = time.monotonic()
                if filled and filled[0].due_at <= now:
                    return [queue for queue in filled if queue.due_at <= now], []
                self._changed.wait(filled[0].due_at - now if filled else None)
            flushes, self._flushes = self._flushes, []
            return list(self._queues.values()), flushes

    def _send(self, queue: _Queue) -> bool:
        """Send one batch; False when there was none, or it failed."""
        sink, error = queue.sink, None
        with self._changed:
            if not queue.batch and queue.waiting:
                size = min(sink.max_batch, len(queue.waiting))
                items = [queue.waiting.popleft() for _ in range(size)]
                queue.num_bytes -= sum(map(sink.size, items))
                queue.batch = sink.merge(items)
                queue.num_batches += 1
            if not queue.batch:
                return False
        try:
            sink.send(Batch(queue.batch, queue.num_batches))
        except (redis.RedisError, OSError) as exc:
            error = exc
        except Exception:
            # The thread must live on.
            logger.exception("%s: a batch of %d was lost", sink.name, len(queue.batch))
        with self._changed:
            if error is None:
                queue.batch = []
            else:
                queue.batch = self._kept(queue, queue.batch)
                queue.waiting = deque(self._kept(queue, queue.waiting))
                queue.num_bytes = sum(map(sink.size, queue.waiting))
            if queue.batch:
                queue.due_at = time.monotonic() + _RETRY_SECONDS
            elif queue.waiting:
                is_full = len(queue.waiting) >= sink.max_batch
                queue.due_at = time.monotonic() + (0 if is_full else sink.gather_seconds)
            else:
                queue.due_at = float("inf")
        self._warn(queue, error)
        return error is None

    def _kept(self, queue: _Queue, items: Iterable[Any]) -> list[Any]:
        """Those of the items that are tried again."""
        unsent = list(items)
        kept = [item for item in unsent if queue.sink.is_kept(item)]
        queue.num_dropped += len(unsent) - len(kept)
        return queue.sink.merge(kept)

    def _warn(self, queue: _Queue, error: Exception | None) -> None:
        """Say now and then that items are not sent, and how many were dropped since it was said."""
        now = time.monotonic()
        if now - queue.warned_at < _WARN_AGAIN_SECONDS or not (error or queue.num_dropped):
            return
        queue.warned_at, num_dropped, queue.num_dropped = now, queue.num_dropped, 0
        num_kept = len(queue.batch) + len(queue.waiting)
        reason = error or "there are more than can be sent"
        text = "%s are late, %d kept back and %d dropped: %s"
        logger.warning(text, queue.sink.name, num_kept, num_dropped, reason)
