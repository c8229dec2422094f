"""Following the token streams of many tasks with one connection to Redis.

A web process reads all streams that its clients follow with a single blocking XREAD, and hands the
new entries out. A client that falls behind keeps no backlog here: it reads back from the stream.
"""

import asyncio
import contextlib
import logging
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence

import redis
from django.conf import settings
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from monitoring.redis.client import RedisClient, async_client
from monitoring.streams.delta_stream import Delta, parse, stream_key

logger = logging.getLogger(__name__)

# Entries of one stream that are read at a time, and those that a client may leave waiting.
PAGE = 500
MAX_WAITING = 1000

_BLOCK_SECONDS = 5.0
_ANSWER_SECONDS = 5.0
_RECONNECT_SECONDS = 1.0
_CANCEL_AGAIN_SECONDS = 0.1
_WAKE_KEY_SECONDS = 3600
# After each read, so that what comes in the meantime shares the next one: each names all streams.
_PAUSE_SECONDS = 0.002
_PAUSE_PER_STREAM_SECONDS = 0.000_02

_REDIS_ERRORS = (redis.RedisError, OSError)  # a time-out is an OSError


class StreamReader:
    """All followers of a process; must live on one event loop. Without any it does nothing."""

    def __init__(self) -> None:
        self._followers: dict[str, set[Follower]] = defaultdict(set)
        self._cursors: dict[str, str] = {}
        self._redis: RedisClient = None
        self._reading: asyncio.Task[None] | None = None
        self._waking: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        # What is written here ends an XREAD that does not know a new follower's stream.
        self._wake_key = f"streams:wake:{uuid.uuid4().hex}"
        self._wake_cursor = "0-0"
        self._is_wake_due = False
        self._is_down = False

    @property
    def num_followers(self) -> int:
        return sum(map(len, self._followers.values()))

    @contextlib.contextmanager
    def following(self, task_id: str, after: str) -> "Iterator[Follower]":
        """Entries of a task's stream after an id, and those that are still to come."""
        key = stream_key(task_id)
        is_known = key in self._cursors
        follower = Follower(self, key, after, is_behind=is_known)
        self._followers[key].add(follower)
        if not is_known:
            self._read_from(key, after)
        try:
            yield follower
        finally:
            self._followers[key].discard(follower)
            if not self._followers[key]:
                del self._followers[key], self._cursors[key]

    async def page(self, key: str, after: str) -> list[Delta]:
        """Up to PAGE entries that the stream holds after an id. Raises _REDIS_ERRORS."""
        async with asyncio.timeout(_ANSWER_SECONDS), self._turn:
            found = await self._client().xrange(key, min=f"({after}", count=PAGE)
        return [parse(*each) for each in found]

    async def stored(self, task_id: str, after: str) -> list[Delta]:
        """A page of a stream that nobody writes to any more; nothing without Redis."""
        try:
            return await self.page(stream_key(task_id), after)
        except _REDIS_ERRORS as exc:
            logger.warning("Task %s: its stream cannot be read: %s", task_id, exc)
            return []

    def read_no_later_than(self, key: str, last_id: str) -> None:
        """A stream was read up to its last entry: a later cursor comes from an id never given."""
        if key in self._cursors and _order(last_id) < _order(self._cursors[key]):
            self._read_from(key, last_id)

    async def close(self) -> None:
        """Stop reading; nobody may follow any more."""
        for task in (self._reading, self._waking):
            while task and not task.done():
                # The client library may swallow a cancel that comes while it connects.
                task.cancel()
                await asyncio.wait({task}, timeout=_CANCEL_AGAIN_SECONDS)
        if self._redis is not None:
            await self._redis.aclose()

    def _client(self) -> RedisClient:
        if self._redis is None:
            self._redis = async_client()
            # One for a connection that Redis has closed meanwhile; the default goes on for minutes.
            self._redis.set_retry(Retry(NoBackoff(), 1))
        return self._redis

    def _read_from(self, key: str, after: str) -> None:
        self._cursors[key] = after
        self._is_wake_due = True
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read_all())
        elif self._waking is None or self._waking.done():
            self._waking = asyncio.create_task(self._wake())

    async def _wake(self) -> None:
        """If it fails, the reader's own command fails too, or ends after _BLOCK_SECONDS."""
        with contextlib.suppress(*_REDIS_ERRORS):
            while self._is_wake_due:
                self._is_wake_due = False
                async with asyncio.timeout(_ANSWER_SECONDS), self._turn:
                    pipe = self._client().pipeline(transaction=False)
                    pipe.xadd(self._wake_key, {"": ""}, maxlen=1, approximate=False)
                    await pipe.expire(self._wake_key, _WAKE_KEY_SECONDS).execute()

    async def _read_all(self) -> None:
        while self._cursors:
            try:
                await self._read_once(dict(self._cursors))
                self._is_down = False
            except _REDIS_ERRORS as exc:
                if not self._is_down:
                    logger.warning("Streams wait for the end of their tasks, no Redis: %s", exc)
                self._is_down = True
                await asyncio.sleep(_RECONNECT_SECONDS)

    async def _read_once(self, cursors: dict[str, str]) -> None:
        wanted = {**cursors, self._wake_key: self._wake_cursor}
        async with asyncio.timeout(_BLOCK_SECONDS + settings.REDIS_TIMEOUT_SECONDS):
            found = await self._client().xread(wanted, PAGE, int(_BLOCK_SECONDS * 1000))
        for key, entries in found:
            last_id = entries[-1][0]
            if key == self._wake_key:
                self._wake_cursor = last_id
            # Else its followers are others by now, who began elsewhere: the next read is theirs.
            elif self._cursors.get(key) == cursors[key]:
                self._cursors[key] = last_id
                self._hand_out(key, [parse(*each) for each in entries])
        await asyncio.sleep(max(_PAUSE_SECONDS, len(cursors) * _PAUSE_PER_STREAM_SECONDS))

    def _hand_out(self, key: str, entries: Sequence[Delta]) -> None:
        for follower in self._followers[key]:
            follower.hand(entries)


class Follower:
    """What one client is still to be given: entries in order, now and then one of them twice."""

    def __init__(self, reader: StreamReader, key: str, after: str, *, is_behind: bool) -> None:
        self._reader = reader
        self._key = key
        self._last_id = after
        self._is_behind = is_behind
        self._waiting: list[Delta] = []
        self._news = asyncio.Event()

    def hand(self, entries: Sequence[Delta]) -> None:
        """Called by the reader; what a slow client leaves lying is read back later."""
        if len(self._waiting) + len(entries) > MAX_WAITING:
            self._is_behind = True
        if self._is_behind:
            self._waiting.clear()
        else:
            self._waiting.extend(entries)
        self._news.set()

    async def read(self, timeout_seconds: float) -> list[Delta]:
        """The next entries; none when there are none within the time."""
        if not self._is_behind and not self._waiting:
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_seconds):
                    await self._news.wait()
        if self._is_behind:
            return await self._read_back()
        entries, self._waiting = self._waiting, []
        return self._given(entries)

    async def _read_back(self) -> list[Delta]:
        # First: what is handed out while the page is read comes after it, or twice.
        self._is_behind = False
        try:
            entries = await self._reader.page(self._key, self._last_id)
        except _REDIS_ERRORS:
            self._is_behind = True
            await asyncio.sleep(_RECONNECT_SECONDS)
            return []
        self._given(entries)
        if len(entries) == PAGE:
            self._is_behind = True
        else:
            self._reader.read_no_later_than(self._key, self._last_id)
        return entries

    def _given(self, entries: list[Delta]) -> list[Delta]:
        if entries:
            self._last_id = entries[-1].id
        return entries


def _order(entry_id: str) -> tuple[int, ...]:
    """What Redis sorts an id by."""
    return tuple(map(int, entry_id.split("-")))
