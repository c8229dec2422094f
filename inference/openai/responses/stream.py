"""A response as it comes, in events that are numbered alike whenever they are read.

The number of an event follows from its place in the answer: characters count one each, and the
events that begin and end an item have five numbers more. So a reader that comes back with
`starting_after` gets the rest to the character, though the text may be in other deltas by then.
"""

import json
from typing import Any

from rest_framework.exceptions import APIException

from inference.api.sse_cursor import SSEWriter
from inference.models import GenerationTask
from inference.openai.answers import TextStream
from inference.openai.errors import AnswerVoid, body_of
from inference.openai.responses.body import key_of, response_object, status_of
from inference.openai.responses.items import (
    call_item,
    message_item,
    reasoning_item,
    reasoning_part,
    text_part,
)
from monitoring.streams.delta_stream import Delta

MAX_NUMBER = 2**53 - 1
# More than an answer has characters, and few enough for 127 attempts in 32 bits.
_NUMBERS_OF_AN_ATTEMPT = 2**24
_NUM_OPENING = 2
_NUMBERS_OF_AN_ITEM = 5
# By the type of an item: what its deltas add to.
_PREFIXES = {
    "message": "response.output_text",
    "reasoning": "response.reasoning_text",
    "function_call": "response.function_call_arguments",
}


class ResponseEvents(SSEWriter):
    """Writes those events of a response whose numbers come after the reader's last one.

    It is always given the answer from its beginning.
    """

    def __init__(self, task: GenerationTask, starting_after: int | None) -> None:
        """None for a reader that has nothing yet."""
        super().__init__(None)
        self._task = task
        self._after = -1 if starting_after is None else starting_after
        self._last = self._after
        self._has_opened = False
        self._has_ended = False
        self._num_chars = 0
        self._num_items = 0
        # The item that is open, as it was added, and what its deltas have brought.
        self._item: dict[str, Any] | None = None
        self._texts: list[str] = []
        self._logprobs: list[Any] = []

    def begin(self, attempt: int) -> bytes:
        return self._opening() + super().begin(attempt)

    def delta(self, delta: Delta) -> bytes:
        if _NUM_OPENING <= self._after < self._first_number:
            raise AnswerVoid  # the reader has text of another attempt
        kind, call = "message", delta.tool_call
        if call or delta.reasoning:
            kind = "function_call" if call else "reasoning"
        events = self._opening()
        if self._item is None or self._item["type"] != kind or (call and "id" in call):
            events += self._close_item("completed") + self._open_item(kind, call)
        text = call["function"]["arguments"] if call else delta.reasoning or delta.text
        self._texts.append(text)
        self._num_chars = self.cursor.num_chars
        number = self._number(1)
        if not text:
            return events
        fields = self._place | {"delta": text[-max(1, number - self._after) :]}  # what is unseen
        if kind == "message":
            self._logprobs += delta.logprobs
            fields["logprobs"] = delta.logprobs
        return events + self._event(number, f"{_PREFIXES[kind]}.delta", **fields)

    def restart(self, attempt: int) -> bytes:
        raise AnswerVoid

    def end(self, task: GenerationTask) -> bytes:
        self._has_ended = True
        body, status = response_object(task), status_of(task)
        events = self._opening()
        is_said = self._item is not None and self._item["type"] == "message"
        if not is_said and body["output"] and body["output"][-1]["type"] == "message":
            events += self._close_item("completed") + self._open_item("message")  # without text
        events += self._close_item("completed" if status == "completed" else "incomplete")
        kind = "incomplete" if status == "cancelled" else status  # the SDK knows no other
        return events + self._event(self._number(0), f"response.{kind}", response=body)

    def error(self, error: APIException) -> bytes:
        """What breaks the stream off; nothing where the response itself says how it has ended."""
        if self._has_ended:
            return b""
        found = body_of(error)["error"]
        return self._event(
            self._last + 1,
            "error",
            code=found["code"],
            message=found["message"],
            param=found["param"],
        )

    @property
    def _first_number(self) -> int:
        """Of the events after the opening ones."""
        return max(0, self.cursor.attempt - 1) * _NUMBERS_OF_AN_ATTEMPT + _NUM_OPENING

    def _number(self, place: int) -> int:
        """Of an event after all characters so far, `place` being its own in its item."""
        before = self._num_items * _NUMBERS_OF_AN_ITEM + self._num_chars
        return self._first_number + before + place

    @property
    def _place(self) -> dict[str, Any]:
        """Where the text of the open item is."""
        assert self._item is not None
        place = {"item_id": self._item["id"], "output_index": self._num_items}
        return place if self._item["type"] == "function_call" else place | {"content_index": 0}

    def _opening(self) -> bytes:
        """The two events that come first, as they were before there was an answer."""
        if self._has_opened:
            return b""
        self._has_opened = True
        empty: Any = {
            **response_object(self._task),
            "output": [],
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "usage": None,
            "status": "in_progress",
        }
        created = empty | ({"status": "queued"} if empty["background"] else {})
        return self._event(0, "response.created", response=created) + self._event(
            1, "response.in_progress", response=empty
        )

    def _open_item(self, kind: str, call: dict[str, Any] | None = None) -> bytes:
        key = key_of(self._task)
        self._texts, self._logprobs = [], []
        part = None
        if call:
            function = call["function"] | {"arguments": ""}
            self._item = call_item(
                f"{key}_{call['index']}", call | {"function": function}, "in_progress"
            )
        elif kind == "reasoning":
            self._item, part = reasoning_item(key, status="in_progress"), reasoning_part("")
        else:
            self._item, part = message_item(key, status="in_progress"), text_part("")
        events = self._event(
            self._number(0),
            "response.output_item.added",
            output_index=self._num_items,
            item=self._item,
        )
        if part:
            number = self._number(1)
            events += self._event(number, "response.content_part.added", **self._place, part=part)
        return events

    def _close_item(self, status: str) -> bytes:
        """Nothing where none is open."""
        if self._item is None:
            return b""
        text, kind, part = "".join(self._texts), self._item["type"], None
        item = self._item | {"status": status}
        if kind == "function_call":
            item["arguments"] = text
            fields: dict[str, Any] = {"arguments": text, "name": item["name"]}
        else:
            is_message = kind == "message"
            part = text_part(text, self._logprobs) if is_message else reasoning_part(text)
            item["content"] = [part]
            fields = {"text": text} | ({"logprobs": self._logprobs} if is_message else {})
        events = self._event(self._number(2), f"{_PREFIXES[kind]}.done", **self._place, **fields)
        if part:
            number = self._number(3)
            events += self._event(number, "response.content_part.done", **self._place, part=part)
        events += self._event(
            self._number(4), "response.output_item.done", output_index=self._num_items, item=item
        )
        self._item = None
        self._num_items += 1
        return events

    def _event(self, number: int, kind: str, **fields: Any) -> bytes:
        """One event, in ASCII: not every client agrees on what ends a line."""
        self._last = max(self._last, number)
        if number <= self._after:
            return b""
        body = json.dumps(
            {"type": kind, "sequence_number": number, **fields}, separators=(",", ":")
        )
        return f"event: {kind}\ndata: {body}\n\n".encode("ascii")


def response_stream(
    task: GenerationTask, starting_after: int | None = None, *, is_new: bool
) -> TextStream:
    """The events of a response; `is_new`: its client has just asked for it."""
    writer = ResponseEvents(task, starting_after)
    return TextStream(
        [task],
        [writer],
        lambda _: b"",  # the last event is the writer's own
        writer.error,
        is_kept=not is_new or task.request["response"]["background"],
        is_new=is_new,
    )
