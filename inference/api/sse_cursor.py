"""Server-Sent Events for one reader of a task's stream: what it has, and what comes next.

The deltas since the last `restart` are always the beginning of the answer in the result, and
all of it once the task has ended.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from inference.models import GenerationTask
from inference.task_body import task_body
from monitoring.streams.delta_stream import Delta

# The id of the last event of every stream.
FINAL_ID = "end"


@dataclass(frozen=True, slots=True)
class SSECursor:
    """What a reader has of an attempt.

    `position`: up to where it has the stream in Redis; all of it, once it gets the rest from the
    result. Beside the number of deltas: of characters of the text, of the reasoning, and of the
    tool calls, where each call counts one beside its arguments.
    """

    attempt: int
    position: int = 0
    num_deltas: int = 0
    num_text: int = 0
    num_reasoning: int = 0
    num_called: int = 0
    num_logprobs: int = 0

    def __str__(self) -> str:
        """The id of the event that brought the reader here."""
        event_id = f"{self.attempt}-{self.position}-{self.num_deltas}"
        if (self.num_text, self.num_logprobs) == (self.position, 0):
            return event_id
        numbers = (self.num_text, self.num_reasoning, self.num_called, self.num_logprobs)
        return f"{event_id}-{'-'.join(map(str, numbers))}"

    @classmethod
    def parse(cls, event_id: str) -> "SSECursor":
        """From the id of an event; without numbers of its own, all is text."""
        attempt, position, num_deltas, *numbers = map(int, event_id.split("-"))
        return cls(attempt, position, num_deltas, *(numbers or [position]))

    @property
    def entry_id(self) -> str:
        """The last entry of the stream in Redis that the reader has."""
        return f"{self.attempt}-{self.position}"

    @property
    def num_chars(self) -> int:
        """Of text, reasoning and calls together."""
        return self.num_text + self.num_reasoning + self.num_called


class SSEWriter:
    """Writes for one reader: bytes of whole events, b"" where there is nothing new.

    What the events look like is for `delta`, `restart` and `end` to say.
    """

    def __init__(self, cursor: SSECursor | None) -> None:
        """None for a reader that has nothing yet."""
        self.cursor = cursor or SSECursor(attempt=0)

    def begin(self, attempt: int) -> bytes:
        """The answer is this attempt's, or a later one's: what the reader has of others is void."""
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
            num_missing = delta.num_chars - self.cursor.position
            if 0 < num_missing <= delta.length:
                events += self._add(_end_of(delta, num_missing), delta.num_chars)
        return events

    def conclude(self, task: GenerationTask) -> bytes:
        """The rest of an ended task's answer, and the task."""
        result = task.result or {"text": ""}
        reasoning = result.get("reasoning_content") or ""
        parts = list(_parts_of_calls(result.get("tool_calls") or ()))
        num_called = sum(map(_length, parts))
        logprobs = (result.get("logprobs") or {"content": []})["content"]
        events = b""
        cursor = self.cursor
        if (
            cursor.attempt != task.attempt
            or cursor.num_text > len(result["text"])
            or cursor.num_reasoning > len(reasoning)
            or cursor.num_called > num_called
        ):
            events = self._start_anew(task.attempt)
        whole = [
            self._rest(self.cursor.num_reasoning, reasoning=reasoning),
            self._rest(self.cursor.num_text, text=result["text"]),
        ]
        skipped = self.cursor.num_called
        for part in parts:
            whole.append(self._rest(min(skipped, _length(part)), tool_call=part))
            skipped = max(0, skipped - _length(part))
        rests = [rest for rest in whole if rest.length]
        end = len(result["text"]) + len(reasoning) + num_called
        for rest in rests:
            unseen = logprobs[self.cursor.num_logprobs :] if rest is rests[-1] else []
            delta = replace(rest, index=self.cursor.num_deltas, logprobs=unseen)
            events += self._add(delta, end)
        return events + self.end(task)

    def delta(self, delta: Delta) -> bytes:
        """The event of a delta, up to which the cursor is."""
        logprobs = {"logprobs": {"content": delta.logprobs}} if delta.logprobs else {}
        if delta.tool_call:
            return _event("tool_call", str(self.cursor), delta.tool_call | logprobs)
        name = "reasoning" if delta.reasoning else "token"
        data = {"text": delta.reasoning or delta.text, "index": delta.index}
        return _event(name, str(self.cursor), data | logprobs)

    def restart(self, attempt: int) -> bytes:
        """The event that makes the answer so far void."""
        return _event("restart", str(self.cursor), {"attempt": attempt})

    def end(self, task: GenerationTask) -> bytes:
        """The last event."""
        return _event(task.status, FINAL_ID, task_body(task))

    def _rest(self, num_seen: int, **of_kind: Any) -> Delta:
        """What is left of a text, reasoning or part of a call."""
        whole = Delta("", self.cursor.attempt, 0, 0, **of_kind)
        return _end_of(whole, whole.length - num_seen)

    def _start_anew(self, attempt: int) -> bytes:
        had_any = self.cursor.num_chars > 0
        self.cursor = SSECursor(attempt)
        return self.restart(attempt) if had_any else b""

    def _add(self, delta: Delta, position: int) -> bytes:
        cursor, length = self.cursor, delta.length
        self.cursor = SSECursor(
            cursor.attempt,
            position,
            delta.index + 1,
            cursor.num_text + len(delta.text),
            cursor.num_reasoning + (length if delta.reasoning else 0),
            cursor.num_called + (length if delta.tool_call else 0),
            cursor.num_logprobs + len(delta.logprobs),
        )
        return self.delta(delta)


def _end_of(delta: Delta, length: int) -> Delta:
    """The last so many characters of a delta."""
    if length >= delta.length:
        return delta
    if delta.tool_call is None:
        start = delta.length - length
        return replace(delta, text=delta.text[start:], reasoning=delta.reasoning[start:])
    arguments = delta.tool_call["function"]["arguments"]
    end = arguments[len(arguments) - length :]
    part = {"index": delta.tool_call["index"], "function": {"arguments": end}}
    return replace(delta, tool_call=part)


def _parts_of_calls(calls: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for index, call in enumerate(calls):
        yield {"index": index, **call}


def _length(part: dict[str, Any]) -> int:
    return 1 + len(part["function"]["arguments"])


def _event(name: str, event_id: str, data: dict[str, Any]) -> bytes:
    """In ASCII, since not every client agrees with the standard on what ends a line."""
    body = json.dumps(data, separators=(",", ":"))
    return f"id: {event_id}\nevent: {name}\ndata: {body}\n\n".encode("ascii")
