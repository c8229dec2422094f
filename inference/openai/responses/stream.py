"""A response as it comes, in events that are numbered alike whenever they are read.

The number of an event follows from its place in the answer: characters count one each, and the
events that begin and end an item have five numbers more. So a reader that comes back with
`starting_after` gets the rest to the character, though the text may be in other deltas by then.
"""

import json
from collections.abc import Sequence
from typing import Any

from rest_framework.exceptions import APIException

from inference.api.sse_cursor import SSEWriter
from inference.models import GenerationTask
from inference.openai.answers import TextStream
from inference.openai.errors import AnswerVoid, body_of
from inference.openai.responses.body import key_of, response_object, status_of
from inference.openai.responses.items import message_item, text_part
from monitoring.streams.delta_stream import Delta

MAX_NUMBER = 2**53 - 1
# More than an answer has characters, and few enough for 127 attempts in 32 bits.
_NUMBERS_OF_AN_ATTEMPT = 2**24
_NUM_OPENING = 2
_NUMBERS_OF_AN_ITEM = 5


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
        self._texts: list[str] | None = None  # of the item that is open

    def begin(self, attempt: int) -> bytes:
        return self._open() + super().begin(attempt)

    def delta(self, delta: Delta) -> bytes:
        if _NUM_OPENING <= self._after < self._first_number:
            raise AnswerVoid  # the reader has text of another attempt
        events = self._open() + self._open_item()
        assert self._texts is not None
        self._texts.append(delta.text)
        self._num_chars = self.cursor.num_chars
        number = self._number(1)
        return events + self._event(
            number,
            "response.output_text.delta",
            **self._part,
            delta=delta.text[-max(1, number - self._after) :],  # what the reader lacks of it
            logprobs=[],
        )

    def restart(self, attempt: int) -> bytes:
        raise AnswerVoid

    def end(self, task: GenerationTask) -> bytes:
        self._has_ended = True
        body, status = response_object(task), status_of(task)
        events = self._open()
        if body["output"]:
            events += self._open_item()
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
    def _part(self) -> dict[str, Any]:
        """Where the text of the open item is."""
        item_id = f"msg_{key_of(self._task)}"
        return {"item_id": item_id, "output_index": self._num_items, "content_index": 0}

    def _open(self) -> bytes:
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

    def _open_item(self) -> bytes:
        if self._texts is not None:
            return b""
        self._texts = []
        item = message_item(key_of(self._task), status="in_progress")
        added = self._event(
            self._number(0),
            "response.output_item.added",
            output_index=self._num_items,
            item=item,
        )
        return added + self._event(
            self._number(1), "response.content_part.added", **self._part, part=text_part("")
        )

    def _close_item(self, status: str) -> bytes:
        assert self._texts is not None
        text, self._texts = "".join(self._texts), None
        part = text_part(text)
        events = (
            self._event(
                self._number(2),
                "response.output_text.done",
                **self._part,
                text=text,
                logprobs=[],
            ),
            self._event(self._number(3), "response.content_part.done", **self._part, part=part),
            self._event(
                self._number(4),
                "response.output_item.done",
                output_index=self._num_items,
                item=message_item(key_of(self._task), part, status=status),
            ),
        )
        self._num_items += 1
        return b"".join(events)

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
        _nothing,
        writer.error,
        is_kept=not is_new or task.request["response"]["background"],
        is_new=is_new,
    )


def _nothing(tasks: Sequence[GenerationTask]) -> bytes:
    """The last event is the writer's own."""
    return b""
