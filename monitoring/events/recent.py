"""The latest events of the log, each encoded once for all sockets of the process."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from monitoring.events.events import TRANSIENT
from monitoring.events.frames import MAX_BYTES as MAX_BATCH_BYTES
from monitoring.events.frames import frame
from monitoring.events.log import LoggedEvent
from monitoring.events.messages import event_text

MAX_EVENTS = 4096
MAX_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class EncodedEvent:
    """An event as a frame; `seq` of a transient one is that of the last logged event before it.

    `task_id` is None for an event of no task, `owner` for one that everyone sees.
    """

    type: str
    seq: int
    frame: bytes
    task_id: str | None = None
    owner: str | None = None

    def is_for(self, owner: str | None, task_id: str | None) -> bool:
        """Whether that owner sees it, None: all owners; and it is of the task or of none."""
        return (owner is None or self.owner in (None, owner)) and (
            task_id is None or self.task_id in (None, task_id)
        )


def encode(event: LoggedEvent, last_seq: int = 0) -> EncodedEvent:
    """A transient event comes after the logged one with the number `last_seq`."""
    seq = last_seq if event.seq is None else event.seq
    encoded = frame(event_text(event, seq))
    return EncodedEvent(event.type, seq, encoded, event.data.get("task_id"), event.owner)


class Batch:
    """Events without a gap after the number `after`, up to `end`, that come to all sockets at once.

    What some of them want alike is joined once.
    """

    def __init__(self, after: int) -> None:
        self.after = self.end = after
        self.transient: list[EncodedEvent] = []
        self._events: list[EncodedEvent] = []
        self._num_bytes = 0
        self._frames: dict[tuple[str | None, str | None, frozenset[str]], bytes] = {}

    def add(self, event: EncodedEvent) -> bool:
        """Add the next event; False: it needs a batch of its own."""
        is_next = self.end == _number_before(event)
        num_bytes = self._num_bytes + len(event.frame)
        if not is_next or (self._events and num_bytes > MAX_BATCH_BYTES):
            return False
        self._events.append(event)
        if event.type in TRANSIENT:
            self.transient.append(event)
        self.end, self._num_bytes = event.seq, num_bytes
        return True

    def frames(self, owner: str | None, task_id: str | None, types: frozenset[str]) -> bytes:
        """Those of an owner, of a task and of some types."""
        key = owner, task_id, types
        found = self._frames.get(key)
        if found is None:
            wanted = (each for each in self._events if each.type in types)
            found = b"".join(each.frame for each in wanted if each.is_for(owner, task_id))
            self._frames[key] = found
        return found


def batches(events: Iterable[EncodedEvent]) -> Iterator[Batch]:
    """New events in order, those together that can be."""
    batch: Batch | None = None
    for event in events:
        if batch is None or not batch.add(event):
            if batch is not None:
                yield batch
            batch = Batch(_number_before(event))
            batch.add(event)
    if batch is not None:
        yield batch


def _number_before(event: EncodedEvent) -> int:
    return event.seq if event.type in TRANSIENT else event.seq - 1


class RecentEvents:
    """Whatever the log had after the number `start_seq`, up to `last_seq`; bounded."""

    def __init__(self, start_seq: int) -> None:
        self.start_seq = self.last_seq = start_seq
        self._events: list[EncodedEvent] = []
        self._num_bytes = 0

    def add(self, event: EncodedEvent) -> None:
        """Add the next event; after a gap in the numbers it is the first one."""
        if event.seq != self.last_seq + 1:
            self.start_seq, self._events, self._num_bytes = event.seq - 1, [], 0
        self._events.append(event)
        self.last_seq = event.seq
        self._num_bytes += len(event.frame)
        while len(self._events) > MAX_EVENTS or self._num_bytes > MAX_BYTES:
            oldest = self._events.pop(0)
            self.start_seq = oldest.seq
            self._num_bytes -= len(oldest.frame)

    def after(self, seq: int, limit: int) -> list[EncodedEvent] | None:
        """The first events after a number; None when some of them are not here."""
        if not self.start_seq <= seq <= self.last_seq:
            return None
        index = seq - self.start_seq
        return self._events[index : index + limit]
