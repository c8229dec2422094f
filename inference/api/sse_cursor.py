"""Server-Sent Events for one reader of a task's stream: what it has, and what comes next.

The deltas since the last `restart` are always the beginning of the text of the result, and
all of it once the task has ended.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from inference.models import GenerationTask
from inference.task_body import task_body
from monitoring.streams.delta_stream import Delta

# The id of the last event of every stream.
FINAL_ID = "end"


@dataclass(frozen=True, slots=True)
class SSECursor:
    """What a reader has: the number of characters and deltas of an attempt."""

    attempt: int
    num_chars: int = 0
    num_deltas: int = 0

    def __str__(self) -> str:
        """The id of the event that brought the reader here."""
        return f"{self.attempt}-{self.num_chars}-{self.num_deltas}"

    @property
    def entry_id(self) -> str:
        """The last entry of the stream in Redis that the reader has."""
        return f"{self.attempt}-{self.num_chars}"


class SSEWriter:
    """Writes for one reader: bytes of whole events, b"" where there is nothing new.

    What the events look like is for `delta`, `restart` and `end` to say.
    """

    def __init__(self, cursor: SSECursor | None) -> None:
        """None for a reader that has nothing yet."""
        self.cursor = cursor or SSECursor(attempt=0)

    def begin(self, attempt: int) -> bytes:
        """The text is this attempt's, or a later one's: what the reader has of others is void."""
        return self._start_anew(attempt) if attempt > self.cursor.attempt else b""

    def add(self, deltas: Iterable[Delta]) -> bytes:
        """The events of those deltas that the reader lacks.

        Nothing for what a lost attempt has written, or comes after a hole.
        """
        events = b""
        for delta in deltas:
            if delta.attempt < self.cursor.attempt:
                continue
            events += self.begin(delta.attempt)
            num_missing = delta.num_chars - self.cursor.num_chars
            if 0 < num_missing <= len(delta.text):
                events += self._add(replace(delta, text=delta.text[-num_missing:]))
        return events

    def conclude(self, task: GenerationTask) -> bytes:
        """The rest of an ended task's text, and the task."""
        text = task.result["text"] if task.result else ""
        restart = b""
        if self.cursor.attempt != task.attempt or self.cursor.num_chars > len(text):
            restart = self._start_anew(task.attempt)
        rest = Delta(
            id="",
            attempt=task.attempt,
            num_chars=len(text),
            index=self.cursor.num_deltas,
            text=text[self.cursor.num_chars :],
        )
        return restart + (self._add(rest) if rest.text else b"") + self.end(task)

    def delta(self, delta: Delta) -> bytes:
        """The event of a delta, up to which the cursor is."""
        return _event("token", str(self.cursor), {"text": delta.text, "index": delta.index})

    def restart(self, attempt: int) -> bytes:
        """The event that makes the text so far void."""
        return _event("restart", str(self.cursor), {"attempt": attempt})

    def end(self, task: GenerationTask) -> bytes:
        """The last event."""
        return _event(task.status, FINAL_ID, task_body(task))

    def _start_anew(self, attempt: int) -> bytes:
        had_text = self.cursor.num_chars > 0
        self.cursor = SSECursor(attempt)
        return self.restart(attempt) if had_text else b""

    def _add(self, delta: Delta) -> bytes:
        self.cursor = SSECursor(self.cursor.attempt, delta.num_chars, delta.index + 1)
        return self.delta(delta)


def _event(name: str, event_id: str, data: dict[str, Any]) -> bytes:
    """In ASCII, since not every client agrees with the standard on what ends a line."""
    body = json.dumps(data, separators=(",", ":"))
    return f"id: {event_id}\nevent: {name}\ndata: {body}\n\n".encode("ascii")
