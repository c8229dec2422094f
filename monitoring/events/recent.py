"""The latest events of the log, each encoded once for all sockets of the process."""

from dataclasses import dataclass

from monitoring.events.log import LoggedEvent
from monitoring.events.messages import event_text

MAX_EVENTS = 4096
MAX_CHARACTERS = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class EncodedEvent:
    """An event as JSON text; `seq` of a transient one is that of the last logged event before it.

    `task_id` is None for an event of no task, `owner` for one that everyone sees.
    """

    type: str
    seq: int
    text: str
    task_id: str | None = None
    owner: str | None = None


def encode(event: LoggedEvent, last_seq: int = 0) -> EncodedEvent:
    """A transient event comes after the logged one with the number `last_seq`."""
    seq = last_seq if event.seq is None else event.seq
    text = event_text(event, seq)
    return EncodedEvent(event.type, seq, text, event.data.get("task_id"), event.owner)


class RecentEvents:
    """Whatever the log had after the number `start_seq`, up to `last_seq`; bounded."""

    def __init__(self, start_seq: int) -> None:
        self.start_seq = self.last_seq = start_seq
        self._events: list[EncodedEvent] = []
        self._num_characters = 0

    def add(self, event: EncodedEvent) -> None:
        """Add the next event; after a gap in the numbers it is the first one."""
        if event.seq != self.last_seq + 1:
            self.start_seq, self._events, self._num_characters = event.seq - 1, [], 0
        self._events.append(event)
        self.last_seq = event.seq
        self._num_characters += len(event.text)
        while len(self._events) > MAX_EVENTS or self._num_characters > MAX_CHARACTERS:
            oldest = self._events.pop(0)
            self.start_seq = oldest.seq
            self._num_characters -= len(oldest.text)

    def after(self, seq: int, limit: int) -> list[EncodedEvent] | None:
        """The first events after a number; None when some of them are not here."""
        if not self.start_seq <= seq <= self.last_seq:
            return None
        index = seq - self.start_seq
        return self._events[index : index + limit]
