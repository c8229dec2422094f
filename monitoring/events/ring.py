"""The latest that there is to tell, each written as JSON once for all sockets of the process."""

from bisect import bisect_right
from dataclasses import dataclass

from monitoring.events.log import Excerpt, LoggedEvent
from monitoring.events.messages import event_text, resync_text

MAX_ITEMS = 4096
MAX_CHARACTERS = 16 * 1024 * 1024

# The type of an item that says that events before it are lost.
RESYNC = "resync"


@dataclass(frozen=True, slots=True)
class Item:
    """An event, a reading, or a resync, as text for the wire.

    `seq` of a reading is that of the last event before it; of a resync, the last number lost.
    """

    type: str
    seq: int
    text: str
    is_logged: bool = True
    task_id: str | None = None
    owner: str | None = None


def event_item(event: LoggedEvent) -> Item:
    """An event of the log."""
    assert event.seq is not None, "only readings have no number"
    return _item(event, event.seq)


def reading_item(reading: LoggedEvent, last_seq: int) -> Item:
    """A reading told after the event with that number."""
    return _item(reading, last_seq)


def items_after(seq: int, excerpt: Excerpt) -> list[Item]:
    """What comes after a number: events in order, a resync in the place of those that are lost."""
    items: list[Item] = []
    last = seq
    for item in map(event_item, excerpt.events):
        if item.seq <= last:
            continue
        if last and item.seq > last + 1:
            items.append(_resync(item.seq - 1))
        items.append(item)
        last = item.seq
    if last and last < excerpt.end_seq:
        items.append(_resync(excerpt.end_seq))
    return items


def _item(event: LoggedEvent, seq: int) -> Item:
    task_id = event.data.get("task_id")
    text = event_text(event, seq)
    return Item(event.type, seq, text, event.seq is not None, task_id, event.owner)


def _resync(since: int) -> Item:
    return Item(RESYNC, since, resync_text(since))


class Ring:
    """The latest items by position. Positions grow for ever; the oldest items go.

    Holds whatever the log had after the number `start_seq`, up to `last_seq`.
    """

    def __init__(self, start_seq: int) -> None:
        self.start_seq = self.last_seq = start_seq
        self.first = self.end = 0
        self._items: dict[int, Item] = {}
        self._num_characters = 0

    def __getitem__(self, position: int) -> Item:
        return self._items[position]

    def add(self, item: Item) -> int:
        """Its position."""
        position = self.end
        self._items[position] = item
        self.end += 1
        self.last_seq = item.seq
        self._num_characters += len(item.text)
        while len(self._items) > MAX_ITEMS or self._num_characters > MAX_CHARACTERS:
            self._drop_oldest()
        return position

    def position_after(self, seq: int) -> int | None:
        """Where the items after an event begin; None when some of them are gone."""
        if seq < self.start_seq:
            return None
        positions = range(self.first, self.end)
        return self.first + bisect_right(positions, seq, key=lambda each: self._items[each].seq)

    def _drop_oldest(self) -> None:
        item = self._items.pop(self.first)
        self.first += 1
        self.start_seq = item.seq
        self._num_characters -= len(item.text)
