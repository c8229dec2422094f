"""What all processes publish, brought to the sockets of this one.

One channel of the Channels group and one reader of the log serve all sockets. The group is fast and
may lose messages; the log is complete: it is read where a number is missing, and every second.
What comes is handed to all sockets in batches, the larger the longer that takes.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import redis
from channels.db import database_sync_to_async
from channels.layers import get_channel_layer
from django.conf import settings
from django.db import Error as DatabaseError

from monitoring.events import events, log
from monitoring.events.cursor import RESYNC, EventCursor, Write
from monitoring.events.events import TRANSIENT, EventType
from monitoring.events.frames import frame
from monitoring.events.log import Excerpt, LoggedEvent
from monitoring.events.messages import resync_text
from monitoring.events.publisher import GROUP
from monitoring.events.recent import EncodedEvent, RecentEvents, batches, encode
from monitoring.redis.client import RedisClient, async_client, cancel

logger = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_RETRY_SECONDS = 1.0
_STATS_SECONDS = 2.0
_CLEAN_UP_SECONDS = 1.0
# Events gather for the sockets no longer than this.
_MAX_GATHER_SECONDS = 0.03
# Messages of the group that wait; the events of the oldest are read from the log.
_MAX_RECEIVED = 100
_PAGE = 64
_LOG_PAGE = 500
# Sockets that read the log at once; a thousand come back together when a web process restarts.
_MAX_LOG_READERS = 8
# So many of the latest events are in memory from the start, for those that come back.
_NUM_READ_AHEAD = 1000

_REDIS_ERRORS = (redis.RedisError, OSError)  # a time-out is an OSError

# Reads GPU_STATS, or QUEUE_STATS of an owner; None: of all.
ReadStats = Callable[[EventType, str | None], Mapping[str, Any]]

# The next events of a cursor, and the number up to which they tell all.
Page = tuple[list[EncodedEvent], int]


class Feed:
    """Lives on one event loop, and runs while it has cursors."""

    def __init__(self, read_stats: ReadStats) -> None:
        self._read_stats = read_stats
        self._cursors: set[EventCursor] = set()
        self._running: set[asyncio.Task[None]] = set()
        self._stopping: set[asyncio.Task[None]] = set()
        self._redis: RedisClient = None
        self._reset()

    def _reset(self) -> None:
        self._recent: RecentEvents | None = None
        self._has_begun = asyncio.Event()
        self._is_live = asyncio.Event()
        self._received: deque[list[LoggedEvent]] = deque(maxlen=_MAX_RECEIVED)
        self._has_received = asyncio.Event()
        self.has_subscription = asyncio.Event()
        self._log_readers = asyncio.Semaphore(_MAX_LOG_READERS)

    @property
    def recent(self) -> RecentEvents:
        """The latest events; only there once Redis has answered."""
        assert self._recent is not None, "the feed has not begun"
        return self._recent

    @property
    def last_seq(self) -> int | None:
        """The number of the last event; None before Redis has answered."""
        return self._recent.last_seq if self._recent else None

    async def wait_until_live(self, timeout_seconds: float) -> None:
        """Until it brings all that is published from then on, or the time is over."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._is_live.wait(), timeout_seconds)

    def join(
        self, owner: str | None, wake: Callable[[], None], write: Write = lambda frames: False
    ) -> EventCursor:
        """A new cursor for an owner's events, None for those of all owners.

        `wake` is called when there is something for it to take, that `write` does not.
        """
        if not self._running:
            self._reset()
            self._redis = async_client()
            self._running = {
                asyncio.create_task(_repeat(self._poll, _POLL_SECONDS)),
                asyncio.create_task(_repeat(self._follow_group, _RETRY_SECONDS)),
                asyncio.create_task(_repeat(self._take_received, 0)),
                asyncio.create_task(_repeat(self._push_stats, _STATS_SECONDS)),
            }
        cursor = EventCursor(self, owner, wake, write)
        self._cursors.add(cursor)
        return cursor

    def leave(self, cursor: EventCursor) -> None:
        """The last one stops the feed."""
        self._cursors.discard(cursor)
        if not self._cursors and self._running:
            stopping = asyncio.create_task(_stop(self._running, self._redis))
            self._stopping.add(stopping)
            stopping.add_done_callback(self._stopping.discard)
            self._running = set()

    async def stats(self, event_type: EventType, owner: str | None) -> LoggedEvent:
        """GPU_STATS or QUEUE_STATS for one owner, None for all, as a transient event."""
        read = database_sync_to_async(self._read_stats, thread_sensitive=False)
        return LoggedEvent(event_type, events.now(), dict(await read(event_type, owner)), owner)

    async def page_after(self, seq: int) -> Page:
        """The first events after a number, from memory, or from the log once Redis answers."""
        recent = self.recent.after(seq, _PAGE)
        if recent is not None:
            return recent, seq + len(recent)
        while True:
            with contextlib.suppress(*_REDIS_ERRORS):
                async with self._log_readers:
                    excerpt = await self._read(seq)
                if excerpt.last_seq >= self.recent.last_seq:
                    return _page(seq, excerpt)
            await asyncio.sleep(_RETRY_SECONDS)

    async def refresh(self) -> int:
        """Bring what the log has by now, once Redis answers; the number of the last event."""
        while True:
            with contextlib.suppress(*_REDIS_ERRORS):
                async with self._log_readers:
                    await self._catch_up()
                return self.recent.last_seq
            await asyncio.sleep(_RETRY_SECONDS)

    async def _poll(self) -> None:
        # Reading what a message is about to bring would have its transient events dropped.
        if not self._received:
            await self._catch_up()

    async def _catch_up(self) -> None:
        """Bring what the log has and the memory has not. Raises _REDIS_ERRORS."""
        if self._recent is None:
            await self._begin()
        has_more = True
        while has_more:
            excerpt = await self._read(self.recent.last_seq)
            has_more = excerpt.has_more
            last_seq = self.recent.last_seq
            self._push([each for each in map(encode, excerpt.events) if each.seq > last_seq])
            if excerpt.has_gap:
                # Each cursor finds in the log from where on its events are lost.
                if excerpt.end_seq > self.recent.last_seq:
                    self._recent = RecentEvents(excerpt.end_seq)
                for cursor in self._cursors:
                    cursor.wake()
            if excerpt.last_seq < self.recent.last_seq:
                # Redis came back without what it had: have the numbers go on after ours.
                await asyncio.to_thread(log.last_seq)

    async def _begin(self) -> None:
        last_seq = await asyncio.to_thread(log.last_seq)
        excerpt = await self._read(last_seq - _NUM_READ_AHEAD, _NUM_READ_AHEAD)
        if self._recent is not None:  # an earlier run, as it was stopped, came to this as well
            return
        self._recent = RecentEvents(last_seq)
        for event in map(encode, excerpt.events):
            self._recent.add(event)
        for cursor in self._cursors:
            cursor.begin()
        self._has_begun.set()

    async def _read(self, after: int, limit: int = _LOG_PAGE) -> Excerpt:
        async with asyncio.timeout(settings.REDIS_TIMEOUT_SECONDS):
            return await log.read_async(self._redis, after, limit)

    async def _follow_group(self) -> None:
        """Take what is sent to the group, until the connection fails."""
        await self._has_begun.wait()
        layer: Any = get_channel_layer()
        channel = await layer.new_channel()
        try:
            await layer.group_add(GROUP, channel)
            await self._catch_up()  # what was published before we listened
            self._is_live.set()
            while True:
                message = await layer.receive(channel)
                self._received.append([LoggedEvent(**fields) for fields in message["events"]])
                self._has_received.set()
        finally:
            with contextlib.suppress(*_REDIS_ERRORS):
                async with asyncio.timeout(_CLEAN_UP_SECONDS):
                    await layer.group_discard(GROUP, channel)

    async def _take_received(self) -> None:
        """Take what the group has brought, and then have more gather for as long as that took."""
        await self._has_received.wait()
        clock = asyncio.get_running_loop().time
        started = clock()
        messages = list(self._received)
        self._received.clear()
        self._has_received.clear()
        await self._take(messages)
        await asyncio.sleep(0)  # the loop has written to the sockets by then
        await asyncio.sleep(min(clock() - started, _MAX_GATHER_SECONDS))

    async def _take(self, messages: list[list[LoggedEvent]]) -> None:
        """Messages of the group, each with events of one process in its order."""
        due: list[EncodedEvent] = []
        last_seq = self.recent.last_seq
        for published in messages:
            is_known = [event.seq is not None and event.seq <= last_seq for event in published]
            # Transient events that came before one that is known by now are superseded.
            num_old = max((index + 1 for index, known in enumerate(is_known) if known), default=0)
            for event in published[num_old:]:
                if event.seq is not None and event.seq > last_seq + 1:
                    self._push(due)
                    due = []
                    await self._catch_up()
                    last_seq = self.recent.last_seq
                if event.seq is None:
                    due.append(encode(event, last_seq))
                elif event.seq == last_seq + 1:
                    due.append(encode(event))
                    last_seq = event.seq
        self._push(due)

    def _push(self, new: list[EncodedEvent]) -> None:
        for event in new:
            if event.type not in TRANSIENT:
                self.recent.add(event)
        for batch in batches(new):
            for cursor in self._cursors:
                cursor.hand(batch)

    async def _push_stats(self) -> None:
        """Push the statistics that somebody has subscribed to."""
        await self._has_begun.wait()
        while not (wanted := {each for cursor in self._cursors for each in cursor.wanted_stats()}):
            self.has_subscription.clear()
            await self.has_subscription.wait()
        for event_type, owner in wanted:
            stats = await self.stats(event_type, owner)
            for batch in batches([encode(stats, self.recent.last_seq)]):
                for cursor in self._cursors:
                    if cursor.owner == owner:
                        cursor.hand(batch)


def _page(seq: int, excerpt: Excerpt) -> Page:
    """What comes after a number: events in order, a resync in the place of those that are lost."""
    page: list[EncodedEvent] = []
    for event in map(encode, excerpt.events):
        if seq and event.seq > seq + 1:
            page.append(_resync(event.seq - 1))
        page.append(event)
        seq = event.seq
    if seq and seq < excerpt.end_seq:
        page.append(_resync(excerpt.end_seq))
    return page, excerpt.end_seq


def _resync(since: int) -> EncodedEvent:
    return EncodedEvent(RESYNC, since, frame(resync_text(since)))


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
                logger.warning("Sockets get no new events: %s", exc, exc_info=not is_known)
            is_failing = True
        await asyncio.sleep(pause_seconds)


async def _stop(tasks: set[asyncio.Task[None]], redis_client: RedisClient) -> None:
    await cancel(*tasks)
    await redis_client.aclose()
