"""One socket's place in the feed: what it wants to hear, and how far it has heard."""

from collections.abc import Callable, Iterable
from typing import Protocol

from monitoring.events.events import READINGS
from monitoring.events.log import Excerpt
from monitoring.events.messages import resync_text
from monitoring.events.ring import RESYNC, Item, Ring, items_after

_MAX_TEXTS = 64


class Source(Protocol):
    """Where a reader reads: the latest from memory, what is older from the log."""

    @property
    def ring(self) -> Ring:
        """The latest items."""

    async def read_log(self, after: int) -> Excerpt:
        """The first events after a number; waits until Redis answers."""


class Reader:
    """A cursor, not a queue: a client that is slow costs nothing but its own lag.

    What is wanted after `_seq` is still to be taken, from the ring or, when `_is_behind` what the
    ring holds, from the log. `_position` is None while there is nothing for it in the ring.
    """

    __slots__ = (
        "_floors",
        "_is_behind",
        "_position",
        "_seq",
        "_source",
        "_wake",
        "owner",
        "readings",
        "task_id",
    )

    def __init__(self, source: Source, owner: str, wake: Callable[[], None]) -> None:
        self.owner = owner
        self.task_id: str | None = None
        self.readings: frozenset[str] = frozenset()
        # By type of event: the number after which the client wants to hear of it.
        self._floors: dict[str, int] = {}
        self._source = source
        self._wake = wake
        self._seq = 0
        self._position: int | None = None
        self._is_behind = False

    @property
    def types(self) -> set[str]:
        """What it is subscribed to."""
        return {*self._floors, *self.readings}

    def subscribe(self, types: Iterable[str], since: int | None) -> None:
        """Hear of these from now on, or of all that came after the number `since`."""
        ring = self._source.ring
        events = [each for each in types if each not in READINGS]
        self.readings |= READINGS.intersection(types)
        if since is None:
            for each in events:
                self._floors.setdefault(each, ring.last_seq)
        elif events:
            self._rewind(events, since)

    def unsubscribe(self, types: Iterable[str]) -> None:
        """Hear no more of these."""
        self.readings -= set(types)
        for each in types:
            self._floors.pop(each, None)

    def _rewind(self, events: list[str], since: int) -> None:
        """The others, which have been heard so far, are not heard again."""
        heard = self._heard()
        self._floors = {each: max(floor, heard) for each, floor in self._floors.items()}
        self._floors |= dict.fromkeys(events, since)
        self._seq = min(heard, since)
        self._position = None
        self._is_behind = True
        # A number that is not reached yet is for the log to judge: the ring may lag behind it.
        if since <= self._source.ring.last_seq:
            self._go_to_ring()
        self._wake()

    def _heard(self) -> int:
        is_lagging = self._is_behind or self._position is not None
        return self._seq if is_lagging else max(self._seq, self._source.ring.last_seq)

    def _go_to_ring(self) -> None:
        """Go on in the ring, if it holds all that is still to be taken."""
        position = self._source.ring.position_after(self._seq)
        if position is not None:
            self._is_behind = False
            self._position = position if position < self._source.ring.end else None

    def offer(self, position: int, item: Item) -> None:
        """A new item of the ring."""
        if self._position is None and not self._is_behind and self._wants(item):
            self._position = position
            self._seq = max(self._seq, item.seq - item.is_logged)
            self._wake()

    async def take(self) -> list[str]:
        """What to send next, as texts; none when there is nothing more by now."""
        texts: list[str] = []
        while not texts and (self._is_behind or self._position is not None):
            texts = await self._take_from_log() if self._is_behind else self._take_from_ring()
        return texts

    def _take_from_ring(self) -> list[str]:
        ring = self._source.ring
        position = max(self._position or 0, ring.first)
        if position != self._position and self._floors:
            self._is_behind, self._position = True, None
            return []
        texts: list[str] = []
        while position < ring.end and len(texts) < _MAX_TEXTS:
            item = ring[position]
            position += 1
            if self._wants(item):
                texts.append(item.text)
            self._seq = max(self._seq, item.seq)
        self._position = position if position < ring.end else None
        return texts

    async def _take_from_log(self) -> list[str]:
        after = self._seq
        excerpt = await self._source.read_log(after)
        if after != self._seq:  # another subscription came in between
            return []
        texts = self._from_the_future(excerpt.last_seq)
        for item in items_after(after, excerpt):
            if self._wants(item):
                texts.append(item.text)
            self._seq = item.seq
        self._seq = max(self._seq, excerpt.end_seq)
        self._go_to_ring()
        return texts

    def _from_the_future(self, last_seq: int) -> list[str]:
        """A resync for who asked for what comes after an event that there is not."""
        floors = {each: min(floor, last_seq) for each, floor in self._floors.items()}
        if floors == self._floors:
            return []
        self._floors = floors
        return [resync_text(last_seq)]

    def _wants(self, item: Item) -> bool:
        if not item.is_logged:
            return item.type in self.readings and self._may_see(item)
        if item.seq <= self._seq:
            return False
        if item.type == RESYNC:
            return any(floor < item.seq for floor in self._floors.values())
        return item.seq > self._floors.get(item.type, item.seq) and self._may_see(item)

    def _may_see(self, item: Item) -> bool:
        is_ours = item.owner is None or item.owner == self.owner
        return is_ours and (self.task_id in (None, item.task_id) or item.task_id is None)
