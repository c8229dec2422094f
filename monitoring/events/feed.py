"""What all processes tell, brought to the sockets of this one.

One channel of the Channels group and one reader of the log serve all sockets. The group is fast and
may lose messages; the log is complete: it is read where a number is missing, and every second.
"""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import redis
from channels.db import database_sync_to_async
from channels.layers import get_channel_layer
from django.conf import settings
from django.db import Error as DatabaseError

from monitoring.events import events, log
from monitoring.events.events import EventType
from monitoring.events.log import Excerpt, LoggedEvent
from monitoring.events.publisher import GROUP
from monitoring.events.reader import Reader
from monitoring.events.ring import RESYNC, Item, Ring, event_item, items_after, reading_item
from monitoring.redis.client import RedisClient, async_client

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_RETRY_SECONDS = 1.0
_STATS_SECONDS = 2.0
_CLEAN_UP_SECONDS = 1.0
_ASK_AGAIN_SECONDS = 0.1
_NUM_READ = 500
# Sockets that read the log at once; a thousand come back together when a web process restarts.
_MAX_LOG_READERS = 8
# So many of the latest events are in memory from the start, for those that come back.
_NUM_READ_AHEAD = 1000
# Reads GPU_STATS, or QUEUE_STATS of an owner.
ReadStats = Callable[[EventType, str | None], Mapping[str, Any]]

_REDIS_ERRORS = (redis.RedisError, OSError)  # a time-out is an OSError


class Feed:
    """Lives on one event loop, and runs while it has readers."""

    def __init__(self, read_stats: ReadStats) -> None:
        self._read_stats = read_stats
        self._readers: set[Reader] = set()
        self._by_type: dict[str, set[Reader]] = defaultdict(set)
        self._running: set[asyncio.Task[None]] = set()
        self._stopping: set[asyncio.Task[None]] = set()
        self._redis: RedisClient = None
        self._reset()

    def _reset(self) -> None:
        self._ring: Ring | None = None
        # What each reader has subscribed to before, and since when.
        self._wishes: dict[Reader, dict[str, int | None]] = defaultdict(dict)
        self._has_begun = asyncio.Event()
        self._is_live = asyncio.Event()
        self._has_subscription = asyncio.Event()
        self._log_readers = asyncio.Semaphore(_MAX_LOG_READERS)

    # --- For the sockets ---

    @property
    def ring(self) -> Ring:
        """The latest items; only there once the feed has begun."""
        assert self._ring is not None, "the feed has not begun"
        return self._ring

    @property
    def last_seq(self) -> int | None:
        """The number of the last event; None before Redis has answered."""
        return self._ring.last_seq if self._ring else None

    async def wait_until_live(self, timeout_seconds: float) -> None:
        """Until it brings all that is told from then on, or the time is over."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._is_live.wait(), timeout_seconds)

    def join(self, owner: str, wake: Callable[[], None]) -> Reader:
        """A new reader; `wake` is called when there is something for it to take."""
        if not self._running:
            self._start()
        reader = Reader(self, owner, wake)
        self._readers.add(reader)
        return reader

    def leave(self, reader: Reader) -> None:
        """The last one stops the feed."""
        self._readers.discard(reader)
        self._wishes.pop(reader, None)
        for readers in self._by_type.values():
            readers.discard(reader)
        if not self._readers and self._running:
            self._stop()

    def subscribe(self, reader: Reader, types: Iterable[str], since: int | None) -> None:
        """As `Reader.subscribe`, as soon as Redis has answered."""
        if self._ring is None:
            self._wishes[reader].update(dict.fromkeys(types, since))
            return
        reader.subscribe(types, since)
        for each in types:
            self._by_type[each].add(reader)
        self._has_subscription.set()

    def unsubscribe(self, reader: Reader, types: Iterable[str]) -> None:
        """As `Reader.unsubscribe`."""
        reader.unsubscribe(types)
        for each in types:
            self._by_type[each].discard(reader)
            self._wishes.get(reader, {}).pop(each, None)

    async def stats(self, event_type: EventType, owner: str | None) -> LoggedEvent:
        """GPU_STATS for everyone, or QUEUE_STATS for one owner, as a transient event."""
        read = database_sync_to_async(self._read_stats, thread_sensitive=False)
        return LoggedEvent(event_type, events.now(), dict(await read(event_type, owner)), owner)

    async def read_log(self, after: int) -> Excerpt:
        """The first events after a number; waits until Redis answers, with all that is known."""
        while True:
            with contextlib.suppress(*_REDIS_ERRORS):
                async with self._log_readers:
                    excerpt = await self._read(after)
                if excerpt.last_seq >= self.ring.last_seq:
                    return excerpt
            await asyncio.sleep(_RETRY_SECONDS)

    # --- Following ---

    def _start(self) -> None:
        self._reset()
        self._redis = async_client()
        self._running = {
            asyncio.create_task(_repeat(self._catch_up, _LOOK_SECONDS)),
            asyncio.create_task(_repeat(self._follow_group, _RETRY_SECONDS)),
            asyncio.create_task(_repeat(self._push_stats, _STATS_SECONDS)),
        }

    def _stop(self) -> None:
        stopping = asyncio.create_task(_stop(self._running, self._redis))
        self._stopping.add(stopping)
        stopping.add_done_callback(self._stopping.discard)
        self._running = set()

    async def _catch_up(self) -> None:
        """Bring what the log has and the ring has not. Raises _REDIS_ERRORS."""
        if self._ring is None:
            await self._begin()
        has_more = True
        while has_more:
            excerpt = await self._read(self.ring.last_seq)
            has_more = excerpt.has_more
            for item in items_after(self.ring.last_seq, excerpt):
                self._push(item)
            if excerpt.last_seq < self.ring.last_seq:
                # Redis came back without what it had: have the numbers go on after ours.
                await asyncio.to_thread(log.last_seq)

    async def _begin(self) -> None:
        last_seq = await asyncio.to_thread(log.last_seq)
        excerpt = await self._read(last_seq - _NUM_READ_AHEAD, _NUM_READ_AHEAD)
        if self._ring is not None:  # an earlier run, as it was stopped, came to this as well
            return
        events = excerpt.events
        ring = Ring(events[0].seq - 1 if events and events[0].seq else last_seq)
        for item in items_after(ring.last_seq, excerpt):
            ring.add(item)
        self._ring = ring
        for reader, wishes in self._wishes.items():
            for each, since in wishes.items():
                self.subscribe(reader, {each}, since)
        self._wishes.clear()
        self._has_begun.set()

    async def _read(self, after: int, limit: int = _NUM_READ) -> Excerpt:
        async with asyncio.timeout(settings.REDIS_TIMEOUT_SECONDS):
            return await log.read_async(self._redis, after, limit)

    async def _follow_group(self) -> None:
        """Take what is sent to the group, until the connection fails."""
        await self._has_begun.wait()
        layer: Any = get_channel_layer()
        channel = await layer.new_channel()
        try:
            await layer.group_add(GROUP, channel)
            await self._catch_up()  # what was told before we listened
            self._is_live.set()
            while True:
                message = await layer.receive(channel)
                await self._take([LoggedEvent(**fields) for fields in message["events"]])
                await asyncio.sleep(0)  # the sockets' turn: the next message may be here already
        finally:
            with contextlib.suppress(*_REDIS_ERRORS):
                async with asyncio.timeout(_CLEAN_UP_SECONDS):
                    await layer.group_discard(GROUP, channel)

    async def _take(self, events: list[LoggedEvent]) -> None:
        """Events and readings of one process, in its order."""
        for event in _news(events, self.ring.last_seq):
            if event.seq is None:
                self._push(reading_item(event, self.ring.last_seq))
                continue
            if event.seq > self.ring.last_seq + 1:
                await self._catch_up()
            if event.seq == self.ring.last_seq + 1:
                self._push(event_item(event))

    def _push(self, item: Item) -> None:
        position = self.ring.add(item)
        for reader in self._readers if item.type == RESYNC else self._by_type[item.type]:
            reader.offer(position, item)

    async def _push_stats(self) -> None:
        """Take the readings that somebody has subscribed to."""
        self._has_subscription.clear()
        while not (wanted := self._wanted_stats()):
            await self._has_subscription.wait()
            self._has_subscription.clear()
        for event_type, owner in wanted:
            reading = await self.stats(event_type, owner)
            self._push(reading_item(reading, self.ring.last_seq))

    def _wanted_stats(self) -> list[tuple[EventType, str | None]]:
        owners = {reader.owner for reader in self._by_type[EventType.QUEUE_STATS]}
        wanted: list[tuple[EventType, str | None]] = [(EventType.QUEUE_STATS, o) for o in owners]
        if self._by_type[EventType.GPU_STATS]:
            wanted.append((EventType.GPU_STATS, None))
        return wanted


async def _repeat(step: Callable[[], Awaitable[None]], pause_seconds: float) -> None:
    """Repeat it for ever; the first of several failures in a row is logged."""
    is_failing = False
    while True:
        try:
            await step()
            is_failing = False
        except Exception as exc:
            if not is_failing:
                is_known = isinstance(exc, (*_REDIS_ERRORS, DatabaseError))
                logger.warning("Sockets hear nothing new: %s", exc, exc_info=not is_known)
            is_failing = True
        await asyncio.sleep(pause_seconds)


async def _stop(tasks: set[asyncio.Task[None]], redis_client: RedisClient) -> None:
    """Redis' client can swallow a cancel that comes while it connects: ask until all obey."""
    while any(not task.done() for task in tasks):
        for task in tasks:
            task.cancel()
        # The loop itself may be about to end, and cancel this too.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait(tasks, timeout=_ASK_AGAIN_SECONDS)
    await redis_client.aclose()


def _news(events: list[LoggedEvent], last_seq: int) -> list[LoggedEvent]:
    """Those that are not known by now; readings told before a known event are superseded."""
    is_known = [event.seq is not None and event.seq <= last_seq for event in events]
    num_old = max((index + 1 for index, known in enumerate(is_known) if known), default=0)
    return events[num_old:]
