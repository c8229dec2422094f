"""What one socket has been sent of the feed, and what it is to be sent next."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from monitoring.events.events import TRANSIENT, EventType
from monitoring.events.frames import frame
from monitoring.events.messages import resync_text
from monitoring.events.recent import Batch, EncodedEvent

if TYPE_CHECKING:
    from monitoring.events.feed import Feed

# Transient events that wait for a slow socket; the oldest are dropped.
MAX_PENDING = 500
# The type of what says that events up to its number are lost.
RESYNC = "resync"

_STATS = frozenset({EventType.GPU_STATS, EventType.QUEUE_STATS})

# Writes frames to a socket at once; False: nothing is written, since something waits there.
Write = Callable[[bytes], bool]


class EventCursor:
    """What one socket wants, and how far it has got: it was sent all up to the number `_seq`.

    Logged events are not queued for it but read on from the feed, so a slow client only lags.
    """

    __slots__ = (
        *("_early", "_feed", "_floors", "_pending", "_seq", "_types", "_write"),
        *("owner", "task_id", "wake"),
    )

    def __init__(
        self, feed: "Feed", owner: str | None, wake: Callable[[], None], write: Write
    ) -> None:
        self.owner = owner
        self.task_id: str | None = None
        self.wake = wake
        self._write = write
        self._feed = feed
        # All types, and for each logged one the number after which the client wants it.
        self._types: frozenset[str] = frozenset()
        self._floors: dict[str, int] = {}
        # Subscriptions that wait for the feed to begin.
        self._early: list[tuple[frozenset[str], int | None]] = []
        self._seq = feed.last_seq or 0
        self._pending: list[EncodedEvent] = []

    def begin(self) -> None:
        """Called by the feed when Redis has answered."""
        self._seq = self._feed.recent.last_seq
        early, self._early = self._early, []
        for types, since in early:
            self.subscribe(types, since)

    def subscribe(self, types: frozenset[str], since: int | None) -> None:
        """Get these from now on, or all that came after the number `since`."""
        last_seq = self._feed.last_seq
        if last_seq is None:
            self._early.append((types, since))
            return
        self._types = _one_for_all(self._types | types)
        logged = types - TRANSIENT
        if not self._floors:
            self._seq = last_seq
        if since is None:
            self._floors = dict.fromkeys(logged, last_seq) | self._floors
        elif logged:
            # What was sent of the other types is not sent again.
            self._floors = {each: max(floor, self._seq) for each, floor in self._floors.items()}
            self._floors |= dict.fromkeys(logged, since)
            self._seq = min(self._seq, since)
            self.wake()
        self._feed.has_subscription.set()

    def unsubscribe(self, types: frozenset[str]) -> None:
        """Get these no more."""
        self._early = [(early - types, since) for early, since in self._early]
        self._types = _one_for_all(self._types - types)
        for each in types:
            self._floors.pop(each, None)

    def wanted_stats(self) -> set[tuple[EventType, str | None]]:
        """The statistics that are subscribed to, and whose."""
        return {(each, self.owner) for each in _STATS if each in self._types}

    def hand(self, batch: Batch) -> None:
        """Called by the feed with new events."""
        has_all_before = self._seq == batch.after and not self._pending
        if has_all_before and max(self._floors.values(), default=0) <= self._seq:
            frames = batch.frames(self.owner, self.task_id, self._types)
            if not frames or self._write(frames):
                self._seq = batch.end
                return
        # It reads the logged ones on from the feed.
        self._pending += (event for event in batch.transient if self._wants(event))
        del self._pending[:-MAX_PENDING]
        self.wake()

    async def take(self) -> list[bytes]:
        """What to send next, as frames; none when there is nothing more by now."""
        frames: list[bytes] = []
        while not frames and self._has_more():
            if self._is_ahead():
                last_seq = await self._feed.refresh()
                if self._is_ahead():  # of an event that there is not
                    self._floors = {each: min(at, last_seq) for each, at in self._floors.items()}
                    frames.append(frame(resync_text(last_seq)))
            after = self._seq
            found, end_seq = await self._feed.page_after(after)
            if after != self._seq:  # another subscription came in between
                continue
            if self._pending:
                # Stable: a transient event comes after the logged one of its number.
                due = [event for event in self._pending if event.seq <= end_seq]
                found = sorted(found + due, key=lambda event: event.seq)
                self._pending = [event for event in self._pending if event.seq > end_seq]
            frames += [event.frame for event in found if self._wants(event)]
            self._seq = end_seq
        return frames

    def _has_more(self) -> bool:
        is_lagging = bool(self._floors) and self._seq < self._feed.recent.last_seq
        return is_lagging or bool(self._pending) or self._is_ahead()

    def _is_ahead(self) -> bool:
        return bool(self._floors) and max(self._floors.values()) > self._feed.recent.last_seq

    def _wants(self, event: EncodedEvent) -> bool:
        if event.type == RESYNC:
            return any(floor < event.seq for floor in self._floors.values())
        floor = self._floors.get(event.type)
        is_due = event.type in self._types if floor is None else event.seq > floor
        return is_due and event.is_for(self.owner, self.task_id)


# Sets of types that cursors share; there are no more than the few types can make.
_type_sets: dict[frozenset[str], frozenset[str]] = {}


def _one_for_all(types: frozenset[str]) -> frozenset[str]:
    """The same object for equal sets: thousands of sockets want the same."""
    return _type_sets.setdefault(types, types)
