"""One reader of Redis for all that the clients of a web process wait for.

A single blocking XREAD brings the deltas of all tasks that are followed, and all ends. A client
that lags keeps no backlog here: it reads back from the stream.
"""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import redis
from django.conf import settings

from monitoring.redis.client import RedisClient, async_client, cancel
from monitoring.streams import ends
from monitoring.streams.delta_stream import Delta, parse, stream_key

logger = logging.getLogger(__name__)

# Deltas of one stream that are read at a time, and those that a client may leave waiting.
PAGE = 500
MAX_WAITING = 1000

_BLOCK_SECONDS = 5.0
_ANSWER_SECONDS = 5.0
_RECONNECT_SECONDS = 1.0
# After each read, so that what comes in the meantime shares the next one: each names all streams.
_PAUSE_SECONDS = 0.002
_PAUSE_PER_STREAM_SECONDS = 0.000_02

_REDIS_ERRORS = (redis.RedisError, OSError)  # a time-out is an OSError


class Follower:
    """Follows for a whole process; must live on one event loop. Without clients it does nothing."""

    def __init__(self) -> None:
        self._readers: dict[str, set[DeltaReader]] = defaultdict(set)
        self._cursors: dict[str, str] = {}
        # By what they wait for: what to call when its end is announced.
        self._wakes: dict[str, set[Callable[[], None]]] = defaultdict(set)
        self._ends_cursor = "0-0"
        self._redis: RedisClient = None
        self._reading: asyncio.Task[None] | None = None
        self._interrupting: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._is_interrupt_due = False
        self._is_down = False

    @property
    def num_readers(self) -> int:
        return sum(map(len, self._readers.values()))

    @contextlib.contextmanager
    def waiting_for(self, key: str, wake: Callable[[], None]) -> Iterator[None]:
        """`wake` is called when this end is announced from now on; perhaps for an earlier one."""
        self._wakes[key].add(wake)
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read_all())
        try:
            yield
        finally:
            self._wakes[key].discard(wake)
            if not self._wakes[key]:
                del self._wakes[key]

    @contextlib.contextmanager
    def following(self, task_id: str, after: str) -> "Iterator[DeltaReader]":
        """Deltas of a task's stream after an id, and those that are still to come."""
        key = stream_key(task_id)
        is_known = key in self._cursors
        reader = DeltaReader(self, key, after, is_behind=is_known)
        self._readers[key].add(reader)
        if not is_known:
            self._read_from(key, after)
        try:
            with self.waiting_for(task_id, reader.end):
                yield reader
        finally:
            self._readers[key].discard(reader)
            if not self._readers[key]:
                del self._readers[key], self._cursors[key]

    async def page(self, key: str, after: str) -> list[Delta]:
        """Up to PAGE deltas that the stream holds after an id. Raises _REDIS_ERRORS."""
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
        """Stop reading; nobody may wait any more."""
        await cancel(self._reading, self._interrupting)
        if self._redis is not None:
            await self._redis.aclose()

    def _client(self) -> RedisClient:
        if self._redis is None:
            self._redis = async_client()
        return self._redis

    def _read_from(self, key: str, after: str) -> None:
        self._cursors[key] = after
        self._is_interrupt_due = True
        is_reading = self._reading is not None and not self._reading.done()
        if is_reading and (self._interrupting is None or self._interrupting.done()):
            self._interrupting = asyncio.create_task(self._interrupt())

    async def _interrupt(self) -> None:
        """End an XREAD that does not know a new stream, by an announcement that nobody waits for.

        If it fails, the XREAD fails too, or ends after _BLOCK_SECONDS.
        """
        with contextlib.suppress(*_REDIS_ERRORS):
            while self._is_interrupt_due:
                self._is_interrupt_due = False
                async with asyncio.timeout(_ANSWER_SECONDS), self._turn:
                    pipe = self._client().pipeline(transaction=False)
                    ends.put_into(pipe, "")
                    await pipe.execute()

    async def _read_all(self) -> None:
        while self._wakes:
            try:
                await self._read_once(dict(self._cursors))
                self._is_down = False
            except _REDIS_ERRORS as exc:
                if not self._is_down:
                    logger.warning("Ends are seen some seconds late, no Redis: %s", exc)
                self._is_down = True
                self._ends_cursor = "0-0"  # it may come back empty, and with another clock
                await asyncio.sleep(_RECONNECT_SECONDS)

    async def _read_once(self, cursors: dict[str, str]) -> None:
        # The ends come last, and so after the deltas that came before them.
        wanted = {**cursors, ends.STREAM: self._ends_cursor}
        async with asyncio.timeout(_BLOCK_SECONDS + settings.REDIS_TIMEOUT_SECONDS):
            found = await self._client().xread(wanted, PAGE, int(_BLOCK_SECONDS * 1000))
        for key, entries in found:
            last_id = entries[-1][0]
            if key == ends.STREAM:
                self._ends_cursor = last_id
                for _, fields in entries:
                    for wake in self._wakes.get(fields["key"], ()):
                        wake()
            # Else its readers are others by now, who began elsewhere: the next read is theirs.
            elif self._cursors.get(key) == cursors[key]:
                self._cursors[key] = last_id
                deltas = [parse(*each) for each in entries]
                for reader in self._readers[key]:
                    reader.hand(deltas)
        if cursors:
            await asyncio.sleep(max(_PAUSE_SECONDS, len(cursors) * _PAUSE_PER_STREAM_SECONDS))


class DeltaReader:
    """The deltas that one client has not got yet, in order; now and then one comes twice."""

    def __init__(self, follower: Follower, key: str, after: str, *, is_behind: bool) -> None:
        self._follower = follower
        self._key = key
        self._last_id = after
        self._is_behind = is_behind
        self._has_ended = False
        self._waiting: list[Delta] = []
        self._news = asyncio.Event()

    def hand(self, deltas: Sequence[Delta]) -> None:
        """Called by the follower; what a slow client leaves lying is read back later."""
        if len(self._waiting) + len(deltas) > MAX_WAITING:
            self._is_behind = True
        if self._is_behind:
            self._waiting.clear()
        else:
            self._waiting.extend(deltas)
        self._news.set()

    def end(self) -> None:
        """Called by the follower when the end of the task is announced."""
        self._has_ended = True
        self._news.set()

    async def read(self, timeout_seconds: float) -> list[Delta]:
        """The next deltas; none at the end, or when there are none within the time."""
        if not (self._is_behind or self._waiting or self._has_ended):
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_seconds):
                    await self._news.wait()
        if self._is_behind:
            deltas = await self._read_back()
        else:
            deltas, self._waiting = self._waiting, []
        if deltas:
            self._last_id = deltas[-1].id
        else:
            self._has_ended = False  # it is told once
        return deltas

    async def _read_back(self) -> list[Delta]:
        # First: what is handed out while the page is read comes after it, or twice.
        self._is_behind = False
        try:
            deltas = await self._follower.page(self._key, self._last_id)
        except _REDIS_ERRORS:
            self._is_behind = True
            await asyncio.sleep(_RECONNECT_SECONDS)
            return []
        if len(deltas) == PAGE:
            self._is_behind = True
        else:
            last_id = deltas[-1].id if deltas else self._last_id
            self._follower.read_no_later_than(self._key, last_id)
        return deltas


def _order(entry_id: str) -> tuple[int, ...]:
    """What Redis sorts an id by."""
    return tuple(map(int, entry_id.split("-")))
