"""What one reader of a task's stream has been told, and what it is told next: Server-Sent Events.

The pieces of text since the last `restart` are always the beginning of the text of the result, and
all of it once the task has ended.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from inference.models import GenerationTask
from inference.task_body import task_body
from monitoring.streams.delta_stream import Entry

# The id of the last event of every stream.
FINAL_ID = "end"


@dataclass(frozen=True, slots=True)
class Position:
    """What a reader has: so many characters of an attempt's text, in so many pieces."""

    attempt: int
    num_chars: int = 0
    num_pieces: int = 0

    def __str__(self) -> str:
        """The id of the event that brought the reader here."""
        return f"{self.attempt}-{self.num_chars}-{self.num_pieces}"

    @property
    def entry_id(self) -> str:
        """The last entry of the stream in Redis that the reader has."""
        return f"{self.attempt}-{self.num_chars}"


class Transcript:
    """One reader's; its methods give the bytes of whole events, b"" where there is nothing new."""

    def __init__(self, position: Position | None) -> None:
        """None for a reader that has nothing yet."""
        self.position = position or Position(attempt=0)

    def begin(self, attempt: int) -> bytes:
        """The text is this attempt's, or a later one's: what the reader has of others is void."""
        return self._start_anew(attempt) if attempt > self.position.attempt else b""

    def add(self, entries: Iterable[Entry]) -> bytes:
        """What the reader lacks of entries of the stream."""
        return b"".join(self._add(entry) for entry in entries if not entry.is_end)

    def conclude(self, task: GenerationTask) -> bytes:
        """What an ended task's text has more than the stream had, and the task."""
        text = task.result["text"] if task.result else ""
        restart = b""
        if self.position.attempt != task.attempt or self.position.num_chars > len(text):
            restart = self._start_anew(task.attempt)
        rest = text[self.position.num_chars :]
        piece = self._piece(rest, len(text), self.position.num_pieces) if rest else b""
        return restart + piece + _event(task.status, FINAL_ID, task_body(task))

    def _add(self, entry: Entry) -> bytes:
        """Nothing for what a lost attempt has written, the reader has, or comes after a hole."""
        if entry.attempt < self.position.attempt:
            return b""
        restart = self.begin(entry.attempt)
        num_missing = entry.num_chars - self.position.num_chars
        if not 0 < num_missing <= len(entry.text):
            return restart
        return restart + self._piece(entry.text[-num_missing:], entry.num_chars, entry.index)

    def _start_anew(self, attempt: int) -> bytes:
        had_text = self.position.num_chars > 0
        self.position = Position(attempt)
        return _event("restart", str(self.position), {"attempt": attempt}) if had_text else b""

    def _piece(self, text: str, num_chars: int, index: int) -> bytes:
        self.position = Position(self.position.attempt, num_chars, index + 1)
        return _event("token", str(self.position), {"text": text, "index": index})


def _event(name: str, event_id: str, data: dict[str, Any]) -> bytes:
    """In ASCII, since not every client agrees with the standard on what ends a line."""
    body = json.dumps(data, separators=(",", ":"))
    return f"id: {event_id}\nevent: {name}\ndata: {body}\n\n".encode("ascii")
