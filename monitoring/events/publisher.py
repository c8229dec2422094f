"""A thread a process that logs events and sends them out, so that telling costs the teller nothing.

What is told within a few milliseconds goes out in one batch: so the teller goes on undisturbed, and
the more there is to tell, the fewer round trips an event takes. What is to be counted is added up
here, and goes out once a second.
"""

import asyncio
import atexit
import logging
import os
import queue
import threading
import time
import uuid
from collections import deque
from dataclasses import dataclass

import redis
from channels.layers import get_channel_layer
from django.conf import settings

from monitoring.events import log
from monitoring.events.log import LoggedEvent
from monitoring.metrics import counters
from monitoring.metrics.counters import Increments
from monitoring.redis.per_process import PerProcess

logger = logging.getLogger(__name__)

# The Channels group that the web processes listen to, and the type of its messages.
GROUP = "events"
MESSAGE_TYPE = "events.published"

_MAX_BATCH = 200
_MAX_KEPT_BACK = 10_000
_RETRY_SECONDS = 1.0
_FLUSH_SECONDS = 2.0
_COUNT_SECONDS = 1.0
_WARN_AGAIN_SECONDS = 10.0

# How long what is told waits for more to go out with it.
_gather_seconds = 0.02


@dataclass(frozen=True, slots=True)
class _Letter:
    event: LoggedEvent
    is_logged: bool


_Item = _Letter | Increments | threading.Event


def gather_for(seconds: float) -> None:
    """Have what this process tells wait that long for more to go out with it."""
    global _gather_seconds
    _gather_seconds = seconds


def put(event: LoggedEvent, *, is_logged: bool) -> None:
    """Have an event sent out soon, after those that this process has put before.

    One that `is_logged` is kept back while Redis is away; another is dropped then.
    """
    _publisher().put(_Letter(event, is_logged))


def count(increments: Increments) -> None:
    """Have the counters increased within about a second; later while Redis is away."""
    if increments:
        _publisher().put(increments)


def flush(timeout_seconds: float = _FLUSH_SECONDS) -> None:
    """Wait until everything that was put so far is out, or the time is over."""
    _publisher().flush(timeout_seconds)


@PerProcess
def _publisher() -> "_Publisher":
    publisher, pid = _Publisher(), os.getpid()
    # A child that inherits this does not wait for a thread that it has not.
    atexit.register(lambda: publisher.flush(_FLUSH_SECONDS) if os.getpid() == pid else None)
    return publisher


class _Publisher:
    def __init__(self) -> None:
        self._inbox: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._kept_back: deque[LoggedEvent] = deque(maxlen=_MAX_KEPT_BACK)
        self._unconfirmed: list[LoggedEvent] = []
        self._name = uuid.uuid4().hex
        self._num_batches = 0
        self._uncounted: Increments = {}
        self._counted_at = float("-inf")
        self._warned_at = float("-inf")
        threading.Thread(target=self._run, name="publisher", daemon=True).start()

    def put(self, item: "_Letter | Increments") -> None:
        self._inbox.put(item)

    def flush(self, timeout_seconds: float) -> None:
        flushed = threading.Event()
        self._inbox.put(flushed)
        flushed.wait(timeout_seconds)

    def _run(self) -> None:
        loop = asyncio.new_event_loop()  # one for all its life: the layer connects once a loop
        while True:
            items = self._next_items()
            try:
                self._send(loop, [item for item in items if isinstance(item, _Letter)])
                self._count(items)
            except Exception:
                # The thread must live on.
                logger.exception("%d events were not sent", len(items))
            for item in items:
                if isinstance(item, threading.Event):
                    item.set()

    def _next_items(self) -> list[_Item]:
        """Waits for one, and takes what else comes; none when it is time to try again."""
        is_behind = self._unconfirmed or self._kept_back or self._uncounted
        try:
            items = [self._inbox.get(timeout=_RETRY_SECONDS if is_behind else None)]
        except queue.Empty:
            return []
        if not isinstance(items[0], threading.Event):
            time.sleep(_gather_seconds)
        while len(items) < _MAX_BATCH and not self._inbox.empty():
            items.append(self._inbox.get())
        return items

    def _send(self, loop: asyncio.AbstractEventLoop, letters: list[_Letter]) -> None:
        try:
            numbered = self._log([letter.event for letter in letters if letter.is_logged])
            events = _in_order(letters, numbered)
            if events:
                loop.run_until_complete(_send_to_group(events))
        except (redis.RedisError, OSError) as exc:
            self._warn(exc)

    def _log(self, events: list[LoggedEvent]) -> list[LoggedEvent]:
        """Number what was kept back, and then these. Raises redis.RedisError, and keeps the rest.

        A batch that failed goes out again as it was: Redis may have it already.
        """
        self._kept_back.extend(events)
        numbered: list[LoggedEvent] = []
        while self._unconfirmed or self._kept_back:
            if not self._unconfirmed:
                size = min(_MAX_BATCH, len(self._kept_back))
                self._unconfirmed = [self._kept_back.popleft() for _ in range(size)]
                self._num_batches += 1
            numbered += log.append(self._unconfirmed, self._name, self._num_batches)
            self._unconfirmed = []
        return numbered

    def _count(self, items: list[_Item]) -> None:
        """Increase the counters once a second, or at once when somebody waits for it."""
        for item in items:
            if isinstance(item, dict):
                counters.merge(self._uncounted, item)
        is_flushing = any(isinstance(item, threading.Event) for item in items)
        now = time.monotonic()
        if self._uncounted and (is_flushing or now - self._counted_at >= _COUNT_SECONDS):
            self._counted_at = now
            try:
                counters.add(self._uncounted)
                self._uncounted = {}
            except redis.RedisError as exc:
                self._warn(exc)

    def _warn(self, error: Exception) -> None:
        if time.monotonic() - self._warned_at > _WARN_AGAIN_SECONDS:
            self._warned_at = time.monotonic()
            logger.warning("Events are kept back, Redis is unreachable: %s", error)


def _in_order(letters: list[_Letter], numbered: list[LoggedEvent]) -> list[LoggedEvent]:
    """What was kept back, then these letters' events, those that are logged with their numbers."""
    num_late = len(numbered) - sum(letter.is_logged for letter in letters)
    fresh = iter(numbered[num_late:])
    return numbered[:num_late] + [
        next(fresh) if letter.is_logged else letter.event for letter in letters
    ]


async def _send_to_group(events: list[LoggedEvent]) -> None:
    layer = get_channel_layer()
    assert layer is not None, "CHANNEL_LAYERS has no default"
    message = {"type": MESSAGE_TYPE, "events": [event.fields() for event in events]}
    async with asyncio.timeout(settings.REDIS_TIMEOUT_SECONDS):
        await layer.group_send(GROUP, message)
